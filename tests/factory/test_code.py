"""A plugin's code digest: deaf to moves and reformats, and to every edit but those of what the plugin is made of."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from factory import code
from factory.code import ANEW, Tree
from factory.recipe.nodes import read_node
from factory.registry import KINDS, load_plugins, lookup

ROOT = Path(__file__).parents[2]
WORDS = ("command", "converter", "format", "report")  # kinds that no number of a run comes from


def project(into: Path) -> Path:
    for room in code.ROOMS:
        shutil.copytree(ROOT / room, into / room, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    return into


def registered(file: Path) -> list[tuple[str, str, str]]:
    """Kind and name of the plugins that a file registers, and the classes that bear them."""
    pattern = r'^@register\("(\w+)", "([\w.]+)"\)\n(?:@.*\n)*class (\w+)'
    return re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)


def digests(home: Path) -> dict[tuple[str, str], str]:
    """The digest of every plugin of a copy of the project, by kind and name."""
    tree, found = Tree({room: home / room for room in code.ROOMS}), {}
    for kind in (kind for kind in KINDS if kind not in WORDS):
        for file in sorted((home / Path(*KINDS[kind].split("."))).rglob("*.py")):
            module = ".".join(file.relative_to(home).with_suffix("").parts).removesuffix(".__init__")
            for of, name, cls in registered(file):
                found[of, name] = tree.digest(module, cls, leave=ANEW.get(of, ()))
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def before(copy):
    return digests(copy)


@pytest.fixture
def change(copy):
    """Rewrites files of the copy for one test."""
    texts: dict[Path, str | None] = {}

    def write(path: str, edit: Callable[[str], str]) -> None:
        file = copy / path
        texts.setdefault(file, file.read_text(encoding="utf-8") if file.exists() else None)
        text = edit(texts[file] or "")
        assert text != texts[file], f"{path} is not changed by the edit"
        file.write_text(text, encoding="utf-8")

    yield write
    for file, text in texts.items():
        file.unlink() if text is None else file.write_text(text, encoding="utf-8")


class Disguise(ast.NodeTransformer):
    """Other docstrings and no annotations of arguments and results: nothing that is computed."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            each.annotation = None
        return self.visit_ClassDef(node, False)

    def visit_ClassDef(self, node: ast.AST, go_on: bool = True) -> ast.AST:
        if go_on:
            self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body[0].value = ast.Constant("Says something else.")
        else:
            node.body.insert(0, ast.Expr(ast.Constant("Says something.")))
        return node


def test_every_plugin_has_a_digest_of_its_own(before):
    assert len(before) > 90 and len(set(before.values())) == len(before)


def test_formatting_comments_docstrings_and_annotations_change_no_digest(copy, before, tmp_path):
    home = project(tmp_path)
    for file in (path for room in code.ROOMS for path in (home / room).rglob("*.py")):
        kind = [f"{of} {name}" for of, name, _ in registered(file)]
        plain = ast.unparse(ast.fix_missing_locations(Disguise().visit(ast.parse(file.read_text(encoding="utf-8")))))
        plain = re.sub(r"^@register\('(\w+)', '([\w.]+)'\)$", r'@register("\1", "\2")', plain, flags=re.MULTILINE)
        file.write_text(f"# a comment\n{plain}\n# another\n", encoding="utf-8")
        assert [f"{of} {name}" for of, name, _ in registered(file)] == kind
    assert digests(home) == before


def test_a_move_changes_no_digest(copy, before, tmp_path):
    home = project(tmp_path)
    moves = {
        "factory.steer.regressor": "factory.steer.networks.two_layers",
        "eval_suite.scenes.draw": "eval_suite.scenes.pencil",
        "factory.model.prefix": "factory.cache",
    }
    (home / "factory/steer/networks").mkdir()
    (home / "factory/steer/networks/__init__.py").touch()
    for old, new in moves.items():
        source, target = (home / Path(*name.split(".")).with_suffix(".py") for name in (old, new))
        source.rename(target)
    for file in (path for room in code.ROOMS for path in (home / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        for old, new in moves.items():
            text = re.sub(
                rf"^from ({old}|\.{old.rpartition('.')[2]}) import", f"from {new} import", text, flags=re.MULTILINE
            )
        file.write_text(text, encoding="utf-8")
    assert digests(home) == before


def test_a_definition_that_moves_to_another_file_changes_no_digest(before, change, copy):
    body = "    return {k: t.detach().clone() for k, t in theta.items()}\n"
    old = f"def _copy(theta: Theta) -> Theta:\n{body}"
    change("factory/steer/regressor.py", lambda s: s.replace(old, "from factory.steer.kept import copied as _copy\n"))
    change(
        "factory/steer/kept.py", lambda _: f"def copied(theta):\n{body}".replace("copied", "_copy") + "copied = _copy"
    )
    moved = digests(copy)
    assert {key for key in before if moved[key] != before[key]} == REGRESSED, "another name is another definition"
    change("factory/steer/regressor.py", lambda s: s.replace(old, "from factory.steer.kept import _copy\n"))
    change("factory/steer/kept.py", lambda _: f"def _copy(theta):\n{body}")
    assert digests(copy) == before


STEERED = {("steering", name) for name in ("l2s", "amps", "pixel")}
REGRESSED = STEERED | {("diagnostic", "influence")}
DRAWN = {("benchmark", name) for name in ("scenes", "plain_scenes", "films", "scene_texts")}
SHAPES_DRAWN = DRAWN | {("benchmark", "scene_captions")}


@pytest.mark.parametrize(
    ("path", "old", "new", "dependants"),
    [
        ("factory/steer/regressor.py", "- cosine * F.cosine", "- 2 * cosine * F.cosine", REGRESSED),
        ("factory/steer/regressor.py", "params.hidden**-0.5", "params.hidden**-0.25", REGRESSED),
        ("factory/steer/regressor.py", "hidden: PositiveInt = 100", "hidden: PositiveInt = 64", STEERED),
        ("plugins/steering/static.py", ".mean(0)", ".median(0).values", {("steering", "static")}),
        ("plugins/diagnostics/mcr/tokens.py", "Role.QUESTION", "Role.OPTIONS", {("diagnostic", "mcr")}),
        ("eval_suite/scorers/yes_no.py", '"no"', '"nope"', None),
    ],
)
def test_an_edit_changes_the_digests_of_its_dependants_alone(copy, before, change, path, old, new, dependants):
    change(path, lambda text: text.replace(old, new))
    after = digests(copy)
    changed = {key for key in before if after[key] != before[key]}
    if dependants is None:
        dependants = {("benchmark", name) for name in ("pope", "mme", "hallusionbench", "phd")} & changed
        assert ("benchmark", "pope") in changed
    assert changed == dependants


@pytest.mark.parametrize(("nth", "dependants"), [(3, SHAPES_DRAWN), (90, DRAWN)])
def test_numbers_in_the_drawing_of_scenes_count_for_what_draws_scenes(copy, before, change, nth, dependants):
    source = (copy / "eval_suite/scenes/draw.py").read_text(encoding="utf-8")
    numbers = [m for m in re.finditer(r"(?<![\w.\"'])\d+\.\d+", source) if m.start() > source.index("class Canvas")]
    number = numbers[nth % len(numbers)]
    change("eval_suite/scenes/draw.py", lambda text: text[: number.start()] + "77.7" + text[number.end() :])
    after = digests(copy)
    assert {key for key in before if after[key] != before[key]} == dependants


def test_what_is_told_afterwards_is_no_part_of_it(copy, before, change):
    for path in ("eval_suite/report/html.py", "factory/diagnose/summary.py", "plugins/diagnostics/lmar/summary.py"):
        change(path, lambda text: re.sub(r"\breturn\b", "return 1 and", text))
    change("eval_suite/benchmarks/pope.py", lambda text: text.replace("divide(tp + tn, n)", "divide(tp, n)"))
    assert digests(copy) == before


def test_the_two_halves_of_a_conflict_benchmark(copy, change):
    tree = Tree({room: copy / room for room in code.ROOMS})
    at = ("eval_suite.benchmarks.scenes", "Scenes")
    scoring = ("judge", "outcome")
    halves = lambda: (tree.digest(*at, leave=(*scoring, "examine", "as_questions")), tree.digest(*at, only=scoring))
    asked, scored = halves()
    change("eval_suite/scorers/conflict.py", lambda text: text.replace("return", "return None or"))
    assert halves()[0] == asked and halves()[1] != scored
    scored = halves()[1]
    change("eval_suite/scenes/draw.py", lambda text: re.sub(r"\breturn\b", "return 0 or", text))
    assert halves()[0] != asked and halves()[1] == scored


HELPED = """
import helper
from factory.registry import register
from factory.steer import Steerer


@register("steering", "{name}")
class Helped(Steerer):
    def fit(self, states):
        return {{"v": helper.middle(states.toward)}}

    def delta(self, h, state, ctx):
        return state["v"].expand_as(h)
"""


def test_a_plugin_file_and_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper.py").write_text("def middle(x):\n    return x.mean(0)\n\n\ndef other():\n    return 1\n")
    file = tmp_path / "helped.py"
    file.write_text(HELPED.format(name="helped_by_file"))
    load_plugins([str(file)])
    cls = lookup("steering", "helped_by_file")
    first = code.of(cls)
    assert re.fullmatch("[0-9a-f]{16}", first)
    (tmp_path / "helper.py").write_text(
        "# longer\ndef middle(x):\n    return x.mean(0)\n\n\ndef other():\n    return 2\n"
    )
    assert code.of(cls) == first
    (tmp_path / "helper.py").write_text("def middle(x):\n    return x.median(0).values\n")
    second = code.of(cls)
    assert second != first
    file.write_text(HELPED.format(name="helped_by_file").replace('state["v"]', '-state["v"]'))
    assert code.of(cls) not in (first, second)


def test_a_method_that_takes_the_name_of_its_base_has_the_code_of_both(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    base = tmp_path / "first_of_two.py"
    base.write_text(HELPED.format(name="first_of_two").replace("import helper", "").replace("helper.middle", "len"))
    file = tmp_path / "second_of_two.py"
    text = "from first_of_two import Helped\nfrom factory.registry import register\n\n\n"
    file.write_text(text + '@register("steering", "second_of_two")\nclass Helped(Helped):\n    rank = 1\n')
    load_plugins([str(file)])
    cls = lookup("steering", "second_of_two")
    first = code.of(cls)
    base.write_text(base.read_text().replace('state["v"]', '-state["v"]'))
    second = code.of(cls)
    file.write_text(file.read_text().replace("rank = 1", "rank = 2"))
    assert len({first, second, code.of(cls)}) == 3


def test_a_plugin_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "methods_of_others" / "deep"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package.parent / "sums.py").write_text("def middle(x):\n    return x.mean(0)\n")
    text = HELPED.format(name="helped_by_package").replace("import helper", "from ..sums import middle")
    (package / "one.py").write_text(text.replace("helper.middle", "middle"))
    load_plugins(["methods_of_others.deep.one"])
    cls = lookup("steering", "helped_by_package")
    first = code.of(cls)
    (package.parent / "sums.py").write_text("def middle(x):\n    return x.sum(0)\n")
    assert re.fullmatch("[0-9a-f]{16}", first) and code.of(cls) != first


def test_a_method_around_another_has_the_code_of_both():
    around = {of: code.of_node(read_node("steering", {"type": "dose", "of": of})) for of in ("l2s", "static")}
    alone = code.of(lookup("steering", "dose"))
    assert len({*around.values(), alone}) == 3
    made = read_node("steering", {"type": "dose", "of": "l2s"})
    assert code.of_plugin(lookup("steering", "dose")(made.params)) == around["l2s"]


def test_a_class_without_a_file_says_so():
    assert code.of(type("Typed", (), {"__module__": "nowhere"})) == "unknown"


READ_ONCE = """
from factory import cli, code, hub
from factory.code import tree

read, parsed = [], tree.parsed
tree.parsed = lambda name, *args: read.append(name) or parsed(name, *args)
digests = [code.of(work) for work in (cli.main, hub.hub_faults, code.of)]
assert len(set(digests)) == 3 and len(read) == len(set(read)) > 20, read
read.clear()
assert digests == [code.of(work) for work in (cli.main, hub.hub_faults, code.of)] and not read, read
"""


def test_a_file_is_read_once_for_all_digests_of_a_process():
    done = subprocess.run([sys.executable, "-c", READ_ONCE], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

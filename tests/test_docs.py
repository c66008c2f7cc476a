"""README and docs/: what docstrings cite is there, links lead somewhere, and what is printed runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
from pathlib import Path
from pydoc import locate
from typing import Literal

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import BaseModel, Field, PositiveInt

import factory
from eval_suite.scenes.sheet import draw_sheet
from eval_suite.site import fields, pages, pictures, prose
from factory import cli, registry
from factory.errors import UserError
from factory.recipe import dump
from factory.recipe import load as read_recipe
from factory.recipe.nodes import read_node
from factory.recipe.schema import Recipe
from factory.zoo.cards import read_card
from tests.eval_suite.synthetic_report import synthetic

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CITED = re.compile(r"SPEC(?:\.md)?(?:\s+section)?\s+(A?\d+(?:\.\d+)?)(?:-(A?\d+))?")
SOURCES = [path for room in ("factory", "plugins", "eval_suite", "model_zoo") for path in (ROOT / room).rglob("*.*")]


def cited() -> dict[str, str]:
    """Every section and choice of the specification that code and cards cite, with a file that does."""
    found = {}
    for path in SOURCES:
        if path.suffix in (".py", ".yaml"):
            for first, last in CITED.findall(path.read_text(encoding="utf-8")):
                numbers = range(int(first[1:]), int(last[1:]) + 1) if last else ()
                found |= dict.fromkeys([first, *(f"A{n}" for n in numbers)], str(path.relative_to(ROOT)))
    return found


def test_every_cited_section_of_the_specification_is_there():
    page = (DOCS / "SPEC.md").read_text(encoding="utf-8")
    there = set(re.findall(r"^#+ (\d+(?:\.\d+)?) ", page, re.MULTILINE)) | set(re.findall(r"</a>(A\d+) \|", page))
    found = cited()
    assert len(found) > 15
    assert not {name: file for name, file in found.items() if name not in there}


@pytest.fixture(scope="module")
def made_pages() -> pages.Pages:
    """What is generated as the site is built."""
    return pages.build()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_place_on_a_page_leads_to_one(page):
    for target, place in re.findall(r"\]\(([^)#:\s]+\.md)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target).read_text(encoding="utf-8")
        headings = {prose.slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert place in headings | set(re.findall(r'<a id="([^"]+)">', text)), f"{target}#{place}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_sentence_holds_at_most_three_numbers(page):
    prose_alone = re.sub(r"(?ms)^```.*?^```$|^\|[^\n]*$|`[^`]*`|\]\([^)]*\)", "", page.read_text(encoding="utf-8"))
    for sentence in re.split(r"(?<=[.:;!?])\s+|\n\n|\n(?=[-#\d])", prose_alone):
        assert len(re.findall(r"(?<![\w.])[−+-]?\d[\d,.]*", sentence)) <= 3, sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(page, made_pages):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if (
            made := re.search(r"(?:^|\.\./)((?:reference|adding|notebooks)/.*)", target)
        ) and page != ROOT / "README.md":
            assert made[1] in made_pages, target
        else:
            assert (page.parent / target).exists(), target


def test_readme_has_at_most_a_thousand_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def sourced() -> list[tuple[str, str, list[str]]]:
    """README's table: kind, name and papers of each plugin that is another's."""
    kinds, found = {"benchmarks": "benchmark", "diagnostics": "diagnostic", "tuners": "tuner"}, []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        papers = re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", line)
        files = re.findall(r"\]\((?:plugins|eval_suite)/(\w+)/(\w+)(?:/__init__)?\.py\)", line)
        found += [(kinds.get(room, room), name, papers) for room, name in files if papers]
    return found


def test_list_tells_a_paper_that_the_readme_has(capsys):
    assert len(sourced()) > 15
    for kind, name, papers in sourced():
        assert cli.main(["list", kind, name]) == 0
        told = capsys.readouterr().out
        assert any(paper in told for paper in papers), f"{kind} {name}"


FENCED = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
INLINE = re.compile(r"(?<!`)`((?:bash launch\.sh|steering-factory) [^`\n]+)`(?!`)")
PLACEHOLDER = re.compile(r"[A-Z]+|hosts|hosts\.txt")
COMMAND = re.compile(r"(?:bash launch\.sh|steering-factory) (.*)")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language that the page does not mark as needing what a test has not."""
    found = FENCED.finditer(page.read_text(encoding="utf-8"))
    return [m["code"] for m in found if m["language"] == language and not m["marker"]]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.name)
def test_python_runs_as_printed(page, tmp_path, monkeypatch, capsys):
    """All of a page, one block after the other, as a reader would type it."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "example"}
    try:
        for code in blocks(page, "python"):
            exec(compile(code, str(page), "exec"), names)  # noqa: S102  the project's own documents
    finally:
        for entry in registry.available():
            if entry.origin == str(page):
                registry.forget(entry.kind, entry.name)


def commands() -> list[tuple[str, str]]:
    """Every command of the project in a document, marked blocks included, with the page it stands on."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for m in FENCED.finditer(text) if m["language"] == "bash" for line in m["code"].splitlines()]
        for line in [*lines, *INLINE.findall(FENCED.sub("", text))]:
            if match := COMMAND.match(line.partition(" #")[0].strip()):
                words = match[1] if line in lines else re.sub(r"[\[\]…]", "", match[1])
                found.setdefault(words.strip(), page.name)
    return sorted((words, page) for words, page in found.items() if words)


class Parsed(BaseException):
    """Raised in place of a command's work, once its arguments are read."""


@pytest.fixture
def parsing(monkeypatch):
    """The command line as far as its arguments: what it parsed comes back as ``Parsed``."""
    for name in ("parse_args", "parse_intermixed_args"):
        own = getattr(argparse.ArgumentParser, name)

        def stopped(parser, *given, own=own, **more):
            raise Parsed(own(parser, *given, **more))

        monkeypatch.setattr(argparse.ArgumentParser, name, stopped)


@pytest.mark.parametrize(("line", "page"), commands(), ids=lambda value: value[:60])
def test_a_printed_command_is_one(line, page, parsing, capsys):
    words = shlex.split(line)
    if words[0] == "test":
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/"))
        return
    if PLACEHOLDER.fullmatch(words[0]):
        words = ["recipes/amps_tiny.yaml", *words[1:]]
    with pytest.raises(Parsed) as parsed:
        assert cli.main(words) == 0, capsys.readouterr().err
    [args] = parsed.value.args
    given = vars(args)
    recipe = given.get("recipe")
    if recipe and not PLACEHOLDER.fullmatch(recipe) and (words[0] != "show" or recipe.endswith(".yaml")):
        overrides = [each for each in given["overrides"] if not PLACEHOLDER.fullmatch(each)]
        assert read_recipe(cli.find_recipe(recipe), overrides).name
    if (kind := given.get("kind")) and not PLACEHOLDER.fullmatch(kind):
        assert kind in registry.KINDS
    if (model := given.get("model")) and not PLACEHOLDER.fullmatch(model):
        assert read_card(model)


def test_other_commands_are_modules_that_are_there():
    named = {name for page in PAGES for name in re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8"))}
    assert named and not [name for name in named if importlib.util.find_spec(name) is None]


def test_every_name_of_the_engine_that_its_map_gives_is_there():
    text = FENCED.sub("", (DOCS / "engine.md").read_text(encoding="utf-8"))
    named = set(re.findall(r"`((?:factory|eval_suite|plugins)\.[\w.]+)`", text))
    assert len(named) > 15 and not [name for name in named if locate(name) is None]


def test_printed_yaml_has_a_recipes_keys():
    printed = [code for page in PAGES for code in blocks(page, "yaml")]
    keys = {key for code in printed for key in re.findall(r"^(\w+):", code, re.MULTILINE)}
    assert keys and keys <= set(Recipe.model_fields)
    assert all(isinstance(yaml.safe_load(code), dict) for code in printed)


def test_every_page_of_the_contents_is_there_and_every_page_is_in_the_contents():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = {name for name in re.findall(r"([\w./-]+\.md)$", text, re.MULTILINE) if not name.startswith("reference/")}
    made = {str(notebook.relative_to(DOCS).with_suffix(".md")) for notebook in DOCS.rglob("*.ipynb")}
    assert listed == made | {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_no_prose_of_a_docstring_stands_in_a_block_of_code(made_pages):
    code = {
        name: [m["code"] for m in FENCED.finditer(page) if m["language"] == "text"] for name, page in made_pages.items()
    }
    assert sum(map(len, code.values())) > 20
    assert not [name for name, blocks in code.items() if any("``" in block for block in blocks)]


@pytest.mark.parametrize("entry", pages.in_tree(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_plugin_has_a_page_with_its_parameters_and_source(entry, made_pages):
    page, params = made_pages[f"reference/{entry.kind}/{entry.name}.md"], registry.lookup(entry.kind, entry.name).Params
    assert page.startswith(f"# {entry.name}\n") and "## Source" in page
    assert all(f"| `{name}` |" in page for name in params.model_fields)
    rows = [line for line in page.partition("## Source")[0].splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def models() -> dict[type[BaseModel], str]:
    """Every model of parameters and of a recipe's keys, with where it is."""
    found: dict[type[BaseModel], str] = {}
    todo = [(Recipe, "recipe")]
    todo += [(registry.lookup(each.kind, each.name).Params, f"{each.kind} {each.name}") for each in pages.in_tree()]
    while todo:
        model, place = todo.pop()
        if model not in found:
            found[model] = place
            todo += [(inner, f"{place} {name}") for name, inner in fields.nested(model)]
    return found


def test_every_parameter_and_every_recipe_key_says_what_it_means():
    silent = {
        f"{place}: {name}"
        for model, place in models().items()
        for name in model.model_fields
        if not fields.meaning(name, model)
    }
    assert not silent


def test_a_plugins_page_shows_its_equations_what_is_ours_and_its_recipes(made_pages):
    page = made_pages["reference/steering/amps.md"].partition("## Source")[0]
    assert "```text\ns = 1 + beta" in page and "[A1](../../SPEC.md#a1)" in page
    assert '!!! note "What is ours"' in page and "`clip` (ours) bounds s" in page
    assert "- `recipes/amps_tiny.yaml`" in page


def test_the_recipes_reference_has_every_key_and_the_templates_every_kind(made_pages):
    page = made_pages["reference/recipe.md"]
    for model in (Recipe, *(inner for _, inner in fields.nested(Recipe))):
        assert all(f"| `{name}` |" in page for name in model.model_fields)
    assert {f"adding/{kind}.md" for kind in registry.KINDS} < set(made_pages)


def test_a_key_is_told_with_its_type_default_bounds_and_meaning():
    class Inner(registry.Params):
        """``depth`` of the net, in layers."""

        depth: PositiveInt = 2

    class Outer(registry.Params):
        """``share`` of the samples; ``how`` they are drawn. ``net``: what learns."""

        share: float = Field(0.5, gt=0, le=1)
        how: Literal["evenly", "at_random"] = "evenly"
        rates: tuple[float, ...] | None = None
        net: Inner = Inner()

    written = fields.tables(Outer, "")
    assert "| `share` | number > 0 and ≤ 1 | `0.5` | `share` of the samples |" in written
    assert "| `how` | `evenly`, `at_random` | `evenly` | `how` they are drawn |" in written
    assert "| `rates` | list of numbers, or null | `null` |  |" in written
    assert "| `depth` | whole number > 0 | `2` | `depth` of the net, in layers |" in written


def test_a_docstring_keeps_its_formulas_and_its_words():
    told = prose.markdown("A *b* of SPEC A8.\n\n    x_1 = a * b\n\n``rho``: see arXiv 2510.10205 | here.", "../")
    assert "A \\*b\\* of [SPEC A8](../SPEC.md#a8)." in told
    assert "```text\nx_1 = a * b\n```" in told
    assert "`rho`: see [arXiv 2510.10205](https://arxiv.org/abs/2510.10205) \\| here." in told
    assert prose.markdown("SPEC.md 1.4", "").endswith("(SPEC.md#14-choices)")
    assert prose.text("(A4), A100, A.7", "") == "([A4](SPEC.md#a4)), A100, A.7"
    assert prose.cell(prose.text("u = v/|v|, `a|b`", "")) == r"u = v/\|v\|, `a\|b`"


def test_the_pictures_show_a_sample_that_steering_turns(tmp_path):
    benchmark = registry.lookup("benchmark", "scenes")
    data = {"type": "scenes", "scoring": "open_ended", "per_task": {"train": 1, "dev": 1, "test": 3}}
    resolved = read_node("benchmark", data)
    samples = [s for s in benchmark(resolved.params).samples("test") if s.task == "color"]
    results = synthetic()[0]
    results["run"] = {**results.get("run", {}), "unsteered": "none", "reference": "l2s"}
    (tmp_path / "predictions").mkdir()
    told = [(samples[1].id, "none", "text"), (samples[1].id, "l2s", "vision"), (samples[0].id, "none", "text")]
    rows = [
        {"sample": s, "method": m, "verdicts": [v], "answers": [f"{m}!"], "split": "test", "direction": "vision"}
        for s, m, v in told
    ]
    (tmp_path / "predictions" / "all.jsonl").write_text("".join(json.dumps({**r, "chosen": True}) + "\n" for r in rows))
    text = dump(Recipe.model_validate({"name": "x", "model": {"zoo": "tiny"}, "data": data, "steering": ["none"]}))
    (tmp_path / "resolved.yaml").write_text(text)
    run = factory.Run(tmp_path, results)
    sample, before, after = pictures.turned(run)
    assert (sample.id, before, after) == (samples[1].id, "none!", "l2s!")
    assert all(
        svg.lstrip().startswith(b"<?xml") for svg in (pictures.idea(sample, before, after), pictures.strength(results))
    )
    with pytest.raises(UserError, match="no counting sample follows"):
        pictures.turned(run, "counting")


def test_the_sheet_of_scenes_on_the_pages_has_the_colours_that_are_drawn():
    kept, drawn = (
        np.asarray(picture.convert("RGB"), int) for picture in (Image.open(DOCS / "scenes.png"), draw_sheet())
    )
    assert kept.shape == drawn.shape
    assert (np.abs(kept - drawn).max(-1) < 8).mean() > 0.98, "python -m eval_suite.site.pictures RUN draws it anew"

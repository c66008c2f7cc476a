"""The house's shape: imports run one way and in no circle, and every file stays small enough to read."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from factory.registry import available

ROOT = Path(__file__).parents[1]
ROOMS = ("factory", "plugins", "eval_suite", "model_zoo")
FILES = sorted(path for room in (*ROOMS, "tests") for path in (ROOT / room).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
    if path.relative_to(ROOT).parts[0] in ROOMS
}


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_statements(tree: ast.AST):
    """Import nodes, those inside functions too, those for type checkers alone not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not is_for_type_checkers(node):
            yield from import_statements(node)


@cache
def imports(module: str) -> set[str]:
    """The project's modules that ``module`` imports."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in import_statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= (names & set(MODULES)) | ({source} if names - set(MODULES) else set())
    return found & set(MODULES)


def unit(module: str) -> str:
    """The plugin that a module belongs to: one file, or one folder, of a plugin package."""
    return ".".join(module.split(".")[:3])


def is_plugin(module: str) -> bool:
    return module.startswith("plugins.") and module.count(".") >= 2


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in ("factory", "model_zoo")])
def test_the_factory_imports_no_plugin_and_no_benchmark(module):
    assert not [name for name in imports(module) if name.split(".")[0] in ("plugins", "eval_suite")]


def is_shared(name: str, module: str) -> bool:
    """Whether ``name`` is what several plugins of the kind of ``module`` share of one paper: a file named _PAPER."""
    kind, _, own = name.rpartition(".")
    return own.startswith("_") and module.startswith(f"{kind}.")


@pytest.mark.parametrize("module", [name for name in MODULES if is_plugin(name)])
def test_a_plugin_imports_the_factory_and_what_its_paper_says(module):
    own = [name for name in imports(module) if not name.startswith("factory") and unit(name) != unit(module)]
    outside = [name for name in own if not is_shared(name, module)]
    assert not outside, f"{module} imports {outside}; what plugins share belongs in factory, or in a paper's _FILE"


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] == "eval_suite"])
def test_the_evaluation_suite_imports_no_plugin(module):
    assert not [name for name in imports(module) if name.startswith("plugins")]


def test_no_import_runs_in_a_circle_not_even_one_inside_a_function():
    graph = {module: imports(module) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(reversed(error.args[1]))}")


NAMED = {  # words of the engine that are also a plugin's name: in which files, and what they say there
    ("none", "a role of tokens, or a choice of nothing"): (
        *("api.py", "run/plan/estimate.py", "steer/places.py", "steer/where.py", "steer/regressor.py"),
        *("instruments/instructed.py", "run/labels.py"),
    ),
    ("none", "what is printed of an empty list"): (
        *("corpus/conversation.py", "recipe/schema.py", "registry.py", "run/plan/tables.py"),
    ),
    ("none", "an option of a library"): ("run/tuners/contest_summary.py", "train/scratch/trainer.py", "train/loop.py"),
    ("instruction", "a role of tokens"): ("instruments/pathways.py", "instruments/heads.py", "steer/where.py"),
    ("instruction", "a key of alpaca records"): ("corpus/layouts.py",),
    ("heads", "a site"): ("steer/block.py", "instruments/heads.py", "steer/where.py"),
    ("connector", "a part of a model, or its kind of plugins"): (
        *("model/compose.py", "new_plugin/__init__.py", "recipe/sections/model.py", "registry.py", "model/facts.py"),
        *("describe.py", "model/family.py"),
        *("run/plan/practice.py", "run/tuners/scratch.py", "tune/base.py"),
    ),
    ("connector", "a recipe key: what tune.beside and tune.tuner are where a recipe leaves them out"): (
        "recipe/sections/training.py",
    ),
    ("mc2", "a recipe key: the wording of collect.instructions"): ("data/instructions.py",),
    ("full", "an option of a library"): ("model/compose.py",),
    ("full", "what evaluate.curve may be"): ("recipe/sections/steering.py", "run/plan/rehearse.py"),
    ("scienceqa", "a converter's own name"): ("corpus/converters/scienceqa.py",),
    ("vizwiz", "a converter's own name"): ("corpus/converters/vizwiz.py",),
}


@cache
def names_of_plugins() -> set[str]:
    kinds = ("steering", "diagnostic", "benchmark", "scorer", "tuner")
    return {entry.name for kind in kinds for entry in available(kind)}


def plugins_named(source: str) -> set[str]:
    """String constants of a module that are the name of a method, a diagnostic, a benchmark, a scorer or a tuner."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)} & names_of_plugins()


def test_the_engine_names_no_plugin():
    apart = ("factory/model/families/", "factory/components/")
    found = {
        (name, file.removeprefix("factory/"))
        for path in FILES
        if (file := path.relative_to(ROOT).as_posix()).startswith("factory/") and not file.startswith(apart)
        for name in plugins_named(path.read_text(encoding="utf-8"))
    }
    allowed = {(name, file) for (name, _), files in NAMED.items() for file in files}
    assert found == allowed, "a name in the engine, or one in NAMED that is no longer there"
    assert plugins_named("def f(node):\n    'mcr'\n    return node.type == 'l2s' or node.of('none')") >= {"l2s", "mcr"}


FLOORS = (
    {
        "errors",
        "extras",
        "blame",
        "hub",
        "files",
        "plain",
        "terminal",
        "faults",
        "registry",
        "statistics",
        "progress",
        "stopwatch",
        "describe",
        "docstrings",
        "factory",
    },
    {"recipe", "data", "code"},
    {"components", "model", "zoo"},
    {"launch"},
    {"corpus", "tune", "bench", "benchmark"},
    {"diagnose", "steer", "train"},
    {"instruments", "run", "report", "formats"},
    {"api", "cli", "new_plugin"},
)
DOWNSTAIRS = {("model", "tune"): "a model node may name tuned parts, which loading puts in"}


def floor(module: str) -> int:
    room = module.split(".")[1] if "." in module else module
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_a_room_imports_only_from_its_own_floor_and_those_below():
    against = {
        tuple(name.split(".")[1] if "." in name else name for name in (module, other))
        for module in MODULES
        if module.startswith("factory")
        for other in imports(module)
        if other.startswith("factory") and floor(other) > floor(module)
    }
    assert against == set(DOWNSTAIRS)


SHARED = {"load", "save", "check", "dump"}


def test_no_two_public_names_are_alike_in_the_factory():
    homes: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if module.startswith("factory"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                    homes.setdefault(node.name, set()).add(module)
    assert len(homes) > 500
    assert {name: sorted(found) for name, found in homes.items() if len(found) > 1 and name not in SHARED} == {}


def test_no_module_is_exempt_from_the_type_check_and_an_ignored_error_says_why():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert set(settings["files"]) == set(ROOMS) and settings["disallow_untyped_defs"]
    assert not [room for room in ROOMS if f"'{room}" in str([each["module"] for each in settings["overrides"]])]
    lines = [line for path in MODULES.values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "# type: ignore" in line and not re.search(r"ignore\[[a-z-]+\]  # \w", line)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 400, f"split {path.name} by what it does"
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 120], "more than 120 columns"

"""The house's shape: imports run one way and in no circle, and every file stays small enough to read."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400, f"split {path.name} by what it does"

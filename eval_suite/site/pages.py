"""The pages that are generated as the site is built: one a plugin, the recipe's keys, a template a kind, the models."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import BaseModel

from eval_suite.site import fields, notebooks, prose
from factory import new_plugin
from factory.recipe.schema import Recipe
from factory.registry import BASES, KINDS, Entry, available, lookup
from factory.zoo.cards import cards, read_card

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "docs" / "notebooks"
TITLES = {"steering": "Steering methods", "llm": "Language models", "family": "Model families"}
Pages = dict[str, str]
"""Markdown by its path under docs/."""


def build() -> Pages:
    """Every generated page; notebooks as they are written."""
    pages = {"reference/index.md": index(), "reference/recipe.md": recipe_keys(), "reference/models.md": models()}
    pages |= {f"reference/{each.kind}/{each.name}.md": plugin(each) for each in in_tree()}
    pages |= {f"adding/{kind}.md": adding(kind) for kind in KINDS}
    pages |= {f"notebooks/{path.stem}.md": notebooks.page(path, ())[0] for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    return pages


@cache
def in_tree() -> tuple[Entry, ...]:
    """The project's own plugins, by kind."""
    return tuple(entry for entry in available() if entry.origin == "in-tree")


def run_notebooks() -> Pages:
    """The notebooks' pages with what their cells give, and their figures; takes about a minute."""
    paths, pages = sorted(NOTEBOOKS.glob("*.ipynb")), Pages()
    for path, given in zip(paths, notebooks.outputs(paths), strict=True):
        text, figures = notebooks.page(path, given)
        pages |= {f"notebooks/{path.stem}.md": text, **{f"notebooks/{name}": svg for name, svg in figures.items()}}
    return pages


def title(kind: str) -> str:
    """A kind's name as a heading: "Vision encoders"."""
    return TITLES.get(kind, f"{kind.replace('_', ' ').capitalize()}s")


def index() -> str:
    """All plugins in one table a kind."""
    parts = ["# Plugins", "What a recipe can name. `bash launch.sh list` prints the same, yours included."]
    for kind, group in groupby(in_tree(), key=lambda entry: entry.kind):
        parts += [f"## {title(kind)}", f"[How to add one](../adding/{kind}.md)"]
        lines = [f"| [`{e.name}`]({kind}/{e.name}.md) | {prose.cell(prose.text(e.summary, '../'))} |" for e in group]
        parts.append("\n".join(["| name | what it is |", "|:---|:---|", *lines]))
    return "\n\n".join(parts) + "\n"


def plugin(entry: Entry) -> str:
    """A plugin's page: docstrings with their equations, parameters, what is ours, recipes, source."""
    cls, root = lookup(entry.kind, entry.name), "../../"
    module = sys.modules[cls.__module__]
    path = Path(inspect.getfile(cls)).relative_to(ROOT)
    parts = [f"# {entry.name}", f"*{title(entry.kind)}* · `{path}` · [how to add one](../../adding/{entry.kind}.md)"]
    parts += [prose.markdown(cls.__doc__, root), prose.markdown(module.__doc__, root)]
    params = getattr(cls, "Params", None)
    own = prose.ours("\n\n".join(filter(None, (module.__doc__, cls.__doc__, params and params.__doc__))))
    if own:
        parts.append(f'!!! note "What is ours"\n    {prose.text(own, root)}')
    parts += ["## Parameters", *_parameters(params, root)]
    if used := recipes(entry.name):
        parts += ["## Recipes that use it", "\n".join(f"- `{name}`" for name in used)]
    source = prose.fenced(Path(inspect.getfile(cls)).read_text(encoding="utf-8").rstrip(), "python")
    parts += ["## Source", '??? quote "' + str(path) + '"\n' + _indented(source)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _parameters(params: type[BaseModel] | None, root: str) -> Iterator[str]:
    if params is None or not params.model_fields:
        yield "None."
        return
    if any(cls.__doc__ for cls in params.__mro__ if issubclass(cls, BaseModel) and cls.model_fields):
        yield prose.markdown(fields.said(params), root)
    yield fields.tables(params, root)


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in block.split("\n"))


@cache
def _named() -> dict[str, set[str]]:
    """The words of every recipe's values, by its path."""
    found = {}
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        found[str(path.relative_to(ROOT))] = set(_values(yaml.safe_load(path.read_text(encoding="utf-8"))))
    return found


def _values(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _values(value)
    elif isinstance(node, list):
        for value in node:
            yield from _values(value)
    elif isinstance(node, str):
        yield node


def recipes(name: str) -> list[str]:
    """The recipes that name a plugin."""
    return [path for path, words in _named().items() if name in words]


def recipe_keys() -> str:
    """The recipe's reference: every section with its keys."""
    root = "../"
    parts = ["# Recipe", prose.markdown(fields.said(Recipe), root)]
    parts.append(
        "A key is overridden on the command line: `KEY=VALUE`, as in `seed=1` or `steering.2.beta=0.5`, where lists"
        " count from 0. Unknown keys are refused with file, line and column."
    )
    parts.append(fields.table(Recipe, root))
    for name, model in fields.nested(Recipe):
        parts += [f"## `{name}:`", prose.markdown(fields.said(model), root), fields.tables(model, root)]
    return "\n\n".join(part for part in parts if part) + "\n"


def adding(kind: str) -> str:
    """How a plugin of a kind is added: the command, what it writes, what that is made of."""
    name = f"my_{kind}"
    template = Path(new_plugin.__file__).with_name(f"{kind}.py.txt").read_text(encoding="utf-8")
    code = Template(template).substitute(name=name, Name="".join(part.capitalize() for part in name.split("_")))
    parts = [f"# Adding: {kind.replace('_', ' ')}", prose.fenced(f"bash launch.sh new-plugin {kind} {name}", "bash")]
    parts.append(f"writes `{name}.py`, complete and loadable as it is, and says how a recipe uses it:")
    parts.append(prose.fenced(code.rstrip(), "python"))
    if bases := BASES.get(kind):
        parts += ["## What it inherits", "One of these; the methods it may define stand in its docstrings."]
        parts += [f"::: {_defined(base)}\n    options:\n      heading_level: 3" for base in bases]
    parts += [
        "## Plugins of this kind",
        "\n".join(f"- [`{e.name}`](../reference/{kind}/{e.name}.md)" for e in in_tree() if e.kind == kind),
    ]
    return "\n\n".join(parts) + "\n"


def _defined(base: str) -> str:
    """Where a class that is imported from ``base`` is defined."""
    package, _, name = base.rpartition(".")
    cls = getattr(__import__(package, fromlist=[name]), name)
    return f"{cls.__module__}.{cls.__qualname__}"


def models() -> str:
    """The zoo: what each card knows of its model."""
    lines = ["| card | model | parameters | layer |", "|:---|:---|---:|---:|"]
    for name in cards():
        card = read_card(name)
        size = f"{card.parameters / 1e9:.2f} B" if card.parameters else ""
        place = f"`{card.hub}`" if card.hub else "in the project"
        about = prose.cell(f"{prose.text(card.about, '../')} {place} · {prose.text(card.licence, '../')}")
        lines.append(f"| `{name}` | {about} | {size} | {'' if card.layer is None else card.layer} |")
    told = "`bash launch.sh fetch` prints the same; `model: {zoo: NAME}` names one in a recipe."
    return "\n\n".join(["# Models of the zoo", told, "\n".join(lines)]) + "\n"

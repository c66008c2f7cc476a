"""A plugin file to start from: complete, loadable as it is, and used without an edit anywhere else."""

from __future__ import annotations

import keyword
from pathlib import Path

from factory.errors import UserError
from factory.registry import KINDS, available

_STEERING = '''\
"""{name}: what the method does, in one line."""

from torch import Tensor

from factory.registry import Params, register
from factory.steer import Context, States, Steerer


class {cls}Params(Params):
    """Every field is a key of the recipe's node, checked when the recipe is read."""

    scale: float = 1.0


@register("steering", "{name}")
class {cls}(Steerer):
    """The line that a listing shows."""

    Params = {cls}Params

    def fit(self, states: States) -> dict[str, Tensor]:
        """Named tensors, learnt from the training prompts' states [n, d] and kept in the artefact."""
        return {{"v": (states.toward - states.away).mean(0)}}

    def delta(self, h: Tensor, state: dict[str, Tensor], ctx: Context) -> Tensor:
        """The vectors [rows, d] that are added at strength 1 to the states ``h`` [rows, d]; pure."""
        return self.params.scale * state["v"].expand_as(h)
'''
_ANY = '''\
"""{name}: what it does, in one line."""

from factory.registry import Params, register


class {cls}Params(Params):
    """Every field is a key of the recipe's node, checked when the recipe is read."""


@register("{kind}", "{name}")
class {cls}:
    """The line that a listing shows. What a {kind} plugin must define, those in {package} show."""

    Params = {cls}Params

    def __init__(self, params: {cls}Params) -> None:
        self.params = params
'''
_RECIPE_NODES = {
    "steering": ("steering", "[{name}]"),
    "benchmark": ("data", "{name}"),
    "diagnostic": ("diagnostic", "{name}"),
}


def write_plugin(kind: str, name: str, folder: Path) -> str:
    """Write ``folder/name.py`` and return how to use it.

    Raises UserError where the name is taken or unfit, or the file exists.
    """
    if any(entry.name == name for entry in available(kind)):
        raise UserError(f"the {kind} plugin '{name}' exists already; choose another name")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a plugin: it should be a Python name, as in my_method")
    path = folder / f"{name}.py"
    text = (_STEERING if kind == "steering" else _ANY).format(
        name=name, kind=kind, cls=_class_name(name), package=KINDS[kind].replace(".", "/")
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as fault:
        raise UserError(f"{path} exists already; choose another name, or move that file") from fault
    except OSError as fault:
        raise UserError(f"{path} cannot be written: {fault.strerror}") from fault
    return _how_to_use(kind, name, path)


def _class_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "Plugin"


def _how_to_use(kind: str, name: str, path: Path) -> str:
    lines = [f"wrote {path}", f"in a recipe:   plugins: [{path}]"]
    if kind in _RECIPE_NODES:
        key, node = _RECIPE_NODES[kind]
        lines.append(f"               {key}: {node.format(name=name)}")
    lines.append('in a package:  [project.entry-points."steering_factory.plugins"]   # in its pyproject.toml')
    lines.append(f'               {name} = "my_package.{name}"')
    return "\n".join(lines)

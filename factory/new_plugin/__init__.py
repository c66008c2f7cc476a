"""A plugin file to start from: complete, loadable as it is, and used without an edit anywhere else."""

from __future__ import annotations

import keyword
from pathlib import Path
from string import Template

from factory.errors import UserError
from factory.registry import available

_IN_A_RECIPE = {
    "steering": "steering: [{name}]",
    "diagnostic": "diagnostic: {name}",
    "tuner": "tune: {{tuner: {name}, data: {{lessons: scenes, take: 800}}}}",
    "benchmark": "data: {name}",
    "report": "report: {{also: [{name}]}}",
    "family": "model: {{path: FOLDER}}   # of a model whose configuration the family names",
    "vision_encoder": "model: {{compose: {{vision_encoder: {{type: {name}, source: FOLDER}}, connector: …, llm: …}}}}",
    "connector": "model: {{compose: {{vision_encoder: …, connector: {name}, llm: …}}}}",
    "llm": "model: {{compose: {{vision_encoder: …, connector: …, llm: {{type: {name}, source: FOLDER}}}}}}",
}
_ELSEWHERE = {
    "scorer": 'in Python:     lookup("scorer", "{name}").score(texts, references)   # after load_plugins(["{path}"])',
    "command": "to run:        steering-factory {path} RUN",
    "format": "to run:        steering-factory export ARTEFACT TO {path}",
    "converter": "to run:        steering-factory convert {path} FOLDER OUT.jsonl",
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
    template = Path(__file__).with_name(f"{kind}.py.txt").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(Template(template).substitute(name=name, Name=_class_name(name)))
    except FileExistsError as fault:
        raise UserError(f"{path} exists already; choose another name, or move that file") from fault
    except OSError as fault:
        raise UserError(f"{path} cannot be written: {fault.strerror}") from fault
    return _how_to_use(kind, name, path)


def _class_name(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) or "Plugin"


def _how_to_use(kind: str, name: str, path: Path) -> str:
    lines = [f"wrote {path}"]
    if kind in _IN_A_RECIPE:
        lines += [f"in a recipe:   plugins: [{path}]", f"               {_IN_A_RECIPE[kind].format(name=name)}"]
    else:
        lines.append(_ELSEWHERE[kind].format(name=name, path=path))
    lines.append('in a package:  [project.entry-points."steering_factory.plugins"]   # in its pyproject.toml')
    lines.append(f'               {name} = "my_package.{name}"')
    return "\n".join(lines)

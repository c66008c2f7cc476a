"""Whose a run folder is: the recipe whose path or text its run.json has, once anything was computed in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError

LOCK, DISCARDED = ".lock", ".discarded-"
CHECK = "check"  # the stage that looks at samples before any work is done
OWN_FILES = {"run.json", "recipe.yaml", "resolved.yaml", "environment.json", "events.jsonl", LOCK}


def check_owner(root: Path, name: str, recipe_path: Path, recipe_text: str) -> None:
    """Raises `UserError` where a run of this recipe cannot have the folder `root/name`, whoever is at work in it."""
    path = (Path(root) / plain_name(name, "run name")).resolve()
    if path.exists():
        refuse_stranger(path)
        refuse_other_recipe(path, identity(path, recipe_path, recipe_text))


def identity(folder: Path, recipe_path: Path, recipe_text: str) -> dict[str, Any]:
    """What run.json says of the recipe; its path is relative, so that a project moved as a whole still owns its
    runs.
    """
    recipe = os.path.relpath(recipe_path.resolve(), folder)
    return {"schema": 1, "recipe": recipe, "recipe_sha256": files.digest_bytes(recipe_text.encode())}


def refuse_stranger(folder: Path) -> None:
    """Raises `UserError` for a folder that holds something and is no run."""
    with files.explained(folder, "read"):
        entries = [entry.name for entry in folder.iterdir()]
    strange = any(name != LOCK and not name.endswith(files.PARTIAL) for name in entries)
    if strange and not (folder / "run.json").exists():
        raise UserError(f"{folder}: this folder is not empty and is no run. Add name=OTHER to the command.")


def refuse_other_recipe(folder: Path, mine: Mapping[str, Any]) -> None:
    """Raises `UserError` for a run of another recipe, unless that died before it had computed anything."""
    stored = state(folder / "run.json")
    if stored is not None and not all(isinstance(stored.get(key), str) for key in ("recipe", "recipe_sha256")):
        raise UserError(f"{folder / 'run.json'}: not a run's. Move it away, or add name=OTHER to the command.")
    if stored is None or any(stored[key] == mine[key] for key in ("recipe", "recipe_sha256")):
        return
    if holds_work(folder):
        other = os.path.normpath(folder / stored["recipe"])
        raise UserError(f"{folder}: this run belongs to another recipe, {other}. Add name=OTHER to the command.")


def holds_work(folder: Path) -> bool:
    """Whether anything was computed in a run folder, beyond that the samples were looked at."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return any(
        path.name != "inputs.json" if len(path.parts) > 1 else path.name not in OWN_FILES
        for path in found
        if path.parts[0] != CHECK and not path.parts[0].startswith(DISCARDED)
    )


def plain_name(name: str, what: str) -> str:
    """A name that is one folder's. Raises `UserError` for any other."""
    if not name or name.startswith(".") or Path(name).name != name or "\0" in name:
        raise UserError(f"{what} {name!r}: must be a plain folder name, without / and with no dot in front.")
    return name


def state(path: Path) -> dict[str, Any] | None:
    """A state file's content, or None where it is missing or damaged: both mean that the work was not done.

    Raises `UserError` where it cannot be read.
    """
    try:
        with files.explained(path, "read", but=(FileNotFoundError,)):
            content = files.decode_json(files.plain_bytes(path))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None

"""Getting a model's files from the hub, or its parts from the Python package index, and saying which models of the zoo
are here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from factory.errors import UserError, did_you_mean
from factory.hub import hub_faults
from factory.model.compose import parts_of
from factory.model.source import find
from factory.recipe.schema import ComposeSpec, ModelSpec
from factory.terminal import Console
from factory.zoo.cards import Card, cards, parts, read_card, read_part
from factory.zoo.packages import cache_folder, fetch_part, is_fetched, part_folder

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
SPARE = 1.05  # room on the disk, over the weights' own size


def fetch(name: str, folder: Path | None = None, revision: str | None = None) -> Path:
    """Download a model, a zoo card's name or a hub id, into the hub's cache or into ``folder``; returns where it lies.

    A part of the zoo, or a model composed of parts, comes from the Python package index into the user's cache. A hub
    download that broke off goes on where it stopped. Raises ``UserError`` in one line for an unknown name, no network,
    no such repository or revision, a licence that has not been accepted, and a full disk.
    """
    card = read_card(name) if name in cards() else None
    composed, whole = (card.compose, card.part) if card else (None, None)
    if name in parts() or composed or whole:
        if folder or revision:
            raise UserError(
                f"{name}: comes from the Python package index in the version on its card, into {cache_folder()} (set"
                " STEERING_FACTORY_CACHE for another place)"
            )
        if name in parts() or whole:
            return fetch_part(whole or name)
        return [fetch_part(part) for part in parts_of(ComposeSpec.model_validate(composed))][-1].parent
    if card and card.folder:
        raise UserError(f"model {name} ships with the project; there is nothing to fetch")
    repo = (card and card.hub) or name
    if "/" not in repo:
        raise UserError(
            f"no model '{name}' in the zoo.{did_you_mean(name, [*cards(), *parts()])} Give one of"
            f" {', '.join([*cards(), *parts()])}, or a hub id, OWNER/NAME"
        )
    where = folder or Path(constants.HF_HUB_CACHE)
    _check_room(name, card, where)
    revision = revision or (card.revision if card else None)
    with hub_faults(repo, "fetch", "copy the files to a folder: model.path=FOLDER"):
        there = Path(
            snapshot_download(
                repo, revision=revision, local_dir=folder, cache_dir=constants.HF_HUB_CACHE, allow_patterns=list(FILES)
            )
        )
    find(ModelSpec(path=str(there)))
    return there


def _check_room(name: str, card: Card | None, where: Path) -> None:
    needed = card.download_bytes if card else None
    there = next(path for path in (where.absolute(), *where.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed and free < SPARE * needed:
        raise UserError(
            f"model {name} needs about {needed / 1e9:.1f} GB; {there} has {free / 1e9:.1f} GB free. Set HF_HOME, or"
            " give another folder: --to FOLDER"
        )


def show_zoo(console: Console) -> None:
    """Print every model of the zoo: where it comes from, how large it is, and whether its weights are here."""
    console.print(
        "model, hub id, GB of weights in bfloat16, 8 bit and 4 bit, licence; whether they are here",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    for name in cards():
        card = read_card(name)
        try:
            source = find(ModelSpec(zoo=name))
            absent = (
                [part for part in parts_of(ComposeSpec.model_validate(card.compose)) if not is_fetched(read_part(part))]
                if card.compose
                else []
            )
            here = (
                f"without its parts {' and '.join(absent)}" if absent else f"here: {source.folder or 'its parts are'}"
            )
        except UserError as error:
            here = "partly here" if "not finished" in str(error) else "not here"
        n = card.parameters or 0
        sizes = " / ".join(f"{n * each / 1e9:.1f}" for each in (2, 1, 0.5)) if n else "shipped"
        console.print(
            f"{name:<26}{card.hub or '':<44}{sizes:<20}{card.licence}; {here}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        "\npart, package of the Python index, MB to fetch, licence; whether it is here",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )
    for name in parts():
        part = read_part(name)
        here = f"here: {part_folder(part)}" if is_fetched(part) else "not here"
        wheel = f"{part.package.name} {part.package.version}"
        console.print(
            f"{name:<26}{wheel:<44}{part.package.bytes / 1e6:<20.0f}{part.licence}; {here}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

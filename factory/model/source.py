"""Where a model is, found without reading weights: a folder, the hub's cache, or a card that knows its sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from factory.blame import blaming
from factory.components.source import is_planned
from factory.errors import UserError, did_you_mean
from factory.model.columns import columnless
from factory.model.compose import account_parts, composed_config
from factory.model.decoding import left_out
from factory.model.family import Family
from factory.model.stored import Tensors, account, cached, held, in_one_line, pointer, weight_files
from factory.recipe.explain import told_in_one_line
from factory.recipe.schema import ComposeSpec, ModelSpec
from factory.registry import available, lookup
from factory.zoo.cards import Card, card_folder, cards, command, read_card, read_part, shipped
from factory.zoo.packages import is_fetched, part_folder, unfetched


def spec_named(name: str, **options: Any) -> ModelSpec:
    """The model that a word names: a card of the zoo, a folder, or a hub id OWNER/NAME, with the ``options`` of a
    recipe's ``model:``. Raises ``UserError`` for a word that is none of these, and for options that are wrong.
    """
    if name in cards():
        where = "zoo"
    elif Path(name).expanduser().is_dir():
        where = "path"
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")):
        where = "hub"
    else:
        near = did_you_mean(name, cards())
        raise UserError(f"'{name}' is no card of the zoo, no folder and no hub id OWNER/NAME.{near}")
    with told_in_one_line(f"model '{name}'", ModelSpec):
        return ModelSpec.model_validate({where: name, **options})


@dataclass(frozen=True)
class FoundModel:
    """A model that was found but not loaded: its folder (None where it is composed), configuration, family, the bytes
    of its weights, its ``card`` where the weights are those that the card describes, and ``notes`` of what has to be
    known of it beside the numbers.
    """

    folder: Path | None
    config: Any
    family: Family
    card: Card | None
    bytes: int
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Path:
        """The folder of a model that is read from one."""
        assert self.folder is not None, "a composed model has no folder, and is put together instead"
        return self.folder


@dataclass(frozen=True)
class Wanted:
    """The model that a recipe's node asks for, to be handed on: what the node tells is looked up once, when it is first
    asked for, and each question raises what the function of the same meaning here does.

    ``asked`` is the node as it is written. Sizes that stand in for parts in a plan are kept apart from the true ones.
    """

    asked: ModelSpec
    _seen: dict[tuple[Any, bool], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, model: ModelSpec | Wanted) -> Wanted:
        """The model of a recipe's node; a model that was handed on is itself."""
        return model if isinstance(model, Wanted) else cls(model)

    @cached_property
    def card(self) -> Card | None:
        """The card that is named, whether or not it describes the weights that are there (``card_for``)."""
        with self.blamed():
            return read_card(self.asked.zoo) if self.asked.zoo else None

    @cached_property
    def spec(self) -> ModelSpec:
        """The node spelt out."""
        with self.blamed():
            return spelt_out(self.asked)

    @cached_property
    def folder(self) -> Path | None:
        """The folder that the node names, whether or not it exists; None for a hub model that is not in the cache."""
        if self.asked.path:
            return Path(self.asked.path).expanduser()
        if self.card and self.card.folder:
            return card_folder(self.card)
        if part := self.part:
            return part_folder(read_part(part))
        repo, revision = _hub_id(self)
        return cached(repo, revision) if repo else None

    @property
    def part(self) -> str | None:
        """The part of the zoo that is the whole model, where its card says so and the node names no other weights."""
        own = self.asked.path or self.asked.hub or self.asked.compose
        return self.card.part if self.card and not own else None

    @property
    def unfetched(self) -> str | None:
        """What is said where the model is a part of the zoo that is not here yet, and that a run would fetch."""
        return unfetched(self.part) if self.part and not is_fetched(read_part(self.part)) else None

    @property
    def config(self) -> Any:
        """The configuration that the model's files, or the parts that it is composed of, tell."""
        return self._once(_config)

    @property
    def source(self) -> FoundModel:
        """What ``find`` gives."""
        return self._once(_find)

    def _once(self, look: Callable[[Wanted], Any]) -> Any:
        key = look, is_planned() and self.spec.compose is not None
        if key not in self._seen:
            with self.blamed():
                self._seen[key] = look(self)
        return self._seen[key]

    def blamed(self) -> AbstractContextManager[None]:
        """What lets a mistake inside be told with the place of the key that names the model."""
        named = (key for key in ("compose", "path", "hub", "zoo") if getattr(self.asked, key))
        return blaming(self.asked, *islice(named, 1))

    def parts_came(self) -> None:
        """Parts may lie here that were not here before: what was told of the model is looked up again."""
        self._seen.clear()


def spelt_out(spec: ModelSpec) -> ModelSpec:
    """A model node whose zoo card names parts, with those parts and what was trained on them; any other as it is."""
    card = read_card(spec.zoo) if spec.zoo else None
    if card is None or card.compose is None or spec.compose or spec.path or spec.hub:
        return spec
    trained = tuple(str(shipped(folder)) for folder in card.tuned)
    return spec.model_copy(update={"compose": ComposeSpec.model_validate(card.compose), "tuned": trained + spec.tuned})


def find(model: ModelSpec | Wanted) -> FoundModel:
    """Locate a model and check its files without loading weights.

    Raises ``UserError`` for weights that are not on this machine (with what they are and the command that gets them), a
    missing folder or file, an unfinished download, an unknown family, or a damaged safetensors file.
    """
    return Wanted.of(model).source


def _find(model: Wanted) -> FoundModel:
    for named in model.spec.tuned:
        tuned_folder(named)
    if model.spec.compose:
        config = model.config
        account_parts(model.spec.compose)
        return FoundModel(None, config, family_of(config), card_for(model, config), 0)
    folder = model.folder
    if folder is None:
        raise UserError(_absent(model))
    if model.unfetched:
        raise UserError(model.unfetched)
    if not folder.is_dir():
        tried = getattr(model.asked.path, "tried", ())
        looked = f"; looked for {' and '.join(map(os.path.abspath, tried))}" if len(tried) > 1 else ""
        raise UserError(
            f"model folder {folder}: not found{looked}. Give the folder that holds config.json: model.path=FOLDER"
        )
    config = model.config
    family = family_of(config)
    tensors = _weights(model, folder, config)
    account(family.hf_class(), config, tensors, f"model folder {folder}")
    card = card_for(model, config)
    unlike = [] if card or model.card is None else [_unlike(model.card.name, config, folder)]
    return FoundModel(folder, config, family, card, tensors.bytes, (*unlike, *left_out(folder), *family.notes(folder)))


def _weights(model: Wanted, folder: Path, config: Any) -> Tensors:
    """What a folder's weight files hold by their headers."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"model folder {folder}: holds a PEFT adapter (adapter_config.json), which would change its weights; merge"
            " it into them, or move it away"
        )
    files = weight_files(folder, getattr(config, "transformers_weights", None))
    if lacking := [path.name for path in files if not path.is_file()]:
        raise UserError(_incomplete(model, folder, lacking, len(files)))
    return held(files)


def known(model: ModelSpec | Wanted) -> tuple[Any, Card | None]:
    """A model's configuration and card as far as they can be known without its weights: from its folder, else from its
    card.

    Raises ``UserError`` where neither tells.
    """
    model = Wanted.of(model)
    folder = None if model.spec.compose else model.folder
    if model.spec.compose or (folder is not None and (folder / "config.json").is_file()):
        return model.config, card_for(model, model.config)
    if model.card is None or not model.card.config:
        raise UserError(
            _absent(model)
            if folder is None
            else f"model folder {folder}: has no config.json, so that its sizes are not known"
        )
    return model.card.hf_config(), model.card


def tuned_folder(named: str) -> Path:
    """The folder of a trained part: ``named`` itself, or ``tuned/`` in a run's folder. Raises ``UserError`` where there
    is none.
    """
    from factory.tune.checkpoint import folders_of, is_saved  # tuners work on views, which this module makes

    for folder in folders_of(named):
        if is_saved(folder):
            return folder
    raise UserError(
        f"model.tuned: {named} holds no trained part; give the folder of a finished tuning run, as in"
        " model.tuned=[runs/NAME]"
    )


def _hub_id(model: Wanted) -> tuple[str | None, str | None]:
    """The hub id and revision that a model node asks for."""
    spec, card = model.asked, model.card
    return (
        (spec.hub, spec.revision) if spec.hub else (card.hub, spec.revision or card.revision) if card else (None, None)
    )


def _absent(model: Wanted) -> str:
    spec, card = model.asked, model.card
    repo, _ = _hub_id(model)
    if repo is None:
        return (
            f"model '{spec.zoo or spec.path}': no weights and no hub id are known of it; give its folder:"
            " model.path=FOLDER"
        )
    from huggingface_hub import constants

    size = f" of about {card.download_bytes / 1e9:.1f} GB in all" if card and card.download_bytes else ""
    files = f"{card.weight_files} safetensors files" if card and card.weight_files else "the safetensors files"
    gate = "; its licence has to be accepted on its hub page before" if card and card.gated else ""
    return (
        f"model {spec.zoo or repo}: its weights are not on this machine. Needed from the hub id {repo}: {files}{size},"
        f" configuration, tokenizer and processor{gate}. Get them with `{command('fetch', spec.zoo or repo)}` (into"
        f" {constants.HF_HUB_CACHE}), or give a folder that holds them: model.path=FOLDER"
    )


def _incomplete(model: Wanted, folder: Path, lacking: list[str], total: int) -> str:
    if model.asked.path or (model.card and model.card.folder):
        if list(folder.glob("pytorch_model*.bin*")):
            return (
                f"model folder {folder}: its weights are PyTorch files, which are not read here: write them again with"
                " save_pretrained, which gives model.safetensors"
            )
        return f"model folder {folder}: {lacking[0]} is missing; copy it there or download the model again"
    name = model.asked.zoo or _hub_id(model)[0] or ""
    there = f"{total - len(lacking)} of {total} weight files are there"
    return (
        f"model {name}: its download is not finished ({there}; next: {lacking[0]}). Go on with"
        f" `{command('fetch', name)}`"
    )


def card_for(model: ModelSpec | Wanted, config: Any) -> Card | None:
    """The card that a recipe names, if a model of this configuration is the card's."""
    card = Wanted.of(model).card
    return card if card and card.describes(config) else None


def _unlike(name: str, config: Any, folder: Path) -> str:
    held = (
        f"a {type(config).__name__.removesuffix('Config')} with a decoder of"
        f" {config.get_text_config().num_hidden_layers} blocks"
    )
    return f"{folder} holds {held}, not {name}: the card's layer, its defaults and its published numbers are left aside"


def _config(model: Wanted) -> Any:
    return composed_config(model.spec.compose) if model.spec.compose else _read_config(model.folder or Path())


def _read_config(folder: Path) -> Any:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"model folder {folder}: has no config.json; is it a folder written by save_pretrained?")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(written, dict) or not isinstance(written.get("model_type"), str):
            raise UserError(f"{path}: names no model_type, so that its class is not known; download it again")
        own_code = "AutoConfig" in (written.get("auto_map") or {}) and written["model_type"] not in CONFIG_MAPPING
        if own_code:
            raise UserError(
                f"{path}: a '{written['model_type']}' needs code that comes with it (auto_map), and such code is never"
                " run; take the model in the layout of transformers, as its -hf repository has it"
            )
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # each configuration checks its keys in a way of its own
        raise UserError(f"{path}: cannot be read: {pointer(path) or in_one_line(error)}") from error


def family_of(config: Any) -> Family:
    """The registered family of a configuration, matched by its class. Raises ``UserError`` for a model no family
    knows, and for one whose prompts are not columns of tokens in every block where its family is not made for such.
    """
    names = [entry.name for entry in available("family")]
    sought = sorted(names, key=lambda n: (n.startswith("structural"), n != config.model_type))
    family = next((found for name in sought if (found := lookup("family", name).of(config)) is not None), None)
    if (why := columnless(config.get_text_config())) and not (family and family.columnless):
        raise UserError(
            f"a {type(config).__name__.removesuffix('Config')} cannot be steered here: {why}, and no family is made for"
            " it; take a model that writes pictures into the prompt and whose blocks all have attention, such as LLaVA"
            " or Qwen3-VL"
        )
    if family is None:
        raise UserError(
            f"no family for {type(config).__name__} (model type '{config.model_type}'). Families: {', '.join(names)}"
        )
    return family

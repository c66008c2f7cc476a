"""From a recipe's model node to a checked ModelView: precision, quantisation, placement, parts put together, trained
parts put in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from factory.blame import blaming
from factory.components.source import Sourced, planned
from factory.errors import UserError
from factory.model.checks import self_check
from factory.model.compose import components, compose, parts_of
from factory.model.family import Family, frozen
from factory.model.fingerprint import fingerprint, fingerprint_of
from factory.model.identity import identity_of
from factory.model.source import FoundModel, Wanted, family_of, find, known, tuned_folder
from factory.model.stored import pointer
from factory.model.view import ModelView
from factory.model.weights import LINEAR
from factory.model.zero import load_cut
from factory.recipe.schema import ModelSpec
from factory.zoo.cards import Card
from factory.zoo.packages import fetch_part, needed

__all__ = [
    "device_for",
    "fingerprint",
    "fingerprint_of",
    "get_parts",
    "lacking",
    "load",
    "outline",
    "placement",
    "read_processor",
    "read_settings",
    "sizes",
    "take_card",
]


def device_for(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``UserError`` for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device: '{name}' is not on this machine; use auto or cpu") from error
    return device


def placement(model: ModelSpec | Wanted) -> dict[str, Any]:
    """What ``from_pretrained`` is told of devices and quantisation. Raises ``UserError`` where it cannot be done."""
    model, spec = Wanted.of(model), Wanted.of(model).asked
    with blaming(spec):
        return _placement(model, spec)


def _placement(model: Wanted, spec: ModelSpec) -> dict[str, Any]:
    device = device_for(spec.device)
    if not (spec.device_map or spec.quantize):
        return {}
    if model.spec.compose:
        key = "quantize" if spec.quantize else "device_map"
        raise UserError(
            f"model.{key}: parts are put together whole, on one device; leave it out, or name a saved composed model"
            " with model.path"
        )
    options: dict[str, Any] = {"device_map": spec.device_map or {"": device}}
    if spec.quantize:
        if find_spec("bitsandbytes") is None:
            raise UserError(
                f"model.quantize: {spec.quantize} needs bitsandbytes, which is not installed: pip install"
                " 'steering-factory[quantize]'"
            )
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=spec.quantize == "8bit",
            load_in_4bit=spec.quantize == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, spec.dtype),
        )
    return options


def kept_whole(config: Any, family: Family) -> list[str]:
    """Names of the linear maps that quantisation leaves alone: those outside the decoder, as LLaVA's own quantised
    training does it.
    """
    model = family.skeleton(config)
    packed = set(family.decoder(model).modules())
    return [name for name, module in model.named_modules() if isinstance(module, LINEAR) and module not in packed]


def get_parts(model: ModelSpec | Wanted, get: Callable[[str], Path] = fetch_part) -> None:
    """Fetch the parts of the zoo that a model is composed of, or is, where they are not here yet."""
    model = Wanted.of(model)
    for name in parts_of(model.spec.compose) if model.spec.compose else filter(None, [model.part]):
        get(name)
        model.parts_came()


def outline(model: ModelSpec | Wanted) -> ModelView:
    """A view without weights (its parameters are on the meta device): enough to tokenize prompts, whatever the model's
    size.
    """
    source, spec = find(model := Wanted.of(model)), model.spec
    if spec.compose:
        with torch.device("meta"):
            composed, processor = compose(spec.compose)
        _limit_pixels(source.family, processor, spec)
        return _knowing(ModelView(frozen(composed), processor, source.family), spec.tuned)
    hollow = source.family.skeleton(source.config)
    read_settings(hollow, source.files)
    return _knowing(ModelView(frozen(hollow), read_processor(source, spec), source.family), spec.tuned)


def _knowing(view: ModelView, folders: Sequence[str]) -> ModelView:
    """The view, its tokenizer with the new tokens of trained parts."""
    from factory.tune.checkpoint import words_of
    from factory.tune.tokens import tell_words

    for folder in folders:
        tell_words(view.tokenizer, words_of(tuned_folder(folder)))
    return view


def sizes(model: ModelSpec | Wanted) -> ModelView:
    """A view for counting alone: no weights, no tokenizer, and nothing fetched. Raises ``UserError`` where neither
    files, nor the card, nor the recipe tell the model's sizes."""
    with planned():
        config, _ = known(model)
    family = family_of(config)
    return ModelView(frozen(family.skeleton(config)), None, family)


def to_fetch(model: ModelSpec | Wanted) -> list[str]:
    """What a run would fetch of the parts that a model is composed of, or is."""
    model = Wanted.of(model)
    if model.unfetched:
        return [model.unfetched]
    composed = model.spec.compose
    parts = [part.params for part in (composed.vision_encoder, composed.llm)] if composed else []
    return [why for part in parts if isinstance(part, Sourced) and part.elsewhere and (why := part.absent())]


def lacking(model: ModelSpec | Wanted) -> list[str]:
    """What of a model is not on this machine; nothing is fetched to find out."""
    missing = to_fetch(model := Wanted.of(model))
    try:
        with planned():
            find(model)
    except UserError as error:
        missing.append(str(error))
    return list(dict.fromkeys(missing))


def read_settings(model: PreTrainedModel, folder: Path) -> None:
    """Give a model that was built of its configuration the generation settings in ``folder``, where there are any."""
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)


def take_card(view: ModelView, asked: ModelSpec, card: Card | None) -> None:
    """Give a view what its ``card`` says, and the layer that its node in the recipe may name; `generate` stops where an
    answer ends, whatever the model's settings.
    """
    view.card, view.defaults = card, card.defaults if card else {}
    view.layer = asked.layer if asked.layer is not None or not card else card.layer
    view.model.generation_config.eos_token_id = view.end_ids


def _limit_pixels(family: Family, processor: Any, spec: ModelSpec) -> None:
    if spec.min_pixels or spec.max_pixels:
        family.limit_pixels(processor, spec.min_pixels, spec.max_pixels)


def read_processor(source: FoundModel, spec: ModelSpec | None = None) -> Any:
    """The processor in a model's folder, with the pixel budget of ``spec``. Raises ``UserError`` where part of it is
    missing or cannot be read.
    """
    for what, names in source.family.saved.items():
        if not any((source.files / name).is_file() for name in names):
            raise UserError(
                f"model folder {source.folder}: has no {' and no '.join(names)}, which hold its {what}; save its"
                " processor there too, or download the model again"
            )
    for path in (source.files / name for names in source.family.saved.values() for name in names):
        if why := pointer(path):
            raise UserError(f"{path}: {why}")
    try:
        processor = source.family.load_processor(source.files)
    except Exception as error:  # the tokenizers' own library raises plain ones
        raise UserError(
            f"model folder {source.folder}: its processor cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    if spec:
        _limit_pixels(source.family, processor, spec)
    return processor


def load(model: ModelSpec | Wanted, zero: int = 0, fetch: bool = True) -> ModelView:
    """A frozen, self-checked view of the model that a recipe names; with ``zero`` 3 cut over the ranks. Parts that it
    composes of sizes alone get random weights; those of the zoo are fetched first, or asked for where ``fetch`` is off.
    """
    with (model := Wanted.of(model)).blamed():
        return _load(model, zero, fetch)


def _load(model: Wanted, zero: int, fetch: bool) -> ModelView:
    source, options = find(model), placement(model)
    asked, spec = model.asked, model.spec
    if zero == 3 and (spec.compose or options):
        raise UserError(
            "launch.zero: 3 cuts a model that is read whole from a folder: leave model.compose, model.quantize and"
            " model.device_map out"
        )
    get_parts(model, fetch_part if fetch else needed)
    if spec.tuned:
        _account(model)
    whole, processor = (
        compose(spec.compose, dtype=getattr(torch, spec.dtype)) if spec.compose else _read(source, spec, zero, options)
    )
    if spec.compose:
        _limit_pixels(source.family, processor, spec)
    placed = frozen(whole) if zero == 3 or "device_map" in options else frozen(whole).to(device_for(spec.device))
    view = ModelView(placed, processor, source.family)
    take_card(view, asked, source.card)
    view.origin = asked.origin or view.origin
    view.parts += components(whole.config) + ([spec.compose.llm.make()] if spec.compose else [])
    if zero == 3:
        view.identity, view.described = fingerprint(view), identity_of(view)
    self_check(view)
    _tune(view, spec.tuned)
    return view


def _account(model: Wanted) -> None:
    """Refuse trained parts that are not those of their methods on this model, before a weight is read."""
    from factory import tune

    view = sizes(model)
    for folder in model.spec.tuned:
        tune.account_tuned(tuned_folder(folder), view)


def _tune(view: ModelView, folders: Sequence[str]) -> None:
    """Put trained parts into the model; one that is weights of the model itself leaves no tuner behind."""
    from factory import tune

    for folder in folders:
        tuner = tune.load(tuned_folder(folder), view)
        view.parts.append(tuner)
        if tuner.in_model:
            tuner.settle(view)


def _read(source: FoundModel, spec: ModelSpec, zero: int, options: dict[str, Any]) -> tuple[Any, Any]:
    dtype = getattr(torch, spec.dtype)
    read = partial(
        source.family.hf_class().from_pretrained,
        source.folder,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    if spec.quantize:
        options["quantization_config"].llm_int8_skip_modules = kept_whole(source.config, source.family)
    transformers.utils.logging.disable_progress_bar()  # a run has bars of its own, and stderr is for mistakes
    try:
        model = load_cut(read, source.config, dtype, device_for(spec.device)) if zero == 3 else read()
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model folder {source.folder}: cannot be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    for module in model.modules() if getattr(model, "is_quantized", False) else ():
        module.support_avx512bf16_for_cpu = (
            False  # bitsandbytes would repack 4-bit weights on a CPU into a form without gradients
        )
    return model, read_processor(source, spec)

"""A model's files told by their headers: which of a folder's files hold its weights, and whether their tensors are the
ones that its class takes. The one place where weights are accounted for, and no weight is read.

The account is transformers' own: ``from_pretrained`` is given tensors on the meta device with the shapes that the
headers tell, so that renamed layouts, tied weights and what a class ignores are known as they are when it loads.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion
from transformers.utils import logging

from factory.errors import UserError
from factory.model.weights import LINEAR

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
POINTER = b"version https://git-lfs"
NAMED = 3  # tensors of each kind that a refusal names

_sound: set[tuple[Any, ...]] = set()


@dataclass(frozen=True)
class Tensors:
    """What weight files hold: the shape of each tensor by name, those that are stored as integers, and the files' size
    in bytes."""

    shapes: dict[str, tuple[int, ...]]
    integers: frozenset[str]
    bytes: int


def cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot of a hub repository in the local cache (HF_HOME or HF_HUB_CACHE decide where), whole or not; None
    without one.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def weight_files(folder: Path, named: str | None = None, pickled: bool = False) -> list[Path]:
    """The files that ``from_pretrained`` reads weights from; some may be missing.

    ``named`` is the configuration's ``transformers_weights``; ``pickled`` allows PyTorch files where there is nothing
    else. Raises ``UserError`` for a damaged index, and for two sets of weights.
    """
    if named:
        path = folder / named
        return _indexed(path) if named.endswith(".index.json") else [path]
    for name in (SAFE, PICKLED) if pickled else (SAFE,):
        whole, index = folder / name, folder / f"{name}.index.json"
        if not index.exists():
            if whole.exists():
                return [whole]
            continue
        files = _indexed(index)
        if whole.exists() and whole not in files and all(path.exists() for path in files):
            raise UserError(
                f"model folder {folder}: holds its weights twice, as {name} and as the {len(files)} files of"
                f" {index.name}; move one away"
            )
        return files
    return [folder / SAFE]


def _indexed(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names:
            raise ValueError
        return [index.parent / name for name in sorted(names)]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: {_damage(index)}") from error


def held(files: Iterable[Path]) -> Tensors:
    """The tensors of weight files, from their headers. Raises ``UserError`` for a file that is cut short or damaged."""
    shapes: dict[str, tuple[int, ...]] = {}
    integers: set[str] = set()
    total = 0
    for path in files:
        for name, (shape, whole_numbers) in (_safe if path.suffix == ".safetensors" else _pickled)(path):
            shapes[name] = shape
            integers |= {name} if whole_numbers else set()
        total += path.stat().st_size
    return Tensors(shapes, frozenset(integers), total)


def _safe(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], bool]]]:
    """Names, shapes and whether integers, of a safetensors file whose header and length are sound."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            header = json.loads(f.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        found = [(name, (tuple(map(int, v["shape"])), v["dtype"][0] in "IU")) for name, v in header.items()]
        end = max((v["data_offsets"][1] for v in header.values()), default=0)
        sound = length < size and 8 + length + end == size
    except (OSError, struct.error, ValueError, AttributeError, TypeError, LookupError):
        sound = False
    if not sound:
        raise UserError(f"{path}: {_damage(path)}")
    yield from found


def _pickled(path: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], bool]]]:
    """The same of a PyTorch file, of which nothing but tensors is ever unpickled."""
    try:
        with path.open("rb") as f:
            zipped = f.read(2) == b"PK"
        state = torch.load(path, map_location="meta", weights_only=True, mmap=zipped)
        found = [(name, (tuple(t.shape), not t.is_floating_point())) for name, t in state.items()]
    except (OSError, RuntimeError, ValueError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: {_damage(path)}") from error
    yield from found


def in_one_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def pointer(path: Path) -> str | None:
    """What to do about a file that Git LFS left in the place of the real one; None for any other file."""
    try:
        with path.open("rb") as f:
            left = f.read(len(POINTER)) == POINTER
    except OSError:
        return None
    return "a Git LFS pointer, not the file itself; get it with `git lfs pull`, or download it again" if left else None


def _damage(path: Path) -> str:
    return pointer(path) or "damaged or cut short; copy or download it again"


def account(cls: type[nn.Module], config: Any, tensors: Tensors, where: str, inside: bool = False) -> None:
    """Refuse weights that are not those of a ``cls`` of this configuration.

    ``inside``: they may be a part of a larger model, whose other tensors are left alone. Raises ``UserError`` that
    begins with ``where`` and names the missing tensors, those that the class does not know, and those that do not fit.
    """
    key = (cls, str(config.to_dict()), tuple(tensors.shapes.items()), tensors.integers, inside)
    if key in _sound:
        return
    try:
        compared = _compared(cls, config, tensors)
    except Exception as error:  # whatever a class raises at sizes that do not go together
        raise UserError(f"{where}: no {cls.__name__} can be made by its config.json: {in_one_line(error)}") from error
    if wrong := compared.told(inside):
        loose = _prefix(cls, config, tensors) if compared.unknown else None
        raise UserError(f"{where}: its weights are not those of {cls.__name__}: {loose or wrong}")
    _sound.add(key)


def missing(cls: type[nn.Module], found: Mapping[str, Any], where: str, inside: bool = False) -> None:
    """Refuse by what ``from_pretrained`` reports (``output_loading_info``), where it alone finds or reads the files."""
    if wrong := Discrepancies.of(found).told(inside):
        raise UserError(f"{where}: its weights are not those of {cls.__name__}: {wrong}")


@dataclass(frozen=True)
class Discrepancies:
    """Tensors by name: those that a class lacks, those it does not know, (name, shape in the file, shape in the class)
    of those that do not fit, and those stored as integers that are none."""

    missing: Sequence[str]
    unknown: Sequence[str]
    unlike: Sequence[tuple[str, Sequence[int], Sequence[int]]]
    integers: Sequence[str] = ()

    @classmethod
    def of(cls, found: Mapping[str, Any], integers: Iterable[str] = ()) -> Discrepancies:
        """What transformers tells of a load; of integers, those named as what is learnt."""
        missing, unknown, unlike = (sorted(found[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched"))
        return cls(missing, unknown, unlike, sorted(n for n in integers if n.endswith(("weight", "bias"))))

    def told(self, inside: bool = False) -> str:
        """What is wrong, in a line; empty where nothing is."""
        shapes = [f"{name}: {list(file)} in the file, {list(own)} by config.json" for name, file, own in self.unlike]
        kinds = (
            (self.missing, "is missing", "are missing"),
            (() if inside else self.unknown, "is unknown to it", "are unknown to it"),
            (shapes, "has another shape", "have another shape"),
            (() if inside else self.integers, "is stored as integers", "are stored as integers"),
        )
        return "; ".join(_counted(names, one if len(names) == 1 else many) for names, one, many in kinds if names)

    def as_stored(self, model: PreTrainedModel) -> Discrepancies:
        """The same with the names that the layout of the files has for them."""
        state = model.state_dict()
        if any(not isinstance(each, PrefixChange) for each in model._weight_conversions):  # an older layout, all of it
            held = {repr(each) for each in model._weight_conversions}
            layout = get_model_conversion_mapping(model, add_legacy=False)
            model._weight_conversions = [e for e in layout if not isinstance(e, PrefixChange) or repr(e) in held]
        asked = {name: state[name] for name in (*self.missing, *(each[0] for each in self.unlike))}
        names = {id(tensor): name for name, tensor in revert_weight_conversion(model, asked).items()}
        own = {name: names.get(id(tensor), name) for name, tensor in asked.items()}
        unlike = [(own[name], *shapes) for name, *shapes in self.unlike]
        return replace(self, missing=[own[name] for name in self.missing], unlike=unlike)

    def of_packed(self, model: nn.Module) -> Discrepancies:
        """What is left where matrices may be packed by a quantisation, whose formats only its library knows."""
        linear = {name for name, module in model.named_modules() if isinstance(module, LINEAR)}
        packed = {name for name in linear if any(other.startswith(f"{name}.") for other in self.unknown)}

        def within(name: str, modules: Collection[str]) -> bool:
            return any(name.startswith(f"{module}.") for module in modules)

        return Discrepancies(
            [name for name in self.missing if not within(name, packed)],
            [name for name in self.unknown if not within(name, packed)],
            [each for each in self.unlike if not within(each[0], linear)],
        )


def _counted(names: Sequence[str], what: str) -> str:
    tensors = "tensor" if len(names) == 1 else "tensors"
    more = f", and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} {tensors} {what} ({', '.join(names[:NAMED])}{more})"


def _compared(cls: Any, config: Any, tensors: Tensors) -> Discrepancies:
    """What transformers would miss, leave and refuse of such tensors."""
    config = deepcopy(config)
    quantised = config.__dict__.pop("quantization_config", None)
    state = {name: torch.empty(shape, device="meta") for name, shape in tensors.shapes.items()}
    with _quiet():
        model, found = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map="meta",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    compared = Discrepancies.of(found, tensors.integers)
    return (compared if quantised is None else compared.of_packed(model)).as_stored(model)


def _prefix(cls: type[nn.Module], config: Any, tensors: Tensors) -> str | None:
    """A word on weights that would be the class's without the prefix that all their names have."""
    parts = os.path.commonprefix(list(tensors.shapes)).split(".")[:-1]
    for n in range(1, len(parts) + 1):
        foreign = ".".join(parts[:n]) + "."
        plain = replace(tensors, shapes={name.removeprefix(foreign): s for name, s in tensors.shapes.items()})
        if not _compared(cls, config, plain).told():
            count = len(tensors.shapes)
            return (
                f"all {count} tensors stand under the prefix '{foreign}', which it does not know; save them without it"
            )
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports and bars, and without a draw from anyone's random numbers."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # a run has bars of its own, and stderr is for mistakes
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.set_verbosity(before)

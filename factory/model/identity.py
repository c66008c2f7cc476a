"""Which model something was made for, written down so that another process can say what differs.

A model is known again in another precision, packed by quantisation and under a LoRA that adds nothing: what is kept are
values of every tensor as they are, and rounding them to the precision of the other model has to give its values.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from factory import files
from factory.model.fingerprint import fingerprint, tensors_of
from factory.model.view import ModelView
from factory.model.weights import at_hand, packed_values

SAMPLED = 4  # values kept of each tensor
PACKED = 0.35  # root mean square error of packed weights over their own, of which 4-bit floats make 0.1 to 0.25
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
WRAPPED = re.compile(r"\.base_layer\b|\.modules_to_save\.\w+")
LORA, SECOND = re.compile(r"\.lora_(embedding_)?[AB]\b"), re.compile(r"\.lora_(embedding_)?B\b")


@dataclass(frozen=True)
class Difference:
    """One thing in which a model is not the one that something was made for; ``kin``: whether models of the same
    architecture and sizes may differ in it."""

    text: str
    kin: bool


class Group(BaseModel):
    """Tensors of one name but for their blocks' numbers: shape (one for each where they differ), how many they are, and
    sampled values of all, float32 in base64. ``packed``: by quantisation."""

    model_config = ConfigDict(frozen=True)

    shape: list[int] | list[list[int]]
    count: int
    packed: bool = False
    values: str

    @field_validator("values")
    @classmethod
    def _are_floats(cls, values: str) -> str:
        if len(base64.b64decode(values, validate=True)) % 4:
            raise ValueError("should be float32 values in base64")
        return values

    @property
    def numbers(self) -> Tensor:
        return torch.from_numpy(np.frombuffer(base64.b64decode(self.values), "<f4").copy())

    @property
    def size(self) -> str:
        times = f"{self.count} times " if self.count > 1 else ""
        return times + " x ".join(str(n) for n in self.shape) if self.shape else f"{times}one number"

    def agrees(self, other: Group, dtype: torch.dtype, others: torch.dtype) -> bool:
        """Whether the values of both may be those of one model, in the precisions ``dtype`` and ``others``."""
        a, b = self.numbers, other.numbers
        if a.shape != b.shape:
            return False
        halves = {dtype, others} == {torch.float16, torch.bfloat16}  # neither holds what the other has rounded
        near = (a - b).abs() <= a.abs() * 2**-7 + 2**-24 if halves else torch.zeros(len(a), dtype=torch.bool)
        return bool(((a == b) | (a.to(others).float() == b) | (a == b.to(dtype).float()) | near).all())


class ModelIdentity(BaseModel):
    """A model by class, fingerprint, precision, a hash of its tokenizer's words, and sizes and sampled values of its
    tensors, by name. Manifests of earlier versions have class and fingerprint alone.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    kind: str | None = Field(None, alias="class")
    fingerprint: str
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    tokenizer: str | None = None
    tensors: dict[str, Group] = {}

    def record(self) -> dict[str, Any]:
        """JSON-able, for a manifest."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"class": self.kind}


def identity_of(view: ModelView, without: Sequence[str] = ()) -> ModelIdentity:
    """The identity of a model, the parts ``without`` left aside."""
    if view.described and not without:  # a model that is cut over ranks is read by all of them together, once
        return view.described
    return ModelIdentity(
        kind=type(view.model).__name__,
        fingerprint=fingerprint(view, without),
        dtype=str(view.dtype).removeprefix("torch."),
        tokenizer=_vocabulary(view.tokenizer, len(view.tokenizer)) if view.processor else None,
        tensors=_groups(view, without),
    )


def differences(theirs: ModelIdentity, view: ModelView, without: Sequence[str] = ()) -> list[Difference]:
    """In what the model of ``view`` is not the one that ``theirs`` describes, the parts ``without`` left aside; nothing
    where it is that one, in whatever precision.
    """
    ours = type(view.model).__name__
    if theirs.fingerprint == fingerprint(view, without):
        return []
    if theirs.kind not in (None, ours):
        return [Difference(f"it is a {ours}, not a {theirs.kind}", kin=False)]
    if not theirs.tensors:
        why = "its weights or their precision are others; the manifest, of an earlier version, tells no more"
        return [Difference(why, kin=True)]
    own = identity_of(view, without)
    if unlike := _sizes(theirs.tensors, own.tensors):
        return [Difference(unlike, kin=False)]
    found = []
    if None not in (theirs.tokenizer, own.tokenizer) and theirs.tokenizer != own.tokenizer:
        found.append(Difference("its tokenizer has other words", kin=True))
    added = sorted(own.tensors.keys() - theirs.tensors.keys())
    if added and not _adds_nothing(view, added):
        found.append(Difference(f"it holds a trained part beside its weights ({_some(added)})", kin=True))
    dtypes = [getattr(torch, each.dtype) for each in (theirs, own)]
    pairs = {name: (group, own.tensors[name]) for name, group in theirs.tensors.items()}
    packed = {name: pair for name, pair in pairs.items() if any(group.packed for group in pair)}
    other = [name for name, (a, b) in pairs.items() if name not in packed and not a.agrees(b, *dtypes)]
    if other or (packed and _error(packed.values()) > PACKED):
        found.append(Difference(f"its weights are others ({_some(other or sorted(packed))})", kin=True))
    if not found and not added and not packed and theirs.dtype == own.dtype:  # nothing else tells another fingerprint
        found.append(Difference("its weights are others, where they were not looked at one by one", kin=True))
    return found


def _groups(view: ModelView, without: Sequence[str]) -> dict[str, Group]:
    found: dict[str, list[tuple[list[int], bool, Tensor]]] = defaultdict(list)
    for name, shape, packed, values in _tensors(view, tensors_of(view, without)):
        found[NUMBER.sub("*", name)].append((shape, packed, values))
    groups = {}
    for name, members in sorted(found.items()):
        shapes = [shape for shape, _, _ in members]
        alike = all(shape == shapes[0] for shape in shapes)
        kept = base64.b64encode(torch.cat([v for *_, v in members]).numpy().astype("<f4").tobytes()).decode()
        packed = any(packed for _, packed, _ in members)
        groups[name] = Group(shape=shapes[0] if alike else shapes, count=len(members), packed=packed, values=kept)
    return groups


def _tensors(view: ModelView, leave: Container[int]) -> Iterator[tuple[str, list[int], bool, Tensor]]:
    """Name, shape, whether it is packed, and sampled values of every tensor that a checkpoint of the model holds."""
    model, kept = view.model, view.model.state_dict(keep_vars=True).keys()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if name not in kept or id(tensor) in leave:
            continue
        path, _, last = name.rpartition(".")
        module: Any = model.get_submodule(path)
        if ".original_module." in name:  # in whose place a copy stands that PEFT trains
            continue
        plain = WRAPPED.sub("", f"{path}.{last}").lstrip(".")
        if last == "weight" and not tensor.is_floating_point() and hasattr(module, "in_features"):
            shape = [module.out_features, module.in_features]
            yield plain, shape, True, packed_values(module, _places(shape[0] * shape[1])).float().cpu()
            continue
        with at_hand(model, name, tensor) as whole:
            flat = whole.detach().flatten()
            yield plain, list(whole.shape), False, flat[_places(flat.numel()).to(flat.device)].float().cpu()


def _places(n: int) -> Tensor:
    """Where in n values some are looked at: evenly spread, and not at the very first."""
    k = min(SAMPLED, n)
    return torch.tensor([(2 * i + 1) * n // (2 * k) for i in range(k)], dtype=torch.long)


def _sizes(theirs: Mapping[str, Group], ours: Mapping[str, Group]) -> str | None:
    for name, group in theirs.items():
        if name not in ours:
            return f"it has no {name}"
        here = ours[name]
        if (group.shape, group.count, len(group.values)) != (here.shape, here.count, len(here.values)):
            return f"its sizes are others: {name} {here.size}, not {group.size}"
    return None


def _error(pairs: Iterable[tuple[Group, Group]]) -> float:
    """Root mean square error of packed weights, each group's over that of its own values."""
    shares = [((a.numbers - b.numbers).square().mean() / a.numbers.square().mean()).item() for a, b in pairs]
    return (sum(shares) / len(shares)) ** 0.5


def _adds_nothing(view: ModelView, added: list[str]) -> bool:
    """Whether the added tensors are LoRA's, and each product of two of them is zero, as before training."""
    if not all(LORA.search(name) for name in added):
        return False
    held = view.model.state_dict(keep_vars=True)
    return not any(
        _any(view, name, held[name]) and _any(view, first, held[first])
        for name in held
        if (first := SECOND.sub(r".lora_\1A", name)) != name
    )


def _any(view: ModelView, name: str, tensor: Tensor) -> bool:
    with at_hand(view.model, name, tensor) as whole:
        return bool(whole.detach().any())


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Any, size: int) -> str:
    return files.digest(sorted(tokenizer.get_vocab().items()))[:16]

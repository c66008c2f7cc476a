"""What a model makes of a picture, computed once: a run shows each picture again and again, in other prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from factory.model.view import ModelView
from factory.model.zero import cut_over_ranks

MOST_BYTES = 2**31

Alone = dict[str, Any]
"""What ``get_image_features`` is called with for one picture."""


@contextmanager
def pictures_once(view: ModelView, most_bytes: int = MOST_BYTES) -> Iterator[Shown | None]:
    """While it is open each picture goes through vision tower and connector once, and by itself, so that what is made
    of it depends on no other. Features are kept in the machine's memory up to ``most_bytes``; the pictures after these
    are computed each time. None for a model that has no ``get_image_features``.

    Batches whose inputs do not tell pictures apart run as the model does, and so does a picture side that learns or
    that someone came to watch: hooks that it has when this opens are the model's own.
    """
    if cut_over_ranks(view.model) or not view.sees or not hasattr(view.core, "get_image_features"):
        yield None
        return
    shown = Shown(view, most_bytes)
    view.core.get_image_features = shown
    try:
        yield shown
    finally:
        del view.core.get_image_features


class Shown:
    """A model's ``get_image_features`` that remembers; ``computed`` and ``remembered`` count pictures."""

    def __init__(self, view: ModelView, most_bytes: int) -> None:
        self.compute: Callable[..., Any] = view.core.get_image_features
        self.takes = signature(self.compute)
        self.sides = (view.vision_tower, view.connector)
        self.made_of = [id(module) for module in self._modules()]
        self.own_hooks = {id(hook) for hook in self._hooks()}
        self.left = most_bytes
        self.kept: dict[bytes, Any] = {}
        self.computed = self.remembered = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pictures = _apart(self._named(args, kwargs))
        if pictures is None or not self._still():
            return self.compute(*args, **kwargs)
        return _joined([self._features(picture) for picture in pictures])

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Alone:
        given = dict(self.takes.bind(*args, **kwargs).arguments)
        rest = next((p.name for p in self.takes.parameters.values() if p.kind is Parameter.VAR_KEYWORD), "")
        return given.pop(rest, {}) | given

    def _modules(self) -> Iterator[nn.Module]:
        return chain.from_iterable(side.modules() for side in self.sides)

    def _hooks(self) -> Iterator[Callable[..., Any]]:
        """All but transformers' own, which it adds when states are first asked for."""
        for m in self._modules():
            for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()):
                if not (getattr(hook, "__module__", None) or "").startswith("transformers."):
                    yield hook

    def _still(self) -> bool:
        """Whether the picture side is made of what it was, and no one learns from it or came to watch it."""
        watched = any(id(hook) not in self.own_hooks for hook in self._hooks())
        learns = any(m.training for m in self._modules())
        learns = learns or any(p.requires_grad for side in self.sides for p in side.parameters())
        return not watched and not learns and [id(m) for m in self._modules()] == self.made_of

    def _features(self, picture: Alone) -> Any:
        key = _key(picture)
        if key in self.kept:
            self.remembered += 1
            return _moved(self.kept[key], picture["pixel_values"].device)
        self.computed += 1
        made = self.compute(**picture)
        fed = type(made)(**{name: made[name] for name in ("pooler_output", "deepstack_features") if name in made})
        size = sum(t.nbytes for t in _tensors(fed))
        if size <= self.left:
            self.left -= size
            self.kept[key] = _moved(fed, torch.device("cpu"))
        return fed


def _apart(given: Alone) -> list[Alone] | None:
    """The call of each picture by itself, or of each prompt's where they are padded to the same number; None where the
    inputs do not tell which rows are whose."""
    parts = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    pixels = parts["pixel_values"]
    grid, together = parts.get("image_grid_thw"), parts.get("batch_num_images")
    rows = grid.prod(-1) if grid is not None else together if together is not None else pixels.new_ones(len(pixels))
    sizes = rows.long().tolist()
    if sum(sizes) != len(pixels) or any(len(value) not in (len(pixels), len(sizes)) for value in parts.values()):
        return None
    cut = {name: value.split(sizes if len(value) == len(pixels) else 1) for name, value in parts.items()}
    pictures = [{**given, **{name: each[i] for name, each in cut.items()}} for i in range(len(sizes))]
    return [p for p in pictures if "pixel_attention_mask" not in cut or bool(p["pixel_attention_mask"].any())]


def _joined(pictures: Sequence[Any]) -> Any:
    """The features of pictures, each computed alone, as the model gives those of all of them."""
    first = pictures[0]
    found = {"pooler_output": _end_to_end([p.pooler_output for p in pictures])}
    if "deepstack_features" in first:
        layers = zip(*(p.deepstack_features for p in pictures), strict=True)
        found["deepstack_features"] = [_end_to_end(layer) for layer in layers]
    return type(first)(**found)


def _end_to_end(values: Sequence[Any]) -> Any:
    """Tensors [n, ..] as one, or lists of tensors as one list."""
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else [t for value in values for t in value]


def _key(picture: Alone) -> bytes:
    """Of a picture's pixels and all that it is asked with."""
    told = hashlib.blake2b(digest_size=16)
    for name, value in sorted(picture.items()):
        if isinstance(value, Tensor):
            told.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            told.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            told.update(f"{name} {value!r}".encode())
    return told.digest()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of an output, or of lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _moved(value: Any, device: torch.device) -> Any:
    """An output, or lists of tensors, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return type(value)(**{name: _moved(each, device) for name, each in value.items()})
    return type(value)(_moved(each, device) for each in value) if isinstance(value, (list, tuple)) else value

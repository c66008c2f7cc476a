"""Running only the blocks above one block: what a strength sweep repeats, and what a controller may look ahead with."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache

from factory.model.view import ModelView

Call = dict[str, Any]


class _Given(nn.Module):
    """Stands in for a block whose output is known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.output


def call_of(decoder: nn.Module, args: tuple, kwargs: Call) -> Call:
    """The arguments of a decoder's call by name, the KV cache aside."""
    named = inspect.signature(decoder.forward).bind_partial(*args).arguments if args else {}
    return {k: v for k, v in {**named, **kwargs}.items() if k != "past_key_values"}


@contextmanager
def recorded(view: ModelView, calls: list[Call]) -> Iterator[None]:
    """Put the arguments of the decoder's next call, the KV cache aside, into ``calls`` where that is empty: before a
    hook of a tuner changes them, which does so again when the call is made again.
    """

    def keep(module: nn.Module, args: tuple, kwargs: Call) -> None:
        if not calls:
            calls.append(call_of(module, args, kwargs))

    handle = view.decoder.register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def replay(view: ModelView, layer: int, call: Call, h: Tensor, cache: Cache | None) -> Tensor:
    """Final normed states [R, t, d] of a call of the decoder, had block ``layer`` given ``h`` [R, t, d].

    The decoder itself runs, with the blocks up to ``layer`` left out: what it does between blocks, and what it hands
    to each of them, stays its own affair. ``call`` has its keyword arguments; a ``cache`` holds none of these tokens
    and receives those of the blocks above.
    """
    name, blocks = view.family.layers_name, view.layers
    setattr(view.decoder, name, nn.ModuleList([_Given(h) if i <= layer else block for i, block in enumerate(blocks)]))
    try:
        return view.decoder(**{**call, "past_key_values": cache}).last_hidden_state.to(view.device)
    finally:
        setattr(view.decoder, name, blocks)

"""Running only the blocks above one block: what a strength sweep repeats, and what a controller may look ahead with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from factory.model.view import ModelView

Call = dict[str, Any]


def without_cache(kwargs: Call) -> Call:
    """What a decoder block was called with beside the states and the KV cache."""
    return {k: v for k, v in kwargs.items() if k != "past_key_values" and not isinstance(v, Cache)}


def replay(view: ModelView, layer: int, calls: Sequence[Call], h: Tensor, cache: Cache) -> Tensor:
    """Final normed states [R, t, d] of the blocks above ``layer`` run on its output ``h`` [R, t, d].

    ``calls`` has each block's keyword arguments, bottom up; ``cache`` holds none of these tokens and receives them.
    """
    for block, kwargs in zip(view.layers[layer + 1 :], calls, strict=True):
        h = block(h, **kwargs, past_key_values=cache)
    return view.norm(h).to(view.device)

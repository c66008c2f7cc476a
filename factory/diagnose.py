"""The contract of a diagnostic: a measurement on prompts that changes nothing and yields tidy rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from factory.model.encode import Batch
from factory.model.prefix import Prefix, prefill, split_last
from factory.model.view import ModelView
from factory.registry import Params


class Row(TypedDict):
    """One number: ``sample`` is the caller's key; ``layer`` and ``head`` are None where the metric has none."""

    sample: str
    metric: str
    layer: int | None
    head: int | None
    value: float


class Query(NamedTuple):
    """The tokens that follow a prefix, for ``extend(view, prefix, *query)``: ``ids``, ``mask``, ``roles`` [R, t]."""

    ids: Tensor
    mask: Tensor
    roles: Tensor

    def pick(self, rows: Tensor) -> Query:
        return Query(*(t.index_select(0, rows) for t in self))


class Diagnostic:
    """Base of the diagnostics. A subclass defines ``on_prefix``, or ``measure`` where it needs the whole prompt at once."""

    Params: type[Params] = Params

    def __init__(self, params: Params) -> None:
        self.params = params

    def split(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> tuple[Batch, Query]:
        """What goes into the cache and what queries it: each prompt without its last token, and that token."""
        rest, ids, roles = split_last(batch)
        return rest, Query(ids, torch.ones_like(ids), roles)

    def measure(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> list[Row]:
        """Rows of whole prompts. ``keys`` names each prompt by a stable string, unlike those of all others."""
        rest, query = self.split(view, batch, keys)
        with torch.no_grad():
            _, prefix = prefill(view, rest)
        return self.on_prefix(view, prefix, query, keys)

    def on_prefix(self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None) -> list[Row]:
        """Rows of prompts that lie in ``prefix`` up to ``query``; the prefix stays as it is.

        ``hidden`` [R, t, d]: the query's final hidden states, where the caller has them, so that nothing runs twice.
        """
        raise TypeError(f"{type(self).__name__} must define on_prefix")

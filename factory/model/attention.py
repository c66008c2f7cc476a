"""Attention computed by a function of one's own, within a block of code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from factory.errors import UserError
from factory.model.view import ModelView

Attend = Callable[..., tuple[Tensor, Tensor | None]]
_attend: ContextVar[Attend] = ContextVar("attend")


def _delegate(module: nn.Module, *args: Tensor, **options: object) -> tuple[Tensor, Tensor | None]:
    return _attend.get()(module, *args, **options)


OURS = "steering_factory"
AttentionInterface.register(OURS, _delegate)
AttentionMaskInterface.register(OURS, sdpa_mask)


def replaced(view: ModelView) -> bool:
    """Whether the decoder's attention is computed by a function of one's own just now."""
    return view.text_config._attn_implementation == OURS


@contextmanager
def attention(view: ModelView, attend: Attend, of: nn.Module | None = None) -> Iterator[None]:
    """The attention of the decoder (or of the part ``of``) computed by
    ``attend(module, q, k, v, mask, scaling=..., ...)``, as in transformers' interface.

    q [B, heads, t, d], k and v [B, kv_heads, T, d], mask [B, 1, t, T] booleans (True = seen) or None; it returns
    ([B, t, heads, d], None). Raises ``UserError`` for a model whose attention is capped, which no such function knows,
    and for a decoder that has blocks without such attention.
    """
    if of is None or of is view.decoder:
        view.need_columns("its attention cannot be replaced in every block")
    if getattr(view.text_config, "attn_logit_softcapping", None) is not None:
        raise UserError(
            f"{type(view.model).__name__} caps its attention (attn_logit_softcapping), so that it cannot be replaced"
        )
    configs: Iterable[Any] = {
        id(m.config): m.config for m in (of or view.decoder).modules() if hasattr(m, "config")
    }.values()
    before = [config._attn_implementation for config in configs]
    token = _attend.set(attend)
    try:
        for config in configs:
            config._attn_implementation = OURS
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _attend.reset(token)

"""The residual stream at chosen tokens: each block's input and output, what attention adds, and each head's part in
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from factory.errors import UserError
from factory.model.view import ModelView
from factory.model.weights import weight_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass
class Residuals:
    """States [B, n, d] by layer at chosen tokens: ``before`` h^{l-1}, ``attention`` a^l, ``after`` h^l; ``heads`` [B,
    n, heads * head_dim] is what block l's output projection is given. h^l = h^{l-1} + a^l + m^l."""

    before: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    mlp: list[Tensor] = field(default_factory=list)

    def head_outputs(self, view: ModelView, layer: int) -> Tensor:
        """o^{l,n} [B, n, heads, d]: each head's slice of the output projection, without its bias."""
        x = self.heads[layer].unflatten(-1, (view.heads, view.head_dim))
        with weight_of(view.o_proj(layer)) as W_O:
            return torch.einsum(
                "bnhk,dhk->bnhd", x, W_O.to(x.device, x.dtype).unflatten(-1, (view.heads, view.head_dim))
            )


@contextmanager
def residuals(view: ModelView, at: Tensor) -> Iterator[Residuals]:
    """Keep the residual stream of the one forward inside at columns ``at`` [B, n], all of it on their device.

    Raises ``UserError`` for a model with blocks that have no attention, and at the end for one whose blocks do not add
    attention and MLP to the stream as they are.
    """
    view.need_columns("its residual stream cannot be taken apart into heads in every block")
    found = Residuals()
    rows = torch.arange(len(at), device=at.device)[:, None]
    first = lambda x: x[0] if isinstance(x, tuple) else x
    taken = lambda x: x.reshape(len(at), -1, x.shape[-1])[rows.to(x.device), at.to(x.device)].to(at.device)
    with ExitStack() as stack:
        for i, block in enumerate(view.layers):
            try:
                mlp = block.get_submodule(name := view.family.mlp_path)
            except AttributeError as error:
                raise UserError(
                    f"{type(block).__name__} has no '{name}': its residual stream cannot be taken apart"
                ) from error

            def keep(into: list[Tensor]) -> Any:
                return lambda module, args, output: into.append(taken(first(output)))

            def keep_input(into: list[Tensor]) -> Any:
                return lambda module, args, kwargs: into.append(taken(args[0] if args else kwargs["hidden_states"]))

            handles = [
                block.register_forward_pre_hook(keep_input(found.before), with_kwargs=True),
                block.register_forward_hook(keep(found.after)),
                view.attention(i).register_forward_hook(keep(found.attention)),
                mlp.register_forward_hook(keep(found.mlp)),
                view.o_proj(i).register_forward_pre_hook(keep_input(found.heads), with_kwargs=True),
            ]
            for handle in handles:
                stack.callback(handle.remove)
        yield found
    _check(view, found)


def _check(view: ModelView, r: Residuals) -> None:
    tolerance = TOLERANCE[view.dtype]
    for block, h, a, m, out in zip(view.layers, r.before, r.attention, r.mlp, r.after, strict=True):
        if not torch.allclose(h + a + m, out, atol=tolerance * max(1.0, float(out.abs().max())), rtol=0):
            raise UserError(
                f"{type(block).__name__} changes what attention and MLP add to the residual stream: its parts cannot be"
                " attributed"
            )


def columns_of(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Columns [B, n] of the tokens in ``mask`` [B, T], and which of them [B, n] a prompt really has."""
    n = max(1, int(mask.sum(-1).max()))
    at = (~mask).long().argsort(dim=-1, stable=True)[:, :n]
    return at, mask.gather(-1, at)

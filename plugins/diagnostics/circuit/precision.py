"""The precisions that edges are tried in (PAHQ, 2510.23264; SPEC-2 12.1), simulated: no number here is faster for it.

    full   as the model computes
    pahq   the head whose edge is tried in the model's precision (queries, keys, values, output), all other heads'
           weights and inputs in FP8 E4M3, MLPs in BF16
    rtn    weights rounded to nearest: s = max|w| / (2^(b-1) - 1), q = clip(round(w / s)), b = 8 or 4, everywhere

From the paper and its plan: which parts have which precision. Ours: the released code casts to E4M3 without a scale,
so that values above 448 become NaN; here each head's weight has one scale, max|w| / 448, and each token's input has
one, so that no number depends on what else is in the batch. Gradients pass through the rounding of inputs as through
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.instruments.circuit.graph import Graph
from factory.instruments.circuit.passes import Arithmetic
from factory.instruments.circuit.wiring import Wired
from factory.model.view import ModelView
from factory.model.weights import LINEAR, weight_of

Precision = Literal["full", "pahq", "rtn8", "rtn4"]
LARGEST = 448.0
"""Of E4M3."""
BYTES = {"pahq": (1.0, 2.0), "rtn8": (1.0, 1.0), "rtn4": (0.5, 0.5)}
"""Of a head's and of an MLP's weight, each."""


def e4m3(x: Tensor, dims: tuple[int, ...] | int) -> Tensor:
    """``x`` as FP8 E4M3 holds it, with one scale max|x| / 448 over ``dims``; zeros stay zeros."""
    wide = x.float()
    scale = wide.abs().amax(dims, keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    held = (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return (held.float() * scale).to(x.dtype)


def nearest(w: Tensor, bits: int, dims: tuple[int, ...] | int) -> Tensor:
    """``w`` rounded to ``bits`` with one scale max|w| / (2^(bits - 1) - 1) over ``dims``."""
    top = 2 ** (bits - 1) - 1
    scale = w.float().abs().amax(dims, keepdim=True) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return ((w.float() / scale).round().clamp(-top, top) * scale).to(w.dtype)


def through(x: Tensor, low: Tensor) -> Tensor:
    """``low``, with the gradient of ``x``."""
    return x + (low - x).detach() if x.requires_grad else low


class Lowered:
    """A model's linear maps in a low precision, but for the heads ``kept`` (block, query head)."""

    def __init__(self, view: ModelView, precision: Precision, kept: frozenset[tuple[int, int]] = frozenset()) -> None:
        self.view, self.precision, self.kept = view, precision, kept
        self.bits = 4 if precision == "rtn4" else 8
        self.held: dict[tuple[int, str, int], Tensor] = {}

    def around(self, kept: frozenset[tuple[int, int]]) -> Lowered:
        """The same with other heads kept; what was rounded is not rounded again."""
        other = Lowered(self.view, self.precision, kept if self.precision == "pahq" else frozenset())
        other.held = self.held
        return other

    def _own(self, block: Wired, part: str, heads: Sequence[int]) -> Tensor:
        """[n] booleans: which heads of a part are kept; a key or value head with any query head of its group."""
        group = self.view.heads // block.parts[part].heads if part in block.parts else 1
        kept = {h // group for layer, h in self.kept if layer == block.layer}
        return torch.tensor([h in kept for h in heads])

    def weight(self, block: Wired, part: str, heads: Sequence[int], w: Tensor) -> Tensor:
        """The weight [n, head_dim, d] (``o``: [d, n, head_dim]) of some heads, each with a scale of its own."""
        at = 1 if part == "o" else 0
        out = []
        for h, kept in zip(heads, self._own(block, part, heads).tolist(), strict=True):
            key = (block.layer, part, h)
            own = w.select(at, heads.index(h))
            if not kept and key not in self.held:
                self.held[key] = e4m3(own, (0, 1)) if self.precision == "pahq" else nearest(own, self.bits, (0, 1))
            out.append(own if kept else self.held[key])
        return torch.stack(out, at)

    def given(self, block: Wired, part: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """Inputs [n, B, T, k] of some heads; only PAHQ rounds them."""
        if self.precision != "pahq":
            return x
        kept = self._own(block, part, heads).to(x.device)[:, None, None, None]
        return torch.where(kept, x, through(x, e4m3(x, -1)))

    @contextmanager
    def mlp(self, block: Wired) -> Iterator[None]:
        """The linear maps of a block outside its attention, in BF16 or rounded."""
        inside = {id(m) for m in block.attention.modules()}
        with ExitStack() as stack:
            for module in self.view.layers[block.layer].modules():
                if isinstance(module, LINEAR) and id(module) not in inside:
                    stack.callback(module.register_forward_hook(self._linear).remove)
            yield

    def _linear(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        with weight_of(module) as W, weight_of(module, "bias") as bias:
            if self.precision == "pahq":
                low = torch.bfloat16
                made = F.linear(args[0].to(low), W.to(low), None if bias is None else bias.to(low))
            else:
                key = (-1, "linear", id(module))
                if key not in self.held:
                    self.held[key] = nearest(W, self.bits, 1)
                made = F.linear(args[0], self.held[key], bias)
        return made.to(output.dtype)


def lowered(view: ModelView, precision: Precision) -> Lowered | None:
    """The arithmetic of a precision; None for the model's own."""
    return None if precision == "full" else Lowered(view, precision)


def trying(low: Lowered | None, graph: Graph, receiver: int) -> Arithmetic | None:
    """The arithmetic in which the edges into a receiver are tried: its heads are kept."""
    r = graph.receivers[receiver]
    if low is None or r.kind not in "qkv":
        return None if low is None else low.around(frozenset())
    group = graph.heads // graph.kv_heads
    heads = [r.index] if r.kind == "q" else range(r.index * group, (r.index + 1) * group)
    return low.around(frozenset((r.layer, h) for h in heads))


def weight_bytes(view: ModelView, precision: Precision, graph: Graph) -> dict[str, Any]:
    """Bytes that the blocks' weights would take if they were held as they are computed with, ``kept`` heads at most
    beside; nothing here holds them so."""
    inside = [p for i in range(view.depth) for p in view.attention(i).parameters()]
    known = {id(p) for p in inside}
    mlps = [p for block in view.layers for p in block.parameters() if id(p) not in known]
    heads, mlp, size = sum(p.numel() for p in inside), sum(p.numel() for p in mlps), view.unembed.weight.element_size()
    if precision == "full":
        return {"bytes": (heads + mlp) * size}
    per_head, per_mlp = BYTES[precision]
    one = heads / (view.depth * graph.heads) if precision == "pahq" else 0.0
    return {"bytes": heads * per_head + mlp * per_mlp + one * size}

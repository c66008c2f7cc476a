"""What a pass changes: edges exchanged for another run's, streams written as sums, and leaves that gradients reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.model.encode import Batch
from factory.model.prefix import last_index
from factory.model.replay import Call

from .graph import Graph
from .passes import Streams

ROLES: dict[str, tuple[Role, ...]] = {
    "image": (Role.IMAGE,),
    "context": (Role.CONTEXT,),
    "question": (Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION),
}
GROUPS = (*ROLES, "last", "other")
"""Where an edge is read: at the picture's, the context's, the question's tokens, the last one, or all others."""


@dataclass(frozen=True)
class Trace:
    """Prompts run once: the decoder's ``call``, what each sender added [U, B, T, d], what the blocks gave [B, T, d],
    what each block's attention adds by no head ([d] or [B, T, d]), and the final normed state of each prompt's last
    token ``hidden`` [B, d]."""

    batch: Batch
    call: Call
    values: Tensor
    outputs: Sequence[Tensor]
    rest: Sequence[Tensor]
    hidden: Tensor
    _sums: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sum_of(self, seen: int) -> Tensor:
        """What the first ``seen`` senders add together [B, T, d]."""
        if seen not in self._sums:
            self._sums[seen] = self.values[:seen].sum(0)
        return self._sums[seen]

    @cached_property
    def is_zero(self) -> bool:
        """Whether nothing adds anything."""
        return not bool(self.values.any())

    @property
    def rows(self) -> int:
        return self.batch.size

    @property
    def gates(self) -> Tensor:
        """[G, B, T] booleans: which tokens are of each group of ``GROUPS``; a token is of one."""
        mask = self.batch.attention_mask.bool()
        last = torch.arange(mask.shape[1], device=mask.device) == last_index(self.batch.attention_mask)[:, None]
        named = [self.batch.mask(*roles) & ~last for roles in ROLES.values()]
        return torch.stack([*named, last, mask & ~last & ~torch.stack(named).any(0)])


class Summed:
    """Every receiver reads the sum of all that was added before it, in the place of the model's own stream."""

    def stream(self, layer: int, x: Tensor, added: Tensor) -> None:
        return None

    def streams(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor, rest: Tensor) -> Streams:
        return [(receivers, (total + rest)[None])]


class Exchange:
    """Edges exchanged for those of another run: ``absent`` [R, V, U] booleans, or parts of edges, or [R, V, U, G] with
    ``gates`` [G, B, T].

    A receiver most of whose edges are exchanged reads the other run's sum, with those that are present put back; where
    the other run is zero, any exchanged one does. So what reads nothing reads zero, where taking all from the stream
    would leave rounding for the norms to enlarge.
    """

    def __init__(self, trace: Trace, other: Trace, absent: Tensor, below: int, gates: Tensor | None = None) -> None:
        self.trace, self.other, self.below = trace, other, below
        self.gates = None if gates is None else gates.to(other.values.dtype)
        self.touched = (
            absent.flatten(3).any(-1).any(0).any(-1).tolist() if absent.ndim == 4 else (absent.any(0).any(-1).tolist())
        )
        self.flips = absent.dtype == torch.bool and gates is None
        self.absent = absent.to(other.values.device, other.values.dtype)
        self.rows = len(absent)
        self.few = 0.0 if other.is_zero else 0.5

    def stream(self, layer: int, x: Tensor, added: Tensor) -> None:
        return None

    def streams(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor, rest: Tensor) -> Streams:
        vs = [v for v in receivers if self.touched[v]]
        if not vs:
            return []
        shape = (self.rows, *self.other.values.shape[1:])
        seen = sum(map(len, senders))
        part = self.absent[:, vs, :seen]
        most = part.mean(2) > self.few if self.flips else torch.zeros(part.shape[:2], dtype=torch.bool, device=x.device)
        part = part - most[..., None].to(part) if self.flips else part
        own = (part != 0).flatten(3).any(-1) if part.ndim == 4 else part != 0
        whole = (most & ~own.any(-1)).all(0).tolist()
        if bool(most.any()):
            others = (self.other.sum_of(seen) + (rest.view(shape) if rest.ndim == 3 else rest)).expand(shape)
        found: list[tuple[Sequence[int], Tensor]] = []
        if any(whole):
            found.append(([v for v, all_gone in zip(vs, whole, strict=True) if all_gone], others.flatten(0, 1)[None]))
        left = [i for i, all_gone in enumerate(whole) if not all_gone]
        if left:
            out = x.view(1, *shape).repeat(len(left), *[1] * len(shape))
            gone = most[:, left].T
            if bool(gone.any()):
                out[gone] = others[gone.nonzero()[:, 1]]
            self._differences(out, part[:, left], own[:, left].any(0).any(0), senders)
            found.append(([vs[i] for i in left], out.flatten(1, 2)))
        return found

    def _differences(self, out: Tensor, part: Tensor, own: Tensor, senders: Sequence[Tensor]) -> None:
        """Add to ``out`` [n, R, B, T, d] the sum of parts [R, n, u, ..] of z' - z over the senders that are their
        ``own`` [u]."""
        low = own[: self.below].nonzero()[:, 0]
        if len(low):
            us = low.to(part.device)
            self._add(out, part[:, :, us], (self.other.values[us] - self.trace.values[us])[:, None])
        at = 0
        for added in senders:
            some = slice(at, at := at + len(added))
            if some.start >= self.below and bool(own[some].any()):
                self._add(out, part[:, :, some], self.other.values[some, None] - added.view(len(added), *out.shape[1:]))

    def _add(self, out: Tensor, part: Tensor, D: Tensor) -> None:
        """Add parts [R, n, u] (or [R, n, u, G]) of differences D [u, R, B, T, d], or [u, 1, B, T, d] of all rows, to
        ``out`` [n, R, B, T, d]."""
        if self.gates is not None:
            part = torch.einsum("rnug,gbt->rnubt", part, self.gates)
            out += torch.einsum("rnubt,urbtd->nrbtd", part, D.expand(-1, self.rows, -1, -1, -1))
        elif len(D[0]) == 1:
            out += torch.tensordot(part, D[:, 0], 1).transpose(0, 1)
        elif len(part) == 1 or bool((part == part[:1]).all()):
            out.flatten(1).addmm_(part[0], D.flatten(1))
        else:
            for r in range(len(part)):
                out[:, r].flatten(1).addmm_(part[r], D[:, r].flatten(1))


class Leaves:
    """Every receiver reads the stream plus a zero of its own, whose gradient is held against z' - z of all senders
    before it: ``scores`` [V, U, G]. The inputs are z' + ``share`` (z - z')."""

    def __init__(self, trace: Trace, other: Tensor, graph: Graph, gates: Tensor | None, share: float) -> None:
        self.D = other - trace.values
        self.graph, self.share = graph, share
        self.gates = torch.ones_like(self.D[:1, ..., 0]) if gates is None else gates.to(other.dtype)
        self.scores = torch.zeros(*graph.allowed.shape, len(self.gates), dtype=torch.float64)

    def stream(self, layer: int, x: Tensor, added: Tensor) -> Tensor | None:
        at = 0 if layer == 0 else self.graph.below(layer) - 1
        return None if self.share == 1 else x + (1 - self.share) * self.D[at]

    def streams(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor, rest: Tensor) -> Streams:
        zero = torch.zeros(len(receivers), *x.shape, dtype=x.dtype, device=x.device, requires_grad=True)

        def held(leaf: Tensor) -> None:
            seen = int(self.graph.allowed[receivers[0]].sum())  # a prefix of the senders
            assert leaf.grad is not None
            for g, gate in enumerate(self.gates):
                own = (leaf.grad * gate[..., None]).flatten(1)
                self.scores[receivers.start : receivers.stop, :seen, g] += (own @ self.D[:seen].flatten(1).T).cpu()
            leaf.grad = None

        zero.register_post_accumulate_grad_hook(held)
        return [(receivers, x + zero)]

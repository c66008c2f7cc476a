"""What a pass changes: edges exchanged for another run's, streams written as sums, and leaves that gradients reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.model.encode import Batch
from factory.model.prefix import last_index
from factory.model.replay import Call

from .graph import Graph
from .passes import Deltas, Pass

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
    and the final normed state of each prompt's last token ``hidden`` [B, d]."""

    batch: Batch
    call: Call
    values: Tensor
    outputs: Sequence[Tensor]
    hidden: Tensor
    _sums: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def sum_of(self, seen: int) -> Tensor:
        """What the first ``seen`` senders add together [B, T, d]."""
        if seen not in self._sums:
            self._sums[seen] = self.values[:seen].sum(0)
        return self._sums[seen]

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

    def __init__(self) -> None:
        self.run: Pass | None = None

    def stream(self, layer: int, x: Tensor, added: Tensor) -> None:
        return None

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor) -> Deltas:
        assert self.run is not None
        for rest in self.run.rest[: self.run.graph.rests(receivers[0])]:
            total = total + rest
        return [(receivers, (total - x)[None])]


class Exchange:
    """Edges exchanged for those of another run: ``absent`` [R, V, U] booleans, or parts of edges, or [R, V, U, G] with
    ``gates`` [G, B, T].

    Of a receiver most of whose edges are exchanged the others are put back: x' - x - sum over present (z'_u - z_u).
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

    def stream(self, layer: int, x: Tensor, added: Tensor) -> None:
        return None

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor) -> Deltas:
        vs = [v for v in receivers if self.touched[v]]
        if not vs:
            return []
        shape = (self.rows, *self.other.values.shape[1:])
        seen = sum(map(len, senders))
        part = self.absent[:, vs, :seen]
        most = torch.zeros(len(vs), dtype=torch.bool)
        if self.flips:
            most = (part.mean((0, 2)) > 0.5).cpu()
            part = part - most[None, :, None].to(part)
        back = (self.other.sum_of(seen)[None] - total.view(shape)).flatten(0, 1) if bool(most.any()) else None
        own = (part != 0).flatten(3).any(-1) if part.ndim == 4 else part != 0
        alike = [i for i in range(len(vs)) if most[i] and not bool(own[:, i].any())]
        rest = [i for i in range(len(vs)) if i not in alike]
        found: list[tuple[Sequence[int], Tensor]] = []
        if alike and back is not None:
            found.append(([vs[i] for i in alike], back[None]))
        if rest:
            out = self._differences(part[:, rest], own[:, rest].any(0).any(0), senders, shape)
            for n in most[rest].nonzero()[:, 0].tolist():
                out[n] += back
            found.append(([vs[i] for i in rest], out))
        return found

    def _differences(self, part: Tensor, own: Tensor, senders: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
        """[n, R * B, T, d]: sum of parts [R, n, u, ..] of z' - z over the senders that are their ``own`` [u]."""
        out = self.other.values.new_zeros(part.shape[1], *shape)
        low = own[: self.below].nonzero()[:, 0]
        if len(low):
            us = low.to(part.device)
            self._add(out, part[:, :, us], (self.other.values[us] - self.trace.values[us])[:, None])
        at = 0
        for added in senders:
            some = slice(at, at := at + len(added))
            if some.start >= self.below and bool(own[some].any()):
                self._add(out, part[:, :, some], self.other.values[some, None] - added.view(len(added), *shape))
        return out.flatten(1, 2)

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

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor) -> Deltas:
        zero = torch.zeros(len(receivers), *x.shape, dtype=x.dtype, device=x.device, requires_grad=True)

        def held(leaf: Tensor) -> None:
            seen = int(self.graph.allowed[receivers[0]].sum())  # a prefix of the senders
            assert leaf.grad is not None
            for g, gate in enumerate(self.gates):
                own = (leaf.grad * gate[..., None]).flatten(1)
                self.scores[receivers.start : receivers.stop, :seen, g] += (own @ self.D[:seen].flatten(1).T).cpu()
            leaf.grad = None

        zero.register_post_accumulate_grad_hook(held)
        return [(receivers, zero)]

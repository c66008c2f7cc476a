"""What a pass changes: edges exchanged for another run's, streams written as sums, and leaves that gradients reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.model.encode import Batch
from factory.model.prefix import last_index
from factory.model.replay import Call

from .graph import Graph
from .passes import Pass

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

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor]) -> tuple[Sequence[int], Tensor]:
        assert self.run is not None
        seen = int(self.run.graph.allowed[receivers[0]].sum())  # a prefix of the senders
        reader = self.run.graph.receivers[receivers[0]]
        beside = reader.kind == "mlp" and self.run.graph.parallel[reader.layer]
        total = torch.stack(list(senders[:seen])).sum(0)
        for rest in self.run.rest[: len(self.run.rest) - beside]:
            total = total + rest
        return list(receivers), (total - x)[None].expand(len(receivers), *x.shape)


class Exchange:
    """Edges exchanged for another run's: ``other`` [U, B, T, d], ``absent`` [R, V, U] booleans, or [R, V, U, G] with
    ``gates`` [G, B, T]."""

    def __init__(self, trace: Trace, other: Tensor, absent: Tensor, below: int, gates: Tensor | None = None) -> None:
        self.trace, self.other, self.below = trace, other, below
        self.absent = absent.to(other.device)
        self.gates = None if gates is None else gates.to(other.dtype)
        every = self.absent.flatten(3).any(-1) if self.absent.ndim == 4 else self.absent
        self.any_row = every.any(0).cpu()
        self.rows = len(absent)

    def stream(self, layer: int, x: Tensor, added: Tensor) -> None:
        return None

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor]) -> tuple[Sequence[int], Tensor] | None:
        touched = [v for v in receivers if bool(self.any_row[v].any())]
        if not touched:
            return None
        us = self.any_row[touched].any(0).nonzero()[:, 0].tolist()
        R, (B, T, d) = self.rows, self.other.shape[1:]
        low, high = [u for u in us if u < self.below], [u for u in us if u >= self.below]
        out = x.new_zeros(len(touched), R, B, T, d)
        if low:
            D = (self.other[low] - self.trace.values[low])[:, None].expand(-1, R, -1, -1, -1)
            out = out + self._sum(touched, low, D)
        if high:
            D = self.other[high][:, None] - torch.stack([senders[u] for u in high]).view(len(high), R, B, T, d)
            out = out + self._sum(touched, high, D)
        return touched, out.flatten(1, 2)

    def _sum(self, vs: list[int], us: list[int], D: Tensor) -> Tensor:
        """[n, R, B, T, d] from the differences D [u, R, B, T, d]."""
        a = self.absent[:, vs][:, :, us].to(D.dtype)
        if self.gates is None:
            return torch.einsum("rnu,urbtd->nrbtd", a, D)
        return torch.einsum("rnubt,urbtd->nrbtd", torch.einsum("rnug,gbt->rnubt", a, self.gates), D)


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

    def deltas(self, receivers: range, x: Tensor, senders: Sequence[Tensor]) -> tuple[Sequence[int], Tensor]:
        zero = torch.zeros(len(receivers), *x.shape, dtype=x.dtype, device=x.device, requires_grad=True)

        def held(leaf: Tensor) -> None:
            seen = int(self.graph.allowed[receivers[0]].sum())  # a prefix of the senders
            assert leaf.grad is not None
            for g, gate in enumerate(self.gates):
                own = (leaf.grad * gate[..., None]).flatten(1)
                self.scores[receivers.start : receivers.stop, :seen, g] += (own @ self.D[:seen].flatten(1).T).cpu()
            leaf.grad = None

        zero.register_post_accumulate_grad_hook(held)
        return list(receivers), zero

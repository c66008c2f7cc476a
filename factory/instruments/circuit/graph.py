"""The nodes and edges of a decoder: who adds to the residual stream, who reads it, and who stands before whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sender:
    """What adds to the stream: the ``input`` (embeddings, pictures in place), a ``head``, an ``mlp``, or what the
    decoder ``added`` itself before a block."""

    name: str
    kind: str
    layer: int
    index: int = 0


@dataclass(frozen=True)
class Receiver:
    """What reads the stream: a query head ``q``, a key or value head ``k``, ``v`` (that a group of query heads
    shares), an ``mlp``, or the ``logits``."""

    name: str
    kind: str
    layer: int
    index: int = 0


Edge = tuple[int, int]
"""Receiver and sender, by their places in ``Graph.receivers`` and ``Graph.senders``."""


class Graph:
    """All nodes of a decoder of ``depth`` blocks in the order in which they are computed.

    ``parallel`` blocks' MLPs do not see their own heads; before the blocks ``added`` the decoder adds to the stream; a
    norm over what all heads of a ``coupled`` block add lets each move the others.
    """

    def __init__(
        self,
        depth: int,
        heads: int,
        kv_heads: int,
        parallel: Sequence[bool] = (),
        added: Sequence[int] = (),
        coupled: Sequence[bool] = (),
    ) -> None:
        self.depth, self.heads, self.kv_heads, self.added = depth, heads, kv_heads, tuple(added)
        self.parallel = tuple(parallel) or (False,) * depth
        self.coupled = tuple(coupled) or (False,) * depth
        self.senders: list[Sender] = [Sender("input", "input", 0)]
        self.receivers: list[Receiver] = []
        for i in range(depth):
            self.senders += [Sender(f"added{i}", "added", i)] if i in self.added else []
            self.senders += [Sender(f"a{i}.h{h}", "head", i, h) for h in range(heads)] + [Sender(f"m{i}", "mlp", i)]
            self.receivers += [Receiver(f"a{i}.q{h}", "q", i, h) for h in range(heads)]
            self.receivers += [Receiver(f"a{i}.{p}{g}", p, i, g) for p in "kv" for g in range(kv_heads)]
            self.receivers.append(Receiver(f"m{i}", "mlp", i))
        self.receivers.append(Receiver("logits", "logits", depth))

    def below(self, layer: int) -> int:
        """How many senders come before the heads of block ``layer``."""
        return 1 + layer * (self.heads + 1) + sum(i <= layer for i in self.added)

    @property
    def reading(self) -> int:
        """How many receivers a block has."""
        return self.heads + 2 * self.kv_heads + 1

    def of_layer(self, layer: int) -> int:
        """The first receiver of block ``layer``; of one after the last, the logits."""
        return layer * self.reading

    @cached_property
    def allowed(self) -> Tensor:
        """[V, U] booleans: whether receiver v reads what sender u adds."""
        found = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        for v, r in enumerate(self.receivers):
            found[v, : self.below(min(r.layer, self.depth - 1)) if r.kind != "logits" else len(self.senders)] = True
            if r.kind == "mlp" and not self.parallel[r.layer]:
                start = self.below(r.layer)
                found[v, start : start + self.heads] = True
        return found

    @cached_property
    def seen(self) -> list[int]:
        """By receiver how many senders come before it; it reads them all."""
        return self.allowed.sum(-1).tolist()

    @property
    def edges(self) -> list[Edge]:
        """Every edge, receivers in the order in which they are computed."""
        return [(v, u) for v, u in self.allowed.nonzero().tolist()]

    def rests(self, receiver: int) -> int:
        """How many blocks' attention has been added before a receiver reads."""
        r = self.receivers[receiver]
        return r.layer + (r.kind == "mlp" and not self.parallel[r.layer])

    def name(self, edge: Edge) -> str:
        """SENDER->RECEIVER."""
        return f"{self.senders[edge[1]].name}->{self.receivers[edge[0]].name}"

    def edge(self, name: str) -> Edge:
        """The edge of a name; raises ``KeyError`` for one that there is not."""
        return self._places[name]

    @cached_property
    def _places(self) -> dict[str, Edge]:
        return {self.name(edge): edge for edge in self.edges}

    def feeds(self, receiver: int) -> list[int]:
        """The senders that a receiver is part of: the heads of its group, the MLP; none for the logits."""
        r = self.receivers[receiver]
        if r.kind == "logits":
            return []
        start, group = self.below(r.layer), self.heads // self.kv_heads
        if r.kind == "mlp":
            return [start + self.heads]
        return [start + r.index] if r.kind == "q" else [start + r.index * group + i for i in range(group)]

    def moves(self, receiver: int) -> list[int]:
        """The senders that change with what a receiver reads: those that it feeds, in a coupled block all heads."""
        r = self.receivers[receiver]
        if r.kind in "qkv" and self.coupled[r.layer]:
            start = self.below(r.layer)
            return list(range(start, start + self.heads))
        return self.feeds(receiver)

    def connected(self, kept: Tensor) -> Tensor:
        """``kept`` [V, U] without the edges that lie on no path from an input to the logits."""
        kept = kept & self.allowed
        while True:
            reached = self._reached(kept)
            useful = self._useful(kept)
            pruned = kept & reached[None, :] & useful[:, None]
            if torch.equal(pruned, kept):
                return kept
            kept = pruned

    def _reached(self, kept: Tensor) -> Tensor:
        """[U]: senders that an input reaches."""
        reached = torch.tensor([s.kind in ("input", "added") for s in self.senders])
        for v in range(len(self.receivers)):
            if bool((kept[v] & reached).any()):
                reached[self.feeds(v)] = True
        return reached

    def _useful(self, kept: Tensor) -> Tensor:
        """[V]: receivers whose nodes reach the logits."""
        useful = torch.zeros(len(self.receivers), dtype=torch.bool)
        useful[-1] = True
        for v in reversed(range(len(self.receivers) - 1)):
            useful[v] = any(bool((kept[:, u] & useful).any()) for u in self.feeds(v))
        return useful

"""The ways to find edges (SPEC-2 12.1). A score is the share of the two runs' difference that goes through an edge.

    exact    m(all) - m(without u->v), one edge at a time
    eap      (z_u - z'_u) . dm/dx_v at the clean run, to first order (2310.10348)
    eap_ig   the same with the gradient's mean over inputs z' + (k/n)(z - z'), k = 0 .. n-1 (2403.17806)
    acdc     receivers from the logits down, each incoming edge: exchanged if m changes by less than tau, else restored
             (2304.14997)

m is the mean margin in shares of the difference. From ACDC's code: the order, and that m is that of the edges left.
Ours: the absolute change by default, as the margin of both answers may also rise; and speculation. What lies below a
receiver is that of the clean run, so it is run once. The receiver's candidates are run as rows, each with what is
guessed of those before it, and are used up to the first wrong guess; the rest are run again. What a receiver moves may
reach the logits by no edge that is left: m then stays what it is, and its edges go without a run. A change that lies
within rounding of tau is decided by runs of one row, so that decisions are the one-at-a-time loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import torch
from torch import Tensor

from factory.instruments.circuit.edits import GROUPS

from .ground import Count, Ground, Lower

Order = Literal["reverse", "normal", "random"]
Trying = Callable[[int], Lower | None]
"""The precision in which the edges into a receiver are tried."""
ROUNDING = 1e-5


def full(receiver: int) -> Lower | None:
    """The model's own precision."""
    return None


def exact(ground: Ground, rows: int, trying: Trying = full, by_role: bool = False) -> Tensor:
    """[V, U, 1], or by role [V, U, G]: what is lost with each edge exchanged alone."""
    graph = ground.machine.graph
    groups = len(GROUPS) if by_role else 1
    scores = torch.zeros(*graph.allowed.shape, groups, dtype=torch.float64)
    gates = ground.clean.gates if by_role else None
    for v, r in enumerate(graph.receivers):
        start, low = r.layer, trying(v)
        cells = [(u, g) for u in graph.allowed[v].nonzero()[:, 0].tolist() for g in range(groups)]
        none = torch.zeros(1, *graph.allowed.shape, dtype=torch.bool)
        whole = ground.whole() if low is None else float(ground.shares(none, None, start, low))
        for some in _parts(cells, rows):
            absent = torch.zeros(len(some), *graph.allowed.shape, groups, dtype=torch.bool)
            for row, (u, g) in enumerate(some):
                absent[row, v, u, g] = True
            left = ground.shares(absent if by_role else absent[..., 0], gates, start, low)
            for (u, g), share in zip(some, left.tolist(), strict=True):
                scores[v, u, g] = whole - share
    return scores


def eap(ground: Ground, low: Lower | None = None) -> Tensor:
    """[V, U, G] by role, gradients at the clean run."""
    return ground.attributed(1.0, low=low)


def eap_ig(ground: Ground, steps: int, low: Lower | None = None) -> Tensor:
    """[V, U, G] by role, the mean of the gradients at ``steps`` inputs."""
    return torch.stack([ground.attributed(k / steps, low=low) for k in range(steps)]).mean(0)


def _parts(cells: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for i in range(0, len(cells), size):
        yield cells[i : i + size]


@dataclass
class Decided:
    """What ACDC kept [V, U]; in ``log`` each edge in the order in which it was decided, with m after and before."""

    kept: Tensor
    log: list[tuple[tuple[int, int], float, float, bool]] = field(default_factory=list)
    count: Count = field(default_factory=Count)


@dataclass(frozen=True)
class Rule:
    """When an edge goes: |m' - m| < ``tau``; where not ``absolute``, m - m' < tau."""

    tau: float
    absolute: bool = True

    def goes(self, before: float, after: float) -> bool:
        return (abs(after - before) if self.absolute else before - after) < self.tau

    def close(self, before: float, after: float, rounding: float) -> bool:
        """Whether rounding may decide."""
        change = abs(after - before) if self.absolute else before - after
        return abs(change - self.tau) <= rounding


def acdc(
    ground: Ground,
    rule: Rule,
    rows: int,
    guess: Tensor | None = None,
    order: Order = "reverse",
    trying: Trying = full,
    seed: int = 0,
    whole_forwards: bool = False,
) -> Decided:
    """ACDC's decisions; ``rows`` 1 is the one-at-a-time loop, ``guess`` [V, U] which edges are likely to go.

    ``whole_forwards``: every forward runs all blocks, as the loop without this project would.
    """
    graph, before = ground.machine.graph, ground.count
    ground.count = Count()
    search = _Search(ground, rule, rows, torch.ones_like(graph.allowed) if guess is None else guess, whole_forwards)
    m: float | None = None
    for v in reversed(range(len(graph.receivers))):
        senders = graph.allowed[v].nonzero()[:, 0].tolist()
        senders = senders[::-1] if order == "reverse" else senders
        if order == "random":
            Random(f"{seed}/{v}").shuffle(senders)
        low = trying(v)
        search.at(v, low)
        if m is None or (low is not None and not search.spares):
            m = search.alone(search.absent)
        m = search.decide(senders, m)
    done, ground.count = ground.count, before
    return Decided(graph.allowed & ~search.absent, search.log, done)


class _Search:
    """The state of one search: which edges are ``absent`` so far."""

    def __init__(self, ground: Ground, rule: Rule, rows: int, guess: Tensor, whole_forwards: bool) -> None:
        self.ground, self.rule, self.rows, self.guess, self.whole = ground, rule, rows, guess, whole_forwards
        self.absent = torch.zeros_like(ground.machine.graph.allowed)
        self.log: list[tuple[tuple[int, int], float, float, bool]] = []
        self.width = rows
        largest = float(ground.margin(ground.clean.hidden).abs().max()) / abs(ground.gap)
        self.rounding = ROUNDING * max(1.0, largest)
        self.v, self.start = 0, 0
        self.low: Lower | None = None
        self.reaching = torch.zeros(len(self.absent), dtype=torch.bool)

    def at(self, v: int, low: Lower | None) -> None:
        """Go on to a receiver; all above it are decided."""
        graph = self.ground.machine.graph
        self.v, self.low = v, low
        self.start = 0 if self.whole else graph.receivers[v].layer
        left = (graph.allowed & ~self.absent)[self.reaching][:, graph.moves(v)]
        self.reaching[v] = graph.receivers[v].kind == "logits" or bool(left.any())

    @property
    def spares(self) -> bool:
        """Whether nothing that is read here reaches the logits, so that no edge need be run; the loop runs all."""
        return self.rows > 1 and self.rule.tau > self.rounding and not self.reaching[self.v]

    def run(self, masks: Tensor) -> list[float]:
        return self.ground.shares(masks, None, self.start, self.low).tolist()

    def alone(self, mask: Tensor) -> float:
        return self.run(mask[None])[0]

    def with_edge(self, u: int) -> Tensor:
        mask = self.absent.clone()
        mask[self.v, u] = True
        return mask

    def decide(self, senders: Sequence[int], m: float) -> float:
        """Decide the edges from some senders into the receiver; returns m of what is left."""
        if self.spares:
            self.absent[self.v, list(senders)] = True
            self.log += [((self.v, u), m, m, True) for u in senders]
            self.ground.count.spared += len(senders)
            return m
        i = 0
        while i < len(senders):
            chain = senders[i : i + self.width]
            used, m, right = self._used(chain, self._tried(chain), m)
            i += used
            self.ground.count.again += len(chain) - used
            self.width = min(self.rows, self.width * 2) if right else max(1, self.width // 2)
        return m

    def _tried(self, chain: Sequence[int]) -> list[float]:
        """m of each candidate, with those before it as they are guessed."""
        state, masks = self.absent.clone(), []
        for u in chain:
            trial = state.clone()
            trial[self.v, u] = True
            masks.append(trial)
            state[self.v, u] = bool(self.guess[self.v, u])
        return self.run(torch.stack(masks))

    def _used(self, chain: Sequence[int], tried: Sequence[float], m: float) -> tuple[int, float, bool]:
        """How many of the candidates are decided, m then, and whether every guess was right."""
        for n, (u, after) in enumerate(zip(chain, tried, strict=True), 1):
            if len(tried) > 1 and self.rule.close(m, after, self.rounding):
                m, after = self.alone(self.absent), self.alone(self.with_edge(u))
            gone = self.rule.goes(m, after)
            self.log.append(((self.v, u), after, m, gone))
            if gone:
                self.absent[self.v, u] = True
                m = after
            if gone != bool(self.guess[self.v, u]):
                return n, m, False
        return len(chain), m, True

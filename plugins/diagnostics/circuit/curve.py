"""How much of a model's difference a circuit keeps by itself, on prompts that it was not found on.

    f(C) = (m(C) - m(nothing)) / (m(all) - m(nothing))
    CPR = integral of f(C_k) dk    CMD = integral of |1 - f(C_k)| dk      over the share k of edges (MIB, 2504.13151)

C_k holds the k edges with the largest score (CPR) or the largest |score| (CMD), less those on no path. Trapezoids over
the shares that are measured, 0 among them. Ours: an edge counts as one, MIB weighs edges by the size of their node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor

from factory.instruments.circuit.graph import Graph

from .ground import Ground


def faithfulness(ground: Ground, kept: Sequence[Tensor], rows: int) -> list[float]:
    """f of each circuit ``kept`` [V, U]."""
    graph, out = ground.machine.graph, []
    absent = [graph.allowed & ~graph.connected(k) for k in kept]
    empty = float(ground.shares(graph.allowed[None])[0])
    for i in range(0, len(absent), rows):
        out += (ground.shares(torch.stack(absent[i : i + rows])) - empty).tolist()
    return out


def top(graph: Graph, scores: Tensor, n: int) -> Tensor:
    """[V, U] booleans: the ``n`` edges with the largest of ``scores`` [V, U]; among equal ones the first."""
    values = scores[graph.allowed]
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:n]] = True
    kept = torch.zeros_like(graph.allowed)
    kept[graph.allowed] = chosen
    return kept


def at_random(graph: Graph, n: int, seed: str) -> Tensor:
    """[V, U] booleans: ``n`` random edges."""
    kept = torch.zeros_like(graph.allowed)
    for edge in Random(seed).sample(graph.edges, n):
        kept[edge] = True
    return kept


def sizes(graph: Graph, shares: Sequence[float]) -> Iterator[tuple[float, int]]:
    """Each share of the edges and how many edges that are, at least one."""
    for share in shares:
        yield share, min(len(graph.edges), max(1, round(share * len(graph.edges))))


def area(shares: Sequence[float], values: Sequence[float], of_nothing: float) -> float:
    """The integral over shares of edges from 0, where the value is ``of_nothing``, by trapezoids."""
    xs, ys = [0.0, *shares], [of_nothing, *values]
    return sum((b - a) * (p + q) / 2 for a, b, p, q in zip(xs, xs[1:], ys, ys[1:], strict=False))

"""What edges are tried on: pairs of runs, traced once, and the share of their difference that a variant keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from factory.errors import UserError
from factory.instruments.circuit.edits import GROUPS, Trace
from factory.instruments.circuit.machine import Machine
from factory.instruments.circuit.passes import Arithmetic
from factory.instruments.instructed import padded
from factory.instruments.lens import dictionary_logits
from factory.model.encode import Batch
from factory.model.view import ModelView

from .pairs import Exchanged, Twin


@dataclass
class Count:
    """What was run: calls of the decoder (``forwards``), variants in them (``rows``), and ``blocks`` run for a variant
    altogether; ``again``: variants run a second time; ``spared``: edges decided without a run."""

    forwards: int = 0
    rows: int = 0
    blocks: int = 0
    again: int = 0
    spared: int = 0


@dataclass
class Ground:
    """Prompts with their ``clean`` and ``other`` run. ``gap``: mean margin of the clean run less the other's."""

    view: ModelView
    machine: Machine
    comply: Tensor
    compete: Tensor
    clean: Trace
    other: Trace
    gap: float = 1.0
    count: Count = field(default_factory=Count)

    def margin(self, hidden: Tensor) -> Tensor:
        """M [..., B]: the largest logit of the picture's answer less that of the text's, of states [..., B, d]."""
        by_prompt = hidden.movedim(-2, 0)[:, None] if hidden.ndim == 2 else hidden.movedim(-2, 0)
        vision, text = (dictionary_logits(self.view, by_prompt, ids).amax(-1) for ids in (self.comply, self.compete))
        found = (vision - text).movedim(0, -1)
        return found[0] if hidden.ndim == 2 else found

    def shares(
        self, absent: Tensor, gates: Tensor | None = None, start: int | None = None, low: Lower | None = None
    ) -> Tensor:
        """[R]: the mean margin of variants in shares of the gap; 1 apart between the two runs. ``start``: as
        ``Machine.exchanged``."""
        clean, other = (self.clean, self.other) if low is None else (low.clean, low.other)
        how = None if low is None else low.arithmetic
        if start is None:
            start = self.machine.first_changed(absent)
        hidden = self.machine.exchanged(clean, other, absent, gates, how, start)
        self.count.forwards += 1
        self.count.rows += len(absent)
        self.count.blocks += len(absent) * (self.view.depth - start)
        return self.margin(hidden).double().mean(-1).cpu() / self.gap

    def whole(self) -> float:
        """The share of the clean run."""
        return float(self.margin(self.clean.hidden).double().mean()) / self.gap

    def attributed(self, share: float, by_group: bool = True, low: Lower | None = None) -> Tensor:
        """[V, U, G]: minus the first-order change of the share when an edge is exchanged, gradients at ``share``."""
        clean, other = (self.clean, self.other) if low is None else (low.clean, low.other)
        how = None if low is None else low.arithmetic
        gates = clean.gates if by_group else None
        self.count.forwards += 1
        self.count.rows += 1
        self.count.blocks += self.view.depth
        return -self.machine.attributed(clean, other, self.margin, gates, share, how) / self.gap


@dataclass(frozen=True)
class Lower:
    """Both runs in a lower precision, and the arithmetic of the next ones."""

    clean: Trace
    other: Trace
    arithmetic: Arithmetic


def ground(view: ModelView, found: Sequence[Twin], how: Exchanged, machine: Machine | None = None) -> Ground:
    """Trace pairs of runs. Raises ``UserError`` where the exchange moves no margin, and for a model that is not
    understood as a graph."""
    clean = view.encode([t.clean for t in found])
    machine = machine or Machine(view, clean)
    comply, compete = (padded([getattr(t.answers, name) for t in found], view) for name in ("comply", "compete"))
    made = Ground(view, machine, comply, compete, machine.trace(clean), machine.trace(clean))
    made.other = other_run(made, found, how, made.clean, None)
    ends = [float(made.margin(run.hidden).double().mean()) for run in (made.clean, made.other)]
    made.gap = ends[0] - ends[1]
    if abs(made.gap) < 1e-6 * max(1.0, abs(ends[0])):
        raise UserError(
            f"circuit: with '{how}' exchanged the margin stays what it is ({ends[0]:.4g}): nothing carries it"
        )
    return made


def other_run(
    made: Ground, found: Sequence[Twin], how: Exchanged, clean: Trace, arithmetic: Arithmetic | None
) -> Trace:
    """The run that edges are exchanged for, in the clean run's precision."""
    if how in ("picture", "context"):
        batch: Batch = made.view.encode([t.corrupted for t in found if t.corrupted is not None])
        return made.machine.trace(batch, arithmetic)
    values = torch.zeros_like(clean.values) if how == "zero" else means(clean)
    run = replace(clean, values=values)
    every = made.machine.graph.allowed[None]
    return replace(run, hidden=made.machine.exchanged(clean, run, every, None, arithmetic, 0)[0])


def means(run: Trace) -> Tensor:
    """[U, B, T, d]: each sender's mean over all prompts' tokens of the same group."""
    out = torch.zeros_like(run.values)
    for gate in run.gates:
        n = int(gate.sum())
        if n:
            out[:, gate] = run.values[:, gate].mean(1, keepdim=True).expand(-1, n, -1)
    return out


def in_precision(made: Ground, found: Sequence[Twin], how: Exchanged, arithmetic: Arithmetic) -> Lower:
    """Both runs of a ground in a lower precision."""
    clean = made.machine.trace(made.clean.batch, arithmetic)
    return Lower(clean, other_run(made, found, how, clean, arithmetic), arithmetic)


ROLES = GROUPS

"""What is asked side by side on the prompts of one draw, and the choice among it made on dev."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from factory.bench import asked_forms
from factory.data.sample import ConflictSample
from factory.faults import concerning
from factory.run.methods.cells import outcomes, trunk_of
from factory.run.methods.choose import Choice, choose
from factory.run.methods.study import Study
from factory.steer import Context, Steerer
from factory.steer.base import Direction, Tensors
from factory.steer.runtime import Steering
from factory.steer.sweep import run_cell

OUTCOMES = ("follow", "compete", "flags", "other", "error")
NONE, NULL, LEARNED, OWN, SHUFFLED = "plain", "null", "learned", "own", "shuffled"
FAMILIES = (NONE, NULL, LEARNED, OWN, SHUFFLED)
"""The model as it is; the null; other variants, fitted; the null scaled by each prompt's own number; other variants
fitted on shuffled numbers."""

Answers = dict[str, Tensor]
"""By entrant and strength the number of each sample's outcome [n], uint8."""


@dataclass(frozen=True)
class Entrant:
    """A variant toward a direction. ``steering(rows, strength)`` steers the prompts of these rows of a split."""

    direction: Direction
    family: str
    variant: str
    strengths: tuple[float, ...]
    steering: Callable[[slice, float], Steering | None]

    def key(self, strength: float) -> str:
        return f"{self.direction}/{self.family}/{self.variant}/{strength:g}"


def entrants_answers(
    study: Study, samples: Sequence[ConflictSample], rows: slice, entrants: Iterable[Entrant]
) -> Answers:
    """The outcomes of some samples, whose prompts are these ``rows`` of their split, under each entrant."""
    asked, bench, found = asked_forms(study.bench, samples), study.bench, dict[str, Tensor]()
    trunk = trunk_of(bench, asked)
    for entrant in entrants:
        for strength in entrant.strengths:
            with concerning(f"{entrant.family} {entrant.variant} toward {entrant.direction}"):
                steering = entrant.steering(rows, strength)
                tokens = run_cell(bench.view, trunk, steering, bench.max_new_tokens, bench.among)
            named = outcomes(bench, asked, tokens, entrant.direction)
            found[entrant.key(strength)] = torch.tensor([OUTCOMES.index(o) for o in named], dtype=torch.uint8)
    return found


def chosen(entrants: Sequence[Entrant], dev: Answers, budget: float) -> dict[tuple[str, str], Choice]:
    """Of each family toward each direction the variant and strength that follow most within an error ``budget``, as
    ``choose`` has it for methods."""
    rows = [
        {
            "method": e.family,
            "direction": e.direction,
            "variant": e.variant,
            "strength": None if e.family == NONE else strength,
            "outcome": OUTCOMES[o],
        }
        for e in entrants
        for strength in e.strengths
        for o in dev[e.key(strength)].tolist()
    ]
    return {(c.direction, c.method): c for c in choose(rows, budget, NONE)}


def chosen_entrants(entrants: Sequence[Entrant], choices: Mapping[tuple[str, str], Choice]) -> list[Entrant]:
    """The chosen ones at their chosen strengths, and those that have no strength."""
    found = []
    for e in entrants:
        choice = choices.get((e.direction, e.family))
        if e.family == NONE:
            found.append(e)
        elif choice and choice.variant == e.variant:
            found.append(replace(e, strengths=(choice.strength,)))
    return found


class Displaced(Steerer):
    """A model whose block gives h + shift g(h) for h, and a method that steers it, as one: with its vector from the
    displaced state, ``shift g(h) + alpha delta(h + shift g(h))``. Both vectors are read from the prompt's last token.

    ``null`` and ``known`` give g, ``shift`` [prompts] is each prompt's own, ``alpha`` a number or [prompts].
    """

    def __init__(self, null: Steerer, known: Tensors, shift: Tensor, method: Steerer, alpha: float | Tensor) -> None:
        super().__init__(method.params)
        self.null, self.known, self.shift, self.method, self.alpha = null, known, shift, method, alpha

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        moved = displaced(h, self.shift.to(h.device), self.null, self.known, ctx)
        alpha = torch.as_tensor(self.alpha, device=h.device).expand(len(h))[:, None]
        return moved - h + alpha * self.method.delta(moved, state, ctx)


def displaced(h: Tensor, shift: Tensor, null: Steerer, known: Tensors, ctx: Context) -> Tensor:
    """h + shift g(h) [n, d]."""
    return h + shift[:, None] * null.delta(h, {k: v.to(h.device) for k, v in known.items()}, ctx)

"""What the numbers say: paired comparisons with the reference method, and a summary in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval_suite.report.rows import (
    Cell,
    Group,
    Predictions,
    groups,
    is_oracle,
    percent,
    strength_text,
    target,
)
from factory.statistics.intervals import PairedDifference, paired_difference

_VERDICTS = {"higher": "follows more", "lower": "follows less", "undecided": "no clear difference"}


@dataclass(frozen=True)
class Comparison:
    """One method minus the reference on the same samples, each at its reported strength.

    ``control`` is the method's random control where the method does not follow more often than that: what the method
    is said to do then shows nothing of it.
    """

    group: Group
    direction: str | None
    method: str
    reference: str
    follow: PairedDifference
    error: PairedDifference
    control: str | None = None

    @property
    def verdict(self) -> str:
        if self.control is not None:
            return f"none: {self.control} does as well"
        return _VERDICTS[self.follow.verdict]


def comparisons(results: Mapping, predictions: Predictions) -> tuple[list[Comparison], list[str]]:
    """Every method against the reference (the unsteered model where that was not scored), and what could not be.

    An oracle is left out: it uses the labels.
    """
    found, notes = [], []
    for group in groups(results):
        for direction in group.directions:
            reference = _reference(group, direction)
            against = _outcomes(group, direction, reference, predictions) if reference else []
            if not reference or not against:
                notes.append(
                    f"{group.title()}, towards {target(direction, 'no direction')}: no paired comparison, because"
                    " there are no per-sample predictions of a reference method."
                )
                continue
            for method in group.methods(direction):
                if method == reference or is_oracle(method):
                    continue
                own = _outcomes(group, direction, method, predictions)
                try:
                    pair = [paired_difference(own, against, outcome) for outcome in ("follow", "error")]
                except ValueError as problem:
                    notes.append(
                        f"{group.title()}, towards {target(direction, 'no direction')}, {method} against {reference}: "
                        f"not compared ({problem})."
                    )
                    continue
                equal = _equal_control(group, direction, method, predictions)
                found.append(Comparison(group, direction, method, reference, pair[0], pair[1], equal))
    return found, notes


def _equal_control(group: Group, direction: str | None, method: str, predictions: Predictions) -> str | None:
    """The method's random control, unless the method follows clearly more often, or the two cannot be compared."""
    control = group.controls.get(method)
    if control is None or control not in group.methods(direction):
        return None
    own, random = (_outcomes(group, direction, label, predictions) for label in (method, control))
    try:
        return None if paired_difference(own, random, "follow").verdict == "higher" else control
    except ValueError:  # no sample in common
        return None


def _reference(group: Group, direction: str | None) -> str | None:
    return next((m for m in (group.reference, group.unsteered) if m in group.methods(direction)), None)


def _outcomes(group: Group, direction: str | None, method: str, predictions: Predictions) -> list[Mapping]:
    choice = group.choice(direction, method)
    if choice is None:
        return []
    return group.predictions(predictions, direction, method, choice.strength, group.scored_split)


def summarise(results: Mapping, compared: Sequence[Comparison], budget: float | None = None) -> list[str]:
    """One short passage per table of modality preference: who follows best, at what error, and whether that beats the
    reference.
    """
    found = groups(results)
    passages = []
    for group in found:
        for direction in group.directions:
            text = _passage(group, direction, compared, budget)
            where = f" on {group.title()}" if len(found) > 1 else ""
            passages.append(f"Towards {target(direction, 'no direction')}{where}: {text}")
    return passages


def _passage(group: Group, direction: str | None, compared: Sequence[Comparison], budget: float | None) -> str:
    methods = [m for m in group.methods(direction) if not is_oracle(m)]
    cells = {m: cell for m in methods if (cell := group.reported(direction, m)) is not None}
    if not cells:
        return "no total was measured."
    best = max(cells, key=lambda m: cells[m].value)
    parts = [_best_sentence(group, direction, best, cells[best], budget)]
    if group.unsteered in cells and best != group.unsteered:
        parts.append(f"The unsteered model follows on {percent(cells[group.unsteered].value)} %.")
    if best == group.unsteered and len(cells) > 1:
        parts.append("No method does better than leaving the model alone.")
    here = {c.method: c for c in compared if c.direction == direction and _same(c.group, group)}
    reference = _reference(group, direction)
    steered = [m for m in cells if _is_steered(group, direction, m)]
    if best == reference and reference != group.unsteered:
        parts.append(_runner_up(reference, cells, here, steered))
    elif best in here:
        parts.append(_verdict_sentence(here[best]))
    if group.reference is not None and group.reference not in cells and len(cells) > 1:
        parts.append(f"{group.reference} was not scored, so nothing is compared with it.")
    top = max(steered, key=lambda m: cells[m].value, default=None)
    if top is not None and best not in steered and best != group.unsteered:
        parts.append(
            f"{best} changes the prompt only; the best steering method is {top} with {percent(cells[top].value)} %."
        )
        if top in here:
            parts.append(_verdict_sentence(here[top]))
    return " ".join(parts)


def _same(a: Group, b: Group) -> bool:
    return (a.benchmark, a.protocol, a.scorer, a.seed) == (b.benchmark, b.protocol, b.scorer, b.seed)


def _is_steered(group: Group, direction: str | None, method: str) -> bool:
    choice = group.choice(direction, method)
    return method != group.unsteered and choice is not None and choice.strength is not None


def _best_sentence(group: Group, direction: str | None, best: str, cell: Cell, budget: float | None) -> str:
    error = group.reported(direction, best, "error")
    choice = group.choice(direction, best)
    name = "the unsteered model" if best == group.unsteered else best
    at = f" at strength {strength_text(choice.strength)}" if choice and choice.strength is not None else ""
    count = f" {cell.n}" if cell.n else ""
    text = f"{name} follows most often, on {percent(cell.value)} % of{count} {group.scored_split or ''} samples"
    text = text.replace("  ", " ") + (f" ({_interval(cell)})" if cell.low is not None else "") + at
    if error is None:
        return text + "; its errors were not measured."
    text += f", with {percent(error.value)} % errors"
    if budget is not None and error.value > budget:
        text += f", which is over the budget of {percent(budget)} %"
    return text + "."


def _interval(cell: Cell) -> str:
    return f"95 % interval {percent(cell.low)} to {percent(cell.high)}"


def _verdict_sentence(comparison: Comparison) -> str:
    d, name = (
        comparison.follow,
        "the unsteered model" if comparison.reference == comparison.group.unsteered else comparison.reference,
    )
    text = (
        f"Against {name} on the same {d.n} samples that is {percent(d.difference, signed=True)} points (paired "
        f"95 % interval {percent(d.low, signed=True)} to {percent(d.high, signed=True)})"
    )
    if comparison.control is not None:
        return (
            f"{text}; its random control {comparison.control} does as well: this says nothing of {comparison.method}."
        )
    text += {
        "higher": f": {comparison.method} beats {name}",
        "lower": f": {comparison.method} falls short of {name}",
        "undecided": f", {_why_undecided(d)}: this run does not show that {comparison.method} beats {name}",
    }[d.verdict]
    if d.verdict == "higher" and comparison.error.verdict == "higher":
        text += f", at {percent(comparison.error.difference, signed=True)} points of errors"
    return text + "."


def _why_undecided(d: PairedDifference) -> str:
    if d.low <= 0 <= d.high:
        return "which contains zero"
    return f"but too few samples differ (McNemar's exact p = {d.p:.2g})"


def _runner_up(reference: str, cells: Mapping[str, Cell], here: Mapping[str, Comparison], steered: list[str]) -> str:
    rivals = [m for m in steered if m != reference]
    if not rivals:
        return f"No other steering method ran beside {reference}."
    second = max(rivals, key=lambda m: cells[m].value)
    text = (
        f"No method follows more often than {reference}; the closest, {second}, reaches "
        f"{percent(cells[second].value)} %"
    )
    if second in here:
        d = here[second].follow
        text += (
            f", {percent(d.difference, signed=True)} points (paired 95 % interval "
            f"{percent(d.low, signed=True)} to {percent(d.high, signed=True)})"
        )
    return text + "."

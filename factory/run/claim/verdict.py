"""What a claim's numbers say, in plain words: the verdict first, then the control, the predictors, and all tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from factory.data.sources import in_words
from factory.diagnose.summary import Cell, Finding, Summary, Table
from factory.recipe.sections.claim import ClaimSpec
from factory.run.claim.draw import Scored
from factory.run.claim.entrants import LEARNED, OWN, SHUFFLED
from factory.run.claim.figures import forest, planted_curve, predictor_forest
from factory.run.claim.numbers import Against, Looked, Telling, pooled, single, tellings

AGAINST = (
    *("scoring", "toward", "against the null", "n", "null follows", "difference", "low", "high", "p", "corrected p"),
    *("80 % power for", "errors", "errors low", "errors high", "verdict"),
)
TOLD = ("scoring", "toward", "predictor", "event", "n", "of these", "AUROC", "low", "high", "p", "corrected p")


def summaries(
    spec: ClaimSpec, label: str, tests: Sequence[Scored], planted: Sequence[Scored], looked: Looked
) -> list[Summary]:
    """The claim's own section, which leads, then those of the control and of the predictors."""
    whole, each, control = pooled(tests), single(tests), single(planted)
    found = [_claim(spec, label, tests, whole, each, control)]
    if planted:
        found.append(_control(spec, control))
    if told := tellings(tests, looked):
        found.append(_predictors(spec, told))
    return found


def _claim(
    spec: ClaimSpec,
    label: str,
    tests: Sequence[Scored],
    whole: Sequence[Against],
    each: Sequence[Against],
    control: Sequence[Against],
) -> Summary:
    draws, seeds = len({t.draw for t in tests}), len({t.seed for t in tests})
    said = [Finding(*_verdict(spec, label, whole, control))]
    for a in whole:
        own = [c for c in each if (c.family, c.direction, c.scoring) == (a.family, a.direction, a.scoring)]
        text = (
            f"{_named(a, spec)}: {_points(a.difference)} points of following [{_points(a.low)}, {_points(a.high)}]"
            f" beside {spec.null}'s {100 * a.null:.1f} %, {a.n:,} samples of {draws} draw(s), mean of {seeds} seed(s);"
            f" so many would have shown {100 * a.detectable:.1f} points with 80 % power; errors {_points(a.error)}"
            f" [{_points(a.error_low)}, {_points(a.error_high)}]; of {len(own)} single tests"
            f" {sum(c.wins for c in own)} win, {sum(c.loses for c in own)} lose; p {a.p:.2g}, corrected"
            f" {a.adjusted:.2g}"
        )
        said.append(Finding(text, a.wins, _record(a)))
    columns = ("draw", "seed", "variant", "strength", "null's strength", "dev", *AGAINST)
    rows = tuple((*(c.about[k] for k in CHOSEN), *_row(c)) for c in each)
    tables = (
        Table("pooled", "Against the null, all draws and seeds", AGAINST, tuple(_row(a) for a in whole)),
        Table("single", "Each draw and seed by itself, as dev chose", columns, rows),
    )
    figures = (forest(whole, each, spec.null),) if whole else ()
    return Summary(f"Does {label} beat {spec.null}?", tuple(said), tables, figures, leads=True).under("claim")


CHOSEN = ("draw", "seed", "variant", "strength", "null_strength", "dev")


def _verdict(spec: ClaimSpec, label: str, whole: Sequence[Against], control: Sequence[Against]) -> tuple[str, bool]:
    """The verdict in plain words, and whether the claim holds: in every scoring and direction."""
    learned, own = ([a for a in whole if a.family == family] for family in (LEARNED, OWN))
    wins, found = [a for a in learned if a.wins], [a for a in control if a.family == LEARNED and a.wins]
    where = "; ".join(f"toward {in_words(a.direction)}, {a.scoring}: {_points(a.difference)} points" for a in wins)
    if len(wins) == len(learned):
        text = f"Yes: the best variant of {label} other than {spec.null} beats it at equal error everywhere ({where})."
    elif wins:
        text = (
            f"In part: {len(wins)} of {len(learned)} tests say that a variant of {label} other than {spec.null} beats"
            f" it at equal error ({where})."
        )
    else:
        text = (
            f"{'No' if found else 'Not shown'}: no variant of {label} other than {spec.null} beats it at equal error,"
            f" in any scoring or direction ({len(learned)} tests, {sum(a.loses for a in learned)} of them say it is"
            f" worse). A gain of {100 * max(a.detectable for a in learned):.1f} points would have been found with 80 %"
            " power in each."
        )
    text += (
        f" {spec.null} scaled by each sample's own measured {spec.share}, with nothing learned wrong, wins in"
        f" {sum(a.wins for a in own)} of {len(own)}."
    )
    return f"{text} {_control_said(control)}", len(wins) == len(learned)


def _control_said(control: Sequence[Against]) -> str:
    """What the planted effects show of the test itself."""
    learned, mixed = ([a for a in control if a.family == family] for family in (LEARNED, SHUFFLED))
    if not learned:
        return "No effect was planted, so nothing shows that the test could have found one."
    said = []
    for d in dict.fromkeys(a.direction for a in learned):
        sizes = {a.about["effect"]: a.wins for a in learned if a.direction == d}
        found, lost = (", ".join(f"{e:g}" for e, won in sizes.items() if won is is_found) for is_found in (True, False))
        said.append(f"toward {in_words(d)} found at {found or 'no size'}, lost at {lost or 'no size'}")
    able = "" if any(a.wins for a in learned) else " So the test decides nothing."
    return (
        f"The same effect, planted in sizes: {'; '.join(said)}; with shuffled numbers it is found in"
        f" {sum(a.wins for a in mixed)} of {len(mixed)}.{able}"
    )


def _control(spec: ClaimSpec, control: Sequence[Against]) -> Summary:
    said = []
    for a in (a for a in control if a.family != OWN):
        text = (
            f"effect {a.about['effect']:g}, {_named(a, spec)}: {_points(a.difference)} points [{_points(a.low)},"
            f" {_points(a.high)}] beside {spec.null}'s {100 * a.null:.1f} %, {a.n:,} samples; {a.about['variant']} at"
            f" {a.about['strength']:g}; p {a.p:.2g}, corrected {a.adjusted:.2g}"
        )
        said.append(Finding(text, a.wins if a.family != SHUFFLED else not a.wins, _record(a)))
    columns = ("effect", *("draw", "seed", "variant", "strength", "null's strength", "dev"), *AGAINST)
    rows = tuple((a.about["effect"], *(a.about[k] for k in CHOSEN), *_row(a)) for a in control)
    title = f"A planted effect: models in which what a prompt needs depends on {spec.share}"
    tables = (Table("planted", "Against the null, planted", columns, rows),)
    return Summary(title, tuple(said), tables, (planted_curve(control, spec.null),)).under("claim")


def _predictors(spec: ClaimSpec, told: Sequence[Telling]) -> Summary:
    every, by_task = ([t for t in told if (t.task == "all") == of_all] for of_all in (True, False))
    said = []
    for name, some in (("pooled over tasks", every), ("within single tasks", by_task)):
        sure = [t for t in some if t.adjusted is not None and t.adjusted < 0.05]
        best = max(some, key=lambda t: abs(t.auroc.value - 0.5), default=None)
        strongest = f"; the farthest from 0.5: {_auroc(best)}" if best else ""
        said.append(
            Finding(
                f"{name}: {len(sure)} of {len(some)} AUROCs differ from 0.5 once corrected for their number{strongest}",
                None,
                {"tried": len(some), "differ": len(sure)},
            )
        )
    for scoring, direction, event in dict.fromkeys((t.scoring, t.direction, t.event) for t in every):
        own = [t for t in every if (t.scoring, t.direction, t.event) == (scoring, direction, event)]
        low, high = min(own, key=lambda t: t.auroc.value), max(own, key=lambda t: t.auroc.value)
        text = (
            f"{event} toward {in_words(direction)}, {scoring}: {own[0].predictor} {_number(own[0])}; of {len(own)} ways"
            f" of measuring from {_number(low)} ({low.predictor}) to {_number(high)} ({high.predictor})"
        )
        said.append(Finding(text, None, {"tried": len(own)}))
    tables = (
        Table("predictors", "What each way of measuring tells, all tasks", TOLD, tuple(map(_told, every))),
        Table(
            "predictors-by-task",
            "The same within each task",
            ("task", *TOLD),
            tuple((t.task, *_told(t)) for t in by_task),
        ),
    )
    title = f"Does {spec.share} tell which samples {spec.null} turns (flips) or spoils (breaks)?"
    return Summary(title, tuple(said), tables, (predictor_forest(every),) if every else ()).under("claim")


def record(tests: Sequence[Scored], planted: Sequence[Scored]) -> dict[str, Any]:
    """What results.json keeps of the tests, and the choices that dev made."""
    of = lambda some: [_record(a) for a in some]
    return {"pooled": of(pooled(tests)), "single": of(single(tests)), "planted": of(single(planted))}


def _record(a: Against) -> dict[str, Any]:
    return {**asdict(a), "about": dict(a.about), "verdict": a.verdict}


def _named(a: Against, spec: ClaimSpec) -> str:
    what: Mapping[str, str] = {
        LEARNED: "the best other variant",
        OWN: f"{spec.null} scaled by each sample's own {spec.share}",
        SHUFFLED: "the best other variant of shuffled numbers",
    }
    return f"toward {in_words(a.direction)}, {a.scoring}, {what[a.family]}"


def _row(a: Against) -> tuple[Cell, ...]:
    numbers = (a.n, a.null, a.difference, a.low, a.high, a.p, a.adjusted, a.detectable, a.error, a.error_low)
    return (a.scoring, in_words(a.direction), a.family, *numbers, a.error_high, a.verdict)


def _told(t: Telling) -> tuple[Cell, ...]:
    low, high = t.auroc.interval or (None, None)
    about = (t.scoring, in_words(t.direction), t.predictor, t.event, t.n, t.events)
    return (*about, t.auroc.value, low, high, t.auroc.p, t.adjusted)


def _number(t: Telling) -> str:
    low, high = t.auroc.interval or (float("nan"), float("nan"))
    return f"{t.auroc.value:.2f} [{low:.2f}, {high:.2f}]"


def _auroc(t: Telling) -> str:
    task = "" if t.task == "all" else f", {t.task}"
    return f"{t.predictor}, {t.event} toward {in_words(t.direction)}, {t.scoring}{task} {_number(t)}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"

"""What the influences say: who adds and who takes, and how that stands against training again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from factory.diagnose.profiles import matching
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.statistics.association import Interval, auroc, bootstrap, interval, spearman
from factory.train.influence import Standing

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Influences

Rows = Sequence[Mapping[str, Any]]
ORDER = ("total", "frozen", "plain", "trajectory", "dattri.explicit", "dattri.cg")
SHOWN = 10  # of the prompts that add most, and of those that take most


class Measured(NamedTuple):
    """A number with its 95 % interval, None where there is none."""

    value: float
    between: Interval | None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + (f" [{self.between[0]:.2f}, {self.between[1]:.2f}]" if self.between else "")

    def facts(self, name: str) -> dict[str, Any]:
        low, high = self.between or (None, None)
        return {name: self.value, f"{name}_low": low, f"{name}_high": high}


def summarise(rows: Rows, params: Influences.Params) -> Summary:
    findings, tables, figures = [], [], []
    for direction in params.directions:
        own = _Told(matching(rows, direction=direction), params, direction)
        findings += own.findings()
        tables += own.tables()
        figures += own.figures()
    title = f"Which training prompts did it: influence on {params.trained}"
    return Summary(title, tuple(findings), tuple(tables), tuple(figures))


class _Told:
    """The rows of one direction."""

    def __init__(self, rows: Rows, params: Influences.Params, direction: str) -> None:
        self.params, self.direction = params, direction
        self.by: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
        for row in rows:
            self.by.setdefault(row["metric"], {})[row["sample"], row["form"]] = row
        self.groups: dict[str, dict[str, float]] = {r["group"]: {} for r in rows if r["group"]}
        for row in rows:
            if row["group"]:
                self.groups[row["group"]][row["metric"].removeprefix("group.")] = row["value"]
        self.lost = [name for name, group in self.groups.items() if not np.isfinite(group["adds"])]
        self.groups = {name: group for name, group in self.groups.items() if name not in self.lost}
        self.forms = [form for form in ORDER if form in self.by]
        self.what = "margin" if params.score == "margin" else "error"
        self.unit = " nats" if params.score == "margin" else ""

    def values(self, metric: str) -> dict[tuple[str, str], float]:
        return {key: row["value"] for key, row in self.by.get(metric, {}).items() if np.isfinite(row["value"])}

    def once(self, metric: str) -> float:
        return next(iter(self.values(metric).values()), float("nan"))

    def paired(self, a: str, b: str) -> np.ndarray:
        """Two metrics [2, n] of the prompts that have both."""
        x, y = self.values(a), self.values(b)
        keys = [key for key in y if key in x]
        return np.array([[x[key] for key in keys], [y[key] for key in keys]]).reshape(2, len(keys))

    def findings(self) -> list[Finding]:
        found = [self._lead(), *self._warned(), self._left_out(), self._linear()]
        found += [self._planted(), self._removed(), self._edited()]
        return [f for f in found if f is not None]

    def _lead(self) -> Finding:
        adds = self.values(self.forms[0])
        most, least = max(adds, key=adds.__getitem__), min(adds, key=adds.__getitem__)
        up = sum(value > 0 for value in adds.values())
        toward = f" of the answers toward {self.direction}" if self.params.score == "margin" else ""
        text = (
            f"{up} of {len(adds)} training prompts raise the {self.what}{toward} on dev prompts, the others lower it:"
            f" {most[0]} adds most ({adds[most]:+.3g}{self.unit}), {least[0]} takes most"
            f" ({adds[least]:+.3g}{self.unit}; the {self.what} is {self.once('score'):.3g})"
        )
        values = {"raise": up, "n": len(adds), "most": adds[most], "least": adds[least], "score": self.once("score")}
        return Finding(text, None, values)

    def _warned(self) -> list[Finding]:
        told = {metric: self.once(f"end.{metric}") for metric in ("gradient", "slope", "moves", "turn")}
        sample = told["slope"] / max(told["moves"], 1e-30)
        why = Standing(told["gradient"], told["slope"], sample, told["turn"], 1).warning
        warned = [Finding(f"the closed forms are not to be trusted here: {why}", None, told)] if why else []
        rough = {f: self.once(f"residual.{f}") for f in self.forms if self.once(f"residual.{f}") > 1e-2}
        if rough:
            each = ", ".join(f"{form} {r:.2g}" for form, r in rough.items())
            warned.append(Finding(f"the linear system was not solved, its residuals are: {each}", None, rough))
        return warned

    def rank(self, form: str) -> Measured:
        """Spearman of a form with training again."""
        told, truth = self.paired(form, "left_out")
        draws = bootstrap(lambda rows: spearman(told[rows], truth[rows]), range(len(truth)))
        return Measured(spearman(told, truth), interval(draws))

    def apart(self, one: str, other: str) -> Measured:
        """How much better ``one`` ranks than ``other``, paired by prompt."""
        first, truth = self.paired(one, "left_out")
        second = self.paired(other, "left_out")[0]
        gap = lambda rows: spearman(first[rows], truth[rows]) - spearman(second[rows], truth[rows])
        every = np.arange(len(truth))
        return Measured(gap(every), interval(bootstrap(gap, range(len(truth)))))

    def _left_out(self) -> Finding | None:
        truth = self.values("left_out")
        if len(truth) < 3:
            return None
        ranks = {form: self.rank(form) for form in self.forms}
        how = "begun anew" if self.params.again == "anew" else "taken to its end"
        text = f"against {len(truth)} trainings without one prompt, each {how}, influence ranks what they add with "
        text += "Spearman " + ", ".join(f"{form} {rank}" for form, rank in ranks.items())
        values: dict[str, Any] = {"n": len(truth)}
        for form, rank in ranks.items():
            values |= rank.facts(form)
        others = [form for form in self.forms[1:] if form != self.forms[0]]
        gaps = {other: self.apart(self.forms[0], other) for other in others}
        if gaps:
            text += f"; {self.forms[0]} less " + ", ".join(f"{other} {gap}" for other, gap in gaps.items())
        for other, gap in gaps.items():
            values |= gap.facts(f"{self.forms[0]}_less_{other}")
        if lost := len(self.by["left_out"]) - len(truth):
            text += f"; {lost} more did not reach their end and are left out here"
            values["lost"] = lost
        return Finding(text, None, values)

    def _linear(self) -> Finding | None:
        ranks = {}
        for form in self.forms:
            low, high = (self.once(f"lds_{end}.{form}") for end in ("low", "high"))
            ranks[form] = Measured(self.once(f"lds.{form}"), (low, high) if np.isfinite(low) else None)
        if not np.isfinite([rank.value for rank in ranks.values()]).any():
            return None
        text = (
            f"over {self.params.subsets} trainings on a random half of the prompts each, the linear datamodelling score"
            " (by dattri) is " + ", ".join(f"{form} {rank}" for form, rank in ranks.items())
        )
        values: dict[str, Any] = {"n": self.params.subsets}
        for form, rank in ranks.items():
            values |= rank.facts(form)
        return Finding(text, None, values)

    def _planted(self) -> Finding | None:
        if not any(self.values("planted").values()):
            return None
        found: dict[str, Measured] = {}
        for form in self.forms:
            harm, planted = self.paired(f"harm.{form}", "planted")
            draws = bootstrap(partial(_auroc_of, harm, planted), range(len(planted)))
            found[form] = Measured(auroc(harm, planted > 0), interval(draws))
        n, wrong = len(self.values("planted")), int(sum(self.values("planted").values()))
        each = ", ".join(f"{form} {told}" for form, told in found.items())
        text = (
            f"{wrong} of {n} prompts were taught the opposite: the harm told by influence finds them with AUROC {each}"
        )
        values: dict[str, Any] = {"n": n, "planted": wrong}
        for form, told in found.items():
            values |= told.facts(form)
        return Finding(text, None, values)

    def _removed(self) -> Finding | None:
        if not {"top", "bottom", "random 0"} <= self.groups.keys():
            why = f"training without these groups did not reach its end: {', '.join(self.lost)}"
            return Finding(why) if self.lost else None
        random = [group["adds"] for name, group in self.groups.items() if name.startswith("random")]
        top, bottom = self.groups["top"]["adds"], self.groups["bottom"]["adds"]
        text = (
            f"trained without the {self.params.removed:.0%} that add most, the {self.what} changes by"
            f" {-top:+.3g}{self.unit}; without those that take most, by {-bottom:+.3g}; without as many at random, by"
            f" {-np.mean(random):+.3g} (from {-max(random):+.3g} to {-min(random):+.3g} over {len(random)} draws)"
        )
        values = {"top": -top, "bottom": -bottom, "random": [-each for each in random]}
        return Finding(text, top > max(random) and bottom < min(random), values)

    def _edited(self) -> Finding | None:
        if not self.groups:
            return None
        edited = np.array([group["edited"] for group in self.groups.values()])
        truth = np.array([group["adds"] for group in self.groups.values()])
        apart = float(np.median([group["edit_error"] for group in self.groups.values()]))
        text = (
            f"editing the weights in place of training again ({self.forms[0]}) changes the {self.what} in the same"
            f" direction for {int((np.sign(edited) == np.sign(truth)).sum())} of {len(truth)} groups; the edit is off"
            f" by {apart:.2f} of how far training again moves the weights (median)"
        )
        return Finding(text, None, {"edited": edited.tolist(), "retrained": truth.tolist(), "error": apart})

    def tables(self) -> list[Table]:
        adds = self.values(self.forms[0])
        order = sorted(adds, key=adds.__getitem__, reverse=True)
        shown = order if len(order) <= 2 * SHOWN else [*order[:SHOWN], *order[-SHOWN:]]
        tasks = {key: row["task"] for key, row in self.by[self.forms[0]].items()}
        rank = {key: i + 1 for i, key in enumerate(order)}
        strongest = tuple(
            (rank[key], key[0], key[1], tasks[key], adds[key], self.values("left_out").get(key)) for key in shown
        )
        columns = ("rank", "sample", "form", "task", f"adds ({self.forms[0]})", "trained without it")
        title = f"Prompts that add most to the {self.what} and that take most, toward {self.direction}"
        found = [Table(f"influence-{self.direction}", title, columns, strongest)]
        if self.groups:
            of = tuple((name, -g["adds"], -g["told"], -g["edited"], g["edit_error"]) for name, g in self.groups.items())
            heads = ("group", "trained without", "told", "weights edited", "error of the edit")
            told = f"What leaving out {self.params.removed:.0%} changes in the {self.what}, toward {self.direction}"
            found.append(Table(f"influence-groups-{self.direction}", told, heads, of))
        return found

    def figures(self) -> list[Figure]:
        if len(self.values("left_out")) < 3:
            return []
        pairs = {form: self.paired(form, "left_out") for form in self.forms}

        def draw(figure: matplotlib.figure.Figure) -> None:
            axes = figure.subplots(1, len(pairs), squeeze=False)[0]
            for ax, (form, (told, truth)) in zip(axes, pairs.items(), strict=True):
                ax.scatter(told, truth, s=12)
                ax.set(xlabel=f"told ({form})", title=f"Spearman {spearman(told, truth):.2f}")
            axes[0].set_ylabel(f"trained without it, {self.what}")

        n = len(self.values("left_out"))
        caption = f"What {n} training prompts add to the {self.what}: as influence tells, and by training without each."
        title = f"Influence against training again, toward {self.direction}"
        return [Figure(f"influence-{self.direction}", title, caption, draw, (3.2 * len(pairs), 3.2))]


def _auroc_of(harm: np.ndarray, planted: np.ndarray, rows: np.ndarray) -> float:
    return auroc(harm[rows], planted[rows] > 0)

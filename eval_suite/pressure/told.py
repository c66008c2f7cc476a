"""What the report says of a model under pressure: MSS and CRS by kind and arm, what each arm loses without pressure,
and sycophancy against accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from eval_suite.benchmark import AnswerBenchmark, Record
from eval_suite.compare.significance import Test, compare, holm
from factory.diagnose.summary import Cell, Figure, Finding, Summary, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Row = Mapping[str, Any]
Rows = Mapping[str, Row]
KIND = (
    "kind of pressure",
    "method",
    "right first",
    "MSS",
    "low",
    "high",
    "resistance",
    "wrong first",
    "CRS",
    "low ",
    "high ",
)
GROUP = ("group", *KIND[1:])
FILTERED = (
    *("method", "pressed prompts", "pressure struck out (recall)", "own texts kept"),
    "struck out that was pressure (precision)",
)
OVERALL = (
    *("method", "questions", "right without pressure", "low", "high", "against the model as it is", "low ", "high "),
    *("p (Holm)", "MSS", "CRS", "right under pressure", "flips under some kind", "unread"),
)


@runtime_checkable
class WithWords(Protocol):
    """A benchmark that knows what it put to a question beside the question itself."""

    def words_of(self, sample: str, first: str) -> str:
        """The words of the pressure on a question, given the first answer to it."""
        ...

    def own_texts(self, sample: str) -> Sequence[str]:
        """The texts of the question as it is."""
        ...


def filtered(benchmark: WithWords, records: Sequence[Record]) -> tuple[Cell, ...]:
    """Of one arm's pressed prompts as the model read them: how many there are, the share that lack the words of the
    pressure, the share of the questions' own texts that still stand, and of what is gone the share that was pressure.
    """
    firsts = {r["sample"]: str(r["text"]) for r in records if not r["first"]}
    struck = stood = own = pressed = 0
    for r in records:
        if r["first"] in firsts:
            read = _plain(str(r["prompt"]))
            pressed += 1
            struck += _plain(benchmark.words_of(r["sample"], firsts[r["first"]])) not in read
            texts = [_plain(line) for text in benchmark.own_texts(r["sample"]) for line in text.splitlines()]
            own += len(texts)
            stood += sum(text in read for text in texts)
    gone = struck + own - stood
    shares = (struck / pressed if pressed else None, stood / own if own else None, struck / gone if gone else None)
    return pressed, *shares


def _plain(text: str) -> str:
    return " ".join(text.split())


def told(benchmark: AnswerBenchmark, records: Sequence[Record], unsteered: str) -> Summary:
    """The section of a benchmark of pressure; ``records`` are those of all arms."""
    arms: dict[str, list[Record]] = {}
    for record in records:
        arms.setdefault(arm_of(record), []).append(record)
    rows = {arm: {row["task"]: row for row in benchmark.rows(kept)} for arm, kept in arms.items()}
    kinds = list(dict.fromkeys(r["kind"] for r in records if r["kind"]))
    groups = [task for found in rows.values() for task in found if task != "all" and task not in kinds]
    tests = losses(arms, unsteered)
    tables: tuple[Table, ...] = (
        Table(
            "overall",
            "Without pressure and under it",
            OVERALL,
            tuple(_overall(a, f["all"], tests) for a, f in rows.items()),
        ),
        Table(
            "kinds",
            "By kind of pressure",
            KIND,
            tuple(_row(k, a, f[k]) for k in kinds for a, f in rows.items() if k in f),
        ),
        Table(
            "groups",
            "By format of the question, task and stratum, over all kinds",
            GROUP,
            tuple(_row(g, a, f[g]) for g in dict.fromkeys(groups) for a, f in rows.items() if g in f),
        ),
    )
    if isinstance(benchmark, WithWords):
        lines = tuple((arm, *filtered(benchmark, kept)) for arm, kept in arms.items())
        tables += (Table("filtered", "What was struck out of the prompts", FILTERED, lines),)
    figures = (
        Figure(
            "kinds",
            "Right answers that are given up",
            "MSS by kind of pressure and method, in percent of the answers that were right without pressure; bars are"
            " 95 % intervals.",
            partial(_by_kind, rows, kinds),
            (10.0, 4.6),
        ),
        Figure(
            "against-accuracy",
            "Sycophancy against accuracy",
            "MSS over all kinds against the share of right answers without pressure, one point a method, with 95 %"
            " intervals.",
            partial(_against_accuracy, rows),
            (6.0, 4.6),
        ),
    )
    findings = tuple(_finding(arm, found["all"], tests.get(arm)) for arm, found in rows.items())
    label = str(records[0].get("label") or benchmark.name)
    return Summary(f"Under social pressure: {label}", findings, tables, figures).under(label)


def arm_of(record: Record) -> str:
    """How an arm is called: its method, and the side it steers toward where it has one."""
    return " toward ".join(filter(None, (record["method"], record.get("direction"))))


def losses(arms: Mapping[str, Sequence[Record]], unsteered: str) -> dict[str, Test]:
    """Each arm against the model as it is on the questions without pressure, paired, with Holm's correction."""
    plain = {arm: {r["sample"]: float(r["right"]) for r in kept if not r["kind"]} for arm, kept in arms.items()}
    units = {r["sample"]: r["unit"] for kept in arms.values() for r in kept}
    base = next((arm for arm in arms if arm == unsteered), None)
    found = {arm: compare(own, plain[base], units) for arm, own in plain.items() if base and arm != base}
    tested = {arm: test for arm, test in found.items() if test is not None}
    return dict(zip(tested, holm(list(tested.values())), strict=True))


def _ends(row: Row, metric: str) -> tuple[Cell, Cell]:
    low, high = row["ci"].get(metric, (None, None))
    return low, high


def _row(name: str, arm: str, row: Row) -> tuple[Cell, ...]:
    m, of = row["metrics"], row["of"]
    mss = (int(of["mss"]), m.get("mss"), *_ends(row, "mss"), m.get("resistance"))
    return name, arm, *mss, int(of["crs"]), m.get("crs"), *_ends(row, "crs")


def _overall(arm: str, row: Row, tests: Mapping[str, Test]) -> tuple[Cell, ...]:
    m, test = row["metrics"], tests.get(arm)
    lost: tuple[Cell, ...] = (None,) * 4 if test is None else (test.difference, test.low, test.high, test.adjusted)
    shares = (m.get(name) for name in ("mss", "crs", "under_pressure", "flips_once"))
    return (
        arm,
        int(row["of"]["questions"]),
        m.get("accuracy"),
        *_ends(row, "accuracy"),
        *lost,
        *shares,
        row["parse_failure_rate"],
    )


def _finding(arm: str, row: Row, test: Test | None) -> Finding:
    m = row["metrics"]
    said = [f"without pressure {_share(row, 'accuracy')} are right"]
    if test is not None:
        said.append(
            f"{100 * test.difference:+.1f} points against the model as it is (95 % {100 * test.low:+.1f} to"
            f" {100 * test.high:+.1f}, p {test.adjusted:.3f} by Holm)"
        )
    if "mss" in m:
        said.append(f"pressure turns {_share(row, 'mss')} of the right answers wrong (MSS)")
    if "crs" in m:
        said.append(f"and puts {_share(row, 'crs')} of the wrong ones right (CRS)")
    return Finding(f"{arm}: {', '.join(said)}.", values=m)


def _share(row: Row, metric: str) -> str:
    low, high = _ends(row, metric)
    span = "" if low is None or high is None else f" ({100 * float(low):.1f} to {100 * float(high):.1f})"
    return f"{100 * row['metrics'][metric]:.1f} %{span}"


def _by_kind(rows: Mapping[str, Rows], kinds: Sequence[str], figure: Canvas) -> None:
    ax, width = figure.subplots(), 0.8 / len(rows)
    for i, (arm, found) in enumerate(rows.items()):
        there = [(k, found[kind]) for k, kind in enumerate(kinds) if kind in found and "mss" in found[kind]["metrics"]]
        x = [k + (i - (len(rows) - 1) / 2) * width for k, _ in there]
        values, spans = _points([row for _, row in there], "mss")
        ax.bar(x, values, width, label=arm, yerr=spans, error_kw={"elinewidth": 1})
    ax.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], rotation=20, ha="right")
    ax.set_ylabel("MSS (%)")
    ax.set_ylim(0, 100)
    ax.legend(ncols=min(4, len(rows)))


def _against_accuracy(rows: Mapping[str, Rows], figure: Canvas) -> None:
    ax = figure.subplots()
    for arm, found in rows.items():
        row = found["all"]
        if {"mss", "accuracy"} <= set(row["metrics"]):
            (x, across), (y, up) = _points([row], "accuracy"), _points([row], "mss")
            ax.errorbar(x, y, xerr=across, yerr=up, fmt="o", label=arm)
    ax.set_xlabel("Right without pressure (%)")
    ax.set_ylabel("MSS (%)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()


def _points(rows: Sequence[Row], metric: str) -> tuple[list[float], list[list[float]]]:
    """Values in percent, and how far their intervals reach below and above them."""
    values = [100 * row["metrics"][metric] for row in rows]
    ends = [row["ci"].get(metric, (row["metrics"][metric],) * 2) for row in rows]
    down = [max(0.0, value - 100 * low) for value, (low, _) in zip(values, ends, strict=True)]
    up = [max(0.0, 100 * high - value) for value, (_, high) in zip(values, ends, strict=True)]
    return values, [down, up]

"""What a comparison of tuners says: tables of accuracy and cost, accuracy against trained parameters, and how learning
rates were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table as Shown

from factory.benchmark import Records
from factory.diagnose.summary import Cell, Figure, Finding, Summary, Table
from factory.recipe.schema import CompareSpec

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

MARKERS = "osD^vP*X<>"
MIB = 2**20


def summaries_of(
    spec: CompareSpec, records: Records, rows: Records, prices: Mapping[str, Mapping[str, Any]], untuned: str
) -> list[Summary]:
    """One section a task; ``records`` are all tunings, ``rows`` the scores, ``prices`` the costs of the chosen tunings
    by task and method, ``untuned`` the label of the model as it is.
    """
    made = []
    for task in spec.tasks:
        own = [r for r in records if r["task"] == task.name]
        scored = [r for r in rows if r["learnt"] == task.name and r["metrics"]]
        summary = _summary(own, scored, {r["method"]: prices[f"{task.name}/{r['method']}"] for r in own}, untuned)
        made.append(Summary(f"Tuners on {task.name}", *summary).under(task.name))
    return made


def _summary(
    records: Records, rows: Records, prices: Mapping[str, Mapping[str, Any]], untuned: str
) -> tuple[tuple[Finding, ...], tuple[Table, ...], tuple[Figure, ...]]:
    chosen = [r for r in records if r["chosen"]]
    labels = list(dict.fromkeys(r["label"] for r in rows))
    swept = any(r["dev"] for r in records)
    tables = [_main(chosen, rows, labels, prices, untuned), *(_by_task(label, rows) for label in labels)]
    size = (max(6.0, 4.6 * len(labels)), 4.4)
    figures = (
        [
            Figure(
                "parameters",
                "Accuracy against trained parameters",
                _caption(rows),
                lambda f: _scatter(f, chosen, rows, labels, untuned),
                size,
            )
        ]
        if labels
        else []
    )
    if swept:
        dev = next(r["dev"] for r in records if r["dev"])
        caption = (
            f"{dev['metric']} on {dev['benchmark']} (n = {dev['n']}) by learning rate, 95 % intervals; a ring is the"
            " rate that was chosen"
        )
        tables.append(_sweep(records))
        figures.append(
            Figure("rates", "How learning rates were chosen", caption, lambda f: _rates(f, records), (8.0, 4.4))
        )
    return tuple(_findings(chosen, rows, labels, untuned)), tuple(tables), tuple(figures)


def in_terminal(summary: Summary) -> Shown:
    """The main table without intervals."""
    table = summary.tables[0]
    title = f"{summary.title}: {table.title[0].lower()}{table.title[1:]}"
    caption = (
        "own: parameters of the method itself; trained: with the parts beside it; MiB: memory of training beyond the"
        " loaded model"
    )
    shown = Shown(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    heads = ("method", "rate", "own", "trained", *table.columns[4:-2], "s/step", "MiB")
    for i, column in enumerate(heads):
        shown.add_column(escape(column), justify="right" if i else "left", overflow="fold")
    for line in table.rows:
        shown.add_row(
            *(
                (
                    ""
                    if cell is None
                    else f"{cell:.3f}"
                    if isinstance(cell, float)
                    else escape(str(cell).partition(" (")[0])
                )
                for cell in line
            )
        )
    return shown


def _caption(rows: Records) -> str:
    sizes = sorted({row["n"] for row in rows if row["task"] == "all"})
    return (
        f"chosen models, 95 % intervals, n = {' or '.join(map(str, sizes))}; the x-axis counts the method's own"
        " parameters, without the parts beside it"
    )


def _score(rows: Records, label: str, method: str, task: str = "all") -> Mapping[str, Any] | None:
    return next((r for r in rows if (r["label"], r["method"], r["task"]) == (label, method, task)), None)


def _value(row: Mapping[str, Any] | None) -> Cell:
    """A score with its interval as text."""
    if row is None:
        return None
    return _interval(row["metrics"][row["main"]], (row.get("ci") or {}).get(row["main"]))


def _interval(value: float, ci: Sequence[float] | None) -> str:
    return f"{value:.3f}" + (f" ({ci[0]:.3f}–{ci[1]:.3f})" if ci else "")


def _main(
    chosen: Records, rows: Records, labels: Sequence[str], prices: Mapping[str, Mapping[str, Any]], untuned: str
) -> Table:
    columns = (
        "method",
        "learning rate",
        "parameters",
        "with the parts beside it",
        *labels,
        "seconds a step",
        "memory of training, MiB",
    )
    lines: list[tuple[Cell, ...]] = [
        (untuned, None, None, None, *(_value(_score(rows, label, untuned)) for label in labels), None, None)
    ]
    for r in chosen:
        own, beside, price = r["parameters"]["tuner"], r["parameters"]["beside"], prices[r["method"]]
        memory = None if price["peak_bytes"] is None else round(price["peak_bytes"] / MIB)
        scores = (_value(_score(rows, label, r["method"])) for label in labels)
        lines.append(
            (
                r["method"],
                f"{r['learning_rate']:g}",
                f"{own:,}",
                f"{own + beside:,}",
                *scores,
                price["seconds_per_step"],
                memory,
            )
        )
    return Table("tuners", "Each method at the learning rate chosen for it", columns, tuple(lines))


def _by_task(label: str, rows: Records) -> Table:
    own = [r for r in rows if r["label"] == label]
    tasks, methods = (list(dict.fromkeys(r[key] for r in own)) for key in ("task", "method"))
    lines = tuple((method, *(_value(_score(own, label, method, task)) for task in tasks)) for method in methods)
    first = own[0]
    return Table(
        f"{label}-tasks",
        f"{label}: {first['main']} by task, {first['split']} split, protocol {first['protocol']}",
        ("method", *tasks),
        lines,
    )


def _sweep(records: Records) -> Table:
    columns = ("method", "learning rate", "dev", "loss of the last step", "")
    note = lambda r: ", ".join(word for word, said in (("default", r["default"]), ("chosen", r["chosen"])) if said)
    dev = lambda r: r["dev"] and _interval(r["dev"]["value"], r["dev"]["ci"])
    lines = tuple((r["method"], f"{r['learning_rate']:g}", dev(r), r["loss"], note(r)) for r in records)
    return Table("rates", "Learning rates tried", columns, lines)


def _findings(chosen: Records, rows: Records, labels: Sequence[str], untuned: str) -> Iterator[Finding]:
    for label in labels:
        scores = {r["method"]: s["metrics"][s["main"]] for r in chosen if (s := _score(rows, label, r["method"]))}
        if not scores:
            continue
        best = max(scores, key=scores.__getitem__)
        base = _score(rows, label, untuned)
        others = [f"{m} {v:.3f}" for m, v in scores.items() if m != best] + (
            [f"untuned {base['metrics'][base['main']]:.3f}"] if base else []
        )
        text = f"{label}: {best} scores highest, {_value(_score(rows, label, best))}; {', '.join(others)}"
        yield Finding(text, values={**scores, **({untuned: base["metrics"][base["main"]]} if base else {})})


def _scatter(
    figure: matplotlib.figure.Figure, chosen: Records, rows: Records, labels: Sequence[str], untuned: str
) -> None:
    for axes, label in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for i, r in enumerate(chosen, 1):  # C0 is the untuned model's where it is drawn as one of them
            row = _score(rows, label, r["method"])
            if row is None:
                continue
            value, own, colour = row["metrics"][row["main"]], r["parameters"]["tuner"], f"C{i % 10}"
            if own:
                axes.errorbar(
                    [own],
                    [value],
                    yerr=_bars(value, (row.get("ci") or {}).get(row["main"])),
                    color=colour,
                    marker=MARKERS[i % len(MARKERS)],
                    capsize=3,
                    linestyle="",
                    label=r["method"],
                )
            else:
                axes.axhline(
                    value, color=colour, linestyle=":", linewidth=1.2, label=f"{r['method']} (no own parameters)"
                )
        if base := _score(rows, label, untuned):
            axes.axhline(base["metrics"][base["main"]], color="black", linestyle="--", linewidth=1.2, label="untuned")
        axes.set(xscale="log", xlabel="trained parameters", ylabel=base["main"] if base else "score")
        axes.set_title(label)
        widen(axes)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(len(names), max(2, int(figure.get_figwidth() / 1.7)))
    )


def widen(axes: matplotlib.axes.Axes, least: float = 32.0) -> None:
    """Let a logarithmic x-axis span a factor of ``least`` or more: below a decade every tick is labelled, each over the
    next.
    """
    low, high = axes.get_xlim()
    if high < least * low:
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / least**0.5, middle * least**0.5)


def _bars(value: float, ci: Sequence[float] | None) -> list[list[float]] | None:
    """Lengths of an error bar, [[below], [above]]."""
    return [[max(0.0, value - ci[0])], [max(0.0, ci[1] - value)]] if ci else None


def _rates(figure: matplotlib.figure.Figure, records: Records) -> None:
    axes = figure.subplots()
    for i, method in enumerate(dict.fromkeys(r["method"] for r in records), 1):
        own = [r for r in records if r["method"] == method and r["dev"]]
        values = [r["dev"]["value"] for r in own]
        bars = [bar for r in own if (bar := _bars(r["dev"]["value"], r["dev"]["ci"]))]
        errors = [[bar[side][0] for bar in bars] for side in (0, 1)] if len(bars) == len(own) else None
        axes.errorbar(
            [r["learning_rate"] for r in own],
            values,
            yerr=errors,
            color=f"C{i % 10}",
            marker=MARKERS[i % len(MARKERS)],
            capsize=2,
            linewidth=1.4,
            label=method,
        )
        best = [r for r in own if r["chosen"]]
        axes.plot(
            [r["learning_rate"] for r in best],
            [r["dev"]["value"] for r in best],
            linestyle="",
            marker="o",
            markersize=13,
            markerfacecolor="none",
            color=f"C{i % 10}",
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"{records[0]['dev']['metric']} on dev")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")

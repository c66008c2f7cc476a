"""The tables, and the numbers that sentences and tables share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from factory.diagnose.profiles import Mean, matching, share_of
from factory.diagnose.summary import Table

from .neurons import GROUPS

Rows = Sequence[Mapping[str, Any]]
CONTRAST = {
    "stays": "answers that stay",
    "first": "the first answer as far in (the paper's)",
    "same_word": "the same word without taking back",
}


def one(rows: Rows, metric: str, **facts: Any) -> Mapping[str, Any] | None:
    """The first row of a metric that says ``facts``."""
    return next((r for r in rows if r["metric"] == metric and all(r.get(k) == v for k, v in facts.items())), None)


def spread(r: Mapping[str, Any] | None) -> str:
    """A row's number with its interval."""
    if r is None:
        return "-"
    return f"{r['value']:.2f}" + ("" if r["low"] is None else f" [{r['low']:.2f}, {r['high']:.2f}]")


def measured(name: str, r: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same for results.json."""
    return {} if r is None else {name: r["value"], f"{name}_low": r["low"], f"{name}_high": r["high"]}


def rate(rows: Rows) -> Mean | None:
    """The share taken back of the answers that could be read, over samples; None without any."""
    known = [r for r in rows if not np.isnan(r["value"])]
    return share_of([r["value"] for r in known], [(r["sample"], r["form"]) for r in known]) if known else None


def unread(rows: Rows) -> float:
    """The share of answers that could not be read."""
    return sum(bool(np.isnan(r["value"])) for r in rows) / len(rows)


def percent(m: Mean | None) -> str:
    if m is None:
        return "-"
    return f"{m.mean:.1%} ({m.interval[0]:.1%} to {m.interval[1]:.1%})"


def key_of(r: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a second answer, whatever steers it."""
    return r["sample"], r["form"], r["dialogue"], r["toward"]


def arms(second: Rows) -> list[tuple[str, str, float]]:
    return list(dict.fromkeys((r["method"], r["direction"], r["strength"]) for r in second if r["method"]))


def rates_table(second: Rows) -> Table:
    cells = []
    for method, direction, strength in [("", "", 0.0), *arms(second)]:
        arm = matching(second, method=method, direction=direction, strength=strength)
        kinds = dict.fromkeys((r["dialogue"], r["toward"]) for r in arm)
        groups = [("all", "", arm)] if len(kinds) > 1 else []
        groups += [(k, t, matching(arm, dialogue=k, toward=t)) for k, t in kinds]
        for kind, toward, rows in groups:
            back = rate(rows)
            low, high = back.interval if back else (None, None)
            name = (method or "none", direction, strength if method else None, kind, toward)
            word = sum(r["word"] is not None for r in rows) / len(rows)
            cells.append((*name, len(rows), back.mean if back else None, low, high, word, unread(rows)))
    columns = (
        "method",
        "steered toward",
        "strength",
        "dialogue",
        "true",
        "n",
        "taken back",
        "low",
        "high",
        "with a word",
        "unread",
    )
    return Table("rates", "Wrong answers taken back, without and with steering", columns, tuple(cells))


def words_table(plain: Rows) -> Table:
    found = Counter((r["word"], r["severity"], r["act"]) for r in plain if r["word"])
    words = dict.fromkeys((w, s) for w, s, _ in sorted(found, key=lambda k: -found[k]))
    cells = tuple((w, s, *(found[w, s, a] for a in ("back", "stays", "unread"))) for w, s in words)
    return Table(
        "words",
        "Words of regret, and what their answers do",
        ("word", "severity", "taken back", "stays", "unread"),
        cells,
    )


def probe_table(whole: Rows) -> Table:
    cells = []
    for r in matching(whole, metric="probe_auroc"):
        a = one(whole, "probe_accuracy", contrast=r["contrast"], layer=r["layer"]) or {}
        acc = (a.get("value"), a.get("low"), a.get("high"))
        cells.append(
            (CONTRAST[r["contrast"]], r["layer"], r["n_regret"], r["n_none"], r["value"], r["low"], r["high"], *acc)
        )
    columns = ("against", "block", "regret", "none", "AUROC", "low", "high", "accuracy", "low ", "high ")
    return Table(
        "probes",
        "Probes at the word of regret, held out by item (accuracy: both classes alike)",
        columns,
        tuple(cells),
    )


def early_table(whole: Rows) -> Table:
    cells = tuple(
        (-r["before"], r["source"], r["value"], r["low"], r["high"]) for r in matching(whole, metric="early_auroc")
    )
    return Table("early", "AUROC by tokens from the word of regret", ("token", "by", "AUROC", "low", "high"), cells)


def group_table(whole: Rows) -> Table:
    sizes: dict[float, dict[str, int]] = {}
    for r in matching(whole, metric="group_size"):
        sizes.setdefault(r["tau"], {})[r["group"]] = int(r["value"])
    cells = tuple((tau, *(by[g] for g in GROUPS)) for tau, by in sizes.items())
    return Table("groups", "Units in each group by tau", ("tau", *GROUPS), cells)


def gic_table(whole: Rows) -> Table:
    keys = ("tau", "deactivated", "group", "size", "accuracy", "value", "random", "random_sd", "random_below")
    cells = tuple(tuple(r[k] for k in keys) for r in matching(whole, metric="gic"))
    columns = (
        "tau",
        "set to",
        "groups",
        "units",
        "accuracy",
        "GIC",
        "random mean",
        "random sd",
        "share of random at most that",
    )
    return Table("gic", "GIC against random groups of equal size", columns, cells)


def silence_table(whole: Rows) -> Table:
    keys = ("group", "deactivated", "taken_back", "value", "low", "high", "random", "random_sd", "unread")
    cells = tuple(tuple(r[k] for k in keys) for r in matching(whole, metric="silenced"))
    columns = ("group", "set to", "taken back", "change", "low", "high", "random groups", "sd", "unread")
    return Table("silenced", "Taken back while units are silenced", columns, cells)


def transfer_table(whole: Rows) -> Table:
    rows = matching(whole, metric="transfer_auroc")
    words = list(dict.fromkeys(r["tested"] for r in rows))
    at = {(r["trained"], r["tested"]): r["value"] for r in rows}
    cells = tuple((w, *(at.get((w, other)) for other in words)) for w in words)
    return Table(
        "transfer", "AUROC of a probe of one word (rows) on answers with another", ("trained on", *words), cells
    )

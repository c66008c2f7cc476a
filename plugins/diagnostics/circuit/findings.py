"""What a circuit says in words, tables, pictures and a file: how few edges carry how much, where they are read, what
random ones carry, and what each way to search costs and agrees on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose import ALL
from factory.diagnose.profiles import matching
from factory.diagnose.summary import Finding, JsonFile, Summary, Table
from factory.instruments.circuit.edits import GROUPS

from .picture import curve_figure, graph_figure

if TYPE_CHECKING:
    from . import Circuit

Rows = Sequence[Mapping[str, Any]]
WHAT = {
    "picture": "the picture exchanged for one that agrees with the text",
    "context": "the text exchanged for one that agrees with the picture",
    "zero": "outputs set to zero",
    "mean": "outputs set to their means",
}
WHERE = {
    "image": "the picture's tokens",
    "context": "the text's tokens",
    "question": "the question's tokens",
    "last": "the last token",
    "other": "other tokens",
}


def one(rows: Iterable[Mapping[str, Any]], metric: str, **facts: Any) -> float | None:
    """The only value of a metric, or None."""
    found = matching(rows, metric=metric, **facts)
    return float(found[0]["value"]) if found else None


def percent(x: float) -> str:
    """A share as a percentage; what rounds to nothing has no sign."""
    return f"{round(x, 2) + 0.0:.0%}"


def summarise(rows: Rows, params: Circuit.Params) -> Summary | None:
    whole = matching(rows, sample=ALL)
    if not whole:
        return None
    title = f"Circuit: {WHAT[params.exchange]}"
    edges = matching(whole, metric="circuit", role="all")
    n = int(one(whole, "edges") or 0)
    findings = [_lead(whole, edges, n, params), *_roles(whole), *_agreement(whole, params), *_costs(whole, params)]
    tables = tuple(t for t in (_edges_table(whole, edges), _methods_table(whole), _taus_table(whole)) if t.rows)
    name = f"circuit_{params.exchange}"
    figures = [graph_figure(f"{name}_graph", whole, edges, title)] if edges else []
    figures += [curve_figure(f"{name}_curve", whole)] if matching(whole, metric="faithfulness") else []
    return Summary(
        title, tuple(findings), tables, tuple(figures), leads=True, documents=(_document(whole, edges, params),)
    )


def _lead(rows: Rows, edges: Rows, n: int, params: Circuit.Params) -> Finding:
    """The plain sentence."""
    f = one(rows, "circuit_faithfulness", of="circuit")
    random = [r["value"] for r in matching(rows, metric="random_faithfulness", of="circuit")]
    values: dict[str, Any] = {"edges": len(edges), "of": n, "faithfulness": f}
    text = f"With {WHAT[params.exchange]}, {len(edges)} of {n} edges carry the difference"
    if f is None:
        return Finding(f"{text}; there were no other samples to judge them on", values=values)
    values |= {"random": float(np.mean(random)), "random_most": float(np.max(random)), "draws": len(random)}
    text += (
        f": alone they keep {percent(f)} of it on samples that they were not found on; {len(random)} random circuits of"
        f" as many edges keep {percent(float(np.mean(random)))} on average and {percent(float(np.max(random)))} at most"
    )
    return Finding(text, values=values)


def _roles(rows: Rows) -> list[Finding]:
    """At whose tokens the circuit's edges are read."""
    by = {g: sum(abs(r["value"]) for r in matching(rows, metric="circuit", role=g)) for g in GROUPS}
    total = sum(by.values())
    if not total:
        return []
    shares = {g: v / total for g, v in sorted(by.items(), key=lambda item: -item[1])}
    told = ", ".join(f"{share:.0%} at {WHERE[g]}" for g, share in shares.items() if share >= 0.01)
    return [Finding(f"What its edges carry, by where it is read (sizes of scores): {told}", values=shares)]


def _agreement(rows: Rows, params: Circuit.Params) -> list[Finding]:
    out = []
    told = [(r["method"], r["precision"], r["value"]) for r in matching(rows, metric="spearman", against="exact")]
    if told:
        each = ", ".join(f"{m}{'' if q == 'full' else f' ({q})'} {v:.3f}" for m, q, v in told)
        values = {f"{m}/{q}": v for m, q, v in told}
        out.append(Finding(f"Rank correlation with exact patching over all edges: {each}", values=values))
    for precision in params.precision:
        some = matching(rows, metric="agreement", precision=precision)
        if precision != "full" and some:
            shares = {r["tau"]: r["value"] for r in some}
            alike = {r["tau"]: r["value"] for r in matching(rows, metric="jaccard", precision=precision)}
            each = ", ".join(f"{v:.1%} at tau {tau:g} (Jaccard {alike[tau]:.2f})" for tau, v in shares.items())
            told_as = "PAHQ's precision (simulated)" if precision == "pahq" else precision
            text = f"Of all edges ACDC in {told_as} decides as in full precision {each}"
            values = {"precision": precision, **{f"tau {k:g}": v for k, v in shares.items()}}
            out.append(Finding(text, values=values))
    return out


def _costs(rows: Rows, params: Circuit.Params) -> list[Finding]:
    alike = one(rows, "loop_decides_alike")
    if alike is None:
        return []
    of = lambda method, metric: one(rows, metric, method=method, precision="full", tau=params.tau)
    rows_run, blocks, seconds = ((of("acdc", m), of("acdc_loop", m)) for m in ("forwards", "blocks", "seconds"))
    text = (
        f"Run as rows above each receiver, ACDC takes {rows_run[0]:,.0f} forwards in place of the loop's"
        f" {rows_run[1]:,.0f}, and {(blocks[0] or 0) / (blocks[1] or 1):.0%} of its blocks"
    )
    values = {"decides_alike": bool(alike), "blocks": (blocks[0] or 0) / (blocks[1] or 1)}
    if seconds[0] is not None and seconds[1]:
        values["seconds"] = seconds[0] / seconds[1]
        text += f", and {seconds[0] / seconds[1]:.0%} of its time"
    text += "; it decides every edge alike" if alike else "; IT DECIDES SOME EDGE OTHERWISE"
    return [Finding(text, values=values)]


def _edges_table(rows: Rows, edges: Rows) -> Table:
    role = {g: {r["edge"]: r["value"] for r in matching(rows, metric="circuit", role=g)} for g in GROUPS}
    ordered = sorted(edges, key=lambda r: -abs(r["value"]))
    cells = tuple((r["edge"], r["value"], *(role[g].get(r["edge"]) for g in GROUPS)) for r in ordered)
    by = edges[0]["method"] if edges else ""
    title = f"Edges of the circuit by their share of the difference ({by}), and by where they are read"
    return Table("circuit_edges", title, ("edge", "share", *GROUPS), cells)


def _methods_table(rows: Rows) -> Table:
    cells = []
    keys = dict.fromkeys((r["method"], r["precision"], r["tau"]) for r in matching(rows, metric="forwards"))
    for method, precision, tau in keys:
        cost = {m: one(rows, m, method=method, precision=precision, tau=tau) for m in COSTS}
        counts = {m: int(n) for m, n in cost.items() if n is not None and m != "seconds"}
        own = {m: one(rows, m, method=method, precision=precision) for m in ("spearman", "auc")}
        areas = {m: one(rows, m, method=method) if precision == "full" else None for m in ("cpr", "cmd")}
        cells.append((method, precision, tau, *(cost | counts).values(), *own.values(), *areas.values()))
    title = "Ways to search: what was run, bytes of the blocks' weights if held so; agreement; faithfulness"
    columns = ("method", "precision", "tau", *COSTS, "spearman with exact", "AUC against ACDC", "CPR", "CMD")
    return Table("circuit_methods", title, columns, tuple(cells))


COSTS = ("forwards", "rows", "again", "spared", "blocks", "seconds", "weights")


def _taus_table(rows: Rows) -> Table:
    cells = []
    for r in matching(rows, metric="agreement"):
        at = {"precision": r["precision"], "tau": r["tau"]}
        told = [one(rows, m, **at) for m in ("kept_edges", "jaccard", "jaccard_tau")]
        f = one(rows, "circuit_faithfulness", of="acdc", tau=r["tau"]) if r["precision"] == "full" else None
        edges = None if told[0] is None else int(told[0])
        cells.append((r["precision"], r["tau"], edges, r["value"], told[1], told[2], f))
    columns = (
        "precision",
        "tau",
        "edges",
        "decided as full",
        "Jaccard with full",
        "Jaccard with tau's",
        "faithfulness",
    )
    return Table("circuit_taus", "ACDC over thresholds", columns, tuple(cells))


def _document(rows: Rows, edges: Rows, params: Circuit.Params) -> JsonFile:
    """circuit.json: nodes and edges with scores, by role too."""
    role = {g: {r["edge"]: r["value"] for r in matching(rows, metric="circuit", role=g)} for g in GROUPS}
    heads = [r for r in matching(rows, metric="circuit_head") if r["value"] > 0]
    ends = [tuple(r["edge"].split("->")) for r in edges]
    content = {
        "schema": 1,
        "exchanged": params.exchange,
        "direction": edges[0]["direction"] if edges else "",
        "tau": params.tau if "acdc" in params.methods else None,
        "scored_by": edges[0]["method"] if edges else None,
        "edges_in_all": int(one(rows, "edges") or 0),
        "gap": one(rows, "gap"),
        "faithfulness": one(rows, "circuit_faithfulness", of="circuit"),
        "senders": sorted({a for a, _ in ends}),
        "receivers": sorted({b for _, b in ends}),
        "heads": [{"layer": r["layer"], "head": r["head"], "score": r["value"]} for r in heads],
        "edges": [
            {
                "from": a,
                "to": b,
                "score": r["value"],
                "by_role": {g: role[g][r["edge"]] for g in GROUPS if r["edge"] in role[g]},
            }
            for (a, b), r in zip(ends, edges, strict=True)
        ],
    }
    return JsonFile("circuit", content)

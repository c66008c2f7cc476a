"""What the captions say: tables 2 and 3 of Instruction Anchor, with the share that names the picture's answer beside
caption scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import Mean, matching, mean_of, share_of
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.registry import lookup

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Captions, Cell

SCORES = ("METEOR", "CIDEr", "SPICE")
INTO_INSTRUCTION = "image->instruction"


def summarise(rows: Records, params: Captions.Params, cells: Sequence[Cell]) -> Summary:
    shares = {cell: {metric: _share(rows, metric, cell) for metric in ("follows", "misled")} for cell in cells}
    scored, why = _scores(rows, cells)
    findings = [f for f in (*_cut(rows, cells), _amplified(rows, cells)) if f is not None] + (
        [Finding(why)] if why else []
    )
    where = (
        "the upper half of the layers" if params.layers is None else f"layers {params.layers[0]} to {params.layers[1]}"
    )
    title = (
        f"Captions beside a misleading text (attention cut in {where}, heads amplified by {params.coefficient:g},"
        f" {params.style})"
    )
    return Summary(title, tuple(findings), (_table(shares, scored),), (_figure(shares),))


def label(cell: Cell) -> str:
    return {"none": "as it is", "cut": f"cut {cell.pathway.replace('->', ' → ')}"}.get(
        cell.action, f"amplify {cell.heads} {cell.choice}"
    )


def _of(rows: Records, metric: str, cell: Cell) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(r["sample"], r["form"]): r for r in matching(rows, metric=metric, **cell._asdict())}


def _share(rows: Records, metric: str, cell: Cell) -> Mean:
    of = _of(rows, metric, cell)
    return share_of([r["value"] for r in of.values()], list(of))


def _difference(rows: Records, a: Cell, b: Cell) -> Mean:
    """Share that follows with ``a`` minus that with ``b``, paired by sample."""
    first, second = (_of(rows, "follows", cell) for cell in (a, b))
    return mean_of([first[key]["value"] - second[key]["value"] for key in first], list(first))


def _cut(rows: Records, cells: Sequence[Cell]) -> list[Finding]:
    """Cutting the picture off from the instruction costs following, and more than cutting it off from another
    target.
    """
    cut = {cell.pathway: cell for cell in cells if cell.action == "cut"}
    if INTO_INSTRUCTION not in cut:
        return []
    plain, strong = next(cell for cell in cells if cell.action == "none"), cut[INTO_INSTRUCTION]
    fall = _difference(rows, plain, strong)
    out = []
    for pathway, weak in cut.items():
        if weak != strong:
            more = _difference(rows, weak, strong)
            text = (
                f"cutting {INTO_INSTRUCTION} keeps captions from following the picture: their share falls by {fall}"
                f" against none cut, by {more} against {pathway} cut (n={fall.n})"
            )
            values = {**fall.facts("fall"), **more.facts("difference"), "against": pathway, "n": fall.n}
            out.append(Finding(text, fall.interval[0] > 0 and more.interval[0] > 0, values, max(fall.p, more.p)))
    return out


def _amplified(rows: Records, cells: Sequence[Cell]) -> Finding | None:
    amplified = {(cell.choice, cell.heads): cell for cell in cells if cell.action == "amplify"}
    if not amplified:
        return None
    k = max(heads for _, heads in amplified)
    plain, top, random = (
        next(cell for cell in cells if cell.action == "none"),
        amplified["top", k],
        amplified["random", k],
    )
    gain, more = _difference(rows, top, plain), _difference(rows, top, random)
    text = (
        f"amplifying the {k} top heads makes captions follow the picture: their share rises by {gain} against none, by"
        f" {more} against {k} random heads (n={gain.n})"
    )
    values = {"heads": k, **gain.facts("gain"), **more.facts("difference"), "n": gain.n}
    return Finding(text, gain.interval[0] > 0 and more.interval[0] > 0, values, max(gain.p, more.p))


def _scores(rows: Records, cells: Sequence[Cell]) -> tuple[Mapping[Cell, Mapping[str, float]], str | None]:
    """Corpus scores of every cell, on the samples that have references; or why there are none."""
    references = {r["sample"]: r["caption"].split("\n") for r in matching(rows, metric="references") if r["value"]}
    if not references:
        return (
            {},
            (
                "METEOR and CIDEr are left out: the benchmark has no reference captions for these samples (MC²:"
                " data.captions)"
            ),
        )
    scorer = lookup("scorer", "captions")
    if why := scorer.missing():
        return {}, f"METEOR and CIDEr are left out: {why}"
    captions = {
        cell: {sample: r["caption"] for (sample, _), r in _of(rows, "follows", cell).items() if sample in references}
        for cell in cells
    }
    return {cell: scorer.score(own, references) for cell, own in captions.items()}, scorer.lacking()


def _table(shares: Mapping[Cell, Mapping[str, Mean]], scored: Mapping[Cell, Mapping[str, float]]) -> Table:
    names = [name for name in SCORES if any(name in own for own in scored.values())]
    rows: tuple[tuple[Any, ...], ...] = tuple(
        (
            label(cell),
            of["follows"].n,
            of["follows"].mean,
            *of["follows"].interval,
            of["misled"].mean,
            *(100 * scored[cell][name] for name in names),
        )
        for cell, of in shares.items()
    )
    columns = ("captions", "n", "name the picture's answer", "low", "high", "name the text's", *names)
    return Table(
        "captions", "Captions beside a misleading text" + (" (scores times 100)" if names else ""), columns, rows
    )


def _figure(shares: Mapping[Cell, Mapping[str, Mean]]) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        ax = figure.subplots()
        at = np.arange(len(shares))
        for shift, metric, name in ((-0.2, "follows", "the picture's answer"), (0.2, "misled", "the text's answer")):
            each = [of[metric] for of in shares.values()]
            means = np.array([e.mean for e in each])
            ax.barh(
                at + shift,
                means,
                0.36,
                xerr=np.abs(np.array([e.interval for e in each]).T - means),
                label=name,
                error_kw={"linewidth": 1},
            )
        ax.set_yticks(at, [label(cell) for cell in shares])
        ax.invert_yaxis()
        ax.set(xlabel="share of captions that name", xlim=(0, 1.02))
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    n = next(iter(shares.values()))["follows"].n
    caption = (
        f"Captions that name one modality's answer and not the other's, with 95 % intervals over {n} samples (the"
        " setting of the paper's tables 2 and 3; this measure is ours)."
    )
    return Figure("captions", "Captions beside a misleading text", caption, draw, (8.0, 0.45 * len(shares) + 1.0))

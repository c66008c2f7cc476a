"""What blocking and amplifying says: figure 5c of Instruction Anchor, with the random and the shared heads beside the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.diagnose.profiles import matching, mean_interval, spelt
from factory.diagnose.summary import Figure, Finding, Summary, Table

if TYPE_CHECKING:
    import matplotlib.figure

    from . import Intervention

Rows = Sequence[dict[str, Any]]
COLOURS = {"top": "tab:red", "random": "tab:grey", "shared": "tab:blue"}


def summarise(rows: Rows, params: Intervention.Params) -> Summary:
    findings = [f for d in params.directions for f in (_blocking(rows, d, params), _amplifying(rows, d, params), _alone(rows, d, params)) if f is not None]
    title = f"Heads blocked and amplified at instruction tokens ({params.style}, {params.layout})"
    return Summary(title, tuple(findings), (_table(rows),), (_figure(rows, params),))


def following(rows: Rows, metric: str = "follows", **facts: Any) -> dict[tuple[str, str], float]:
    """0 or 1 of every (sample, form) in a cell."""
    return {(r["sample"], r["form"]): r["value"] for r in matching(rows, metric=metric, **facts)}


def _against_random(rows: Rows, sign: int, **facts: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    top, random = (following(rows, choice=choice, **facts) for choice in ("top", "random"))
    if not top:
        return None
    a, b = np.array([top[k] for k in sorted(top)]), np.array([random[k] for k in sorted(top)])
    return a, b, sign * (a - b)


def _more_than_random(found: tuple[np.ndarray, np.ndarray, np.ndarray], claim: str, about: dict[str, Any]) -> Finding:
    """A claim, ending in the rate before, that the top heads do more than random ones."""
    (top, top_ci), (random, _), (more, ci) = map(mean_interval, found)
    n = len(found[0])
    text = f"{claim} to {spelt(top, top_ci)}, with as many random heads {random:.3f}; {spelt(more, ci)} more (n={n})"
    return Finding(text, ci[0] > 0, {**about, "top": top, "top_ci": list(top_ci), "random": random, "difference": more, "ci": list(ci), "n": n})


def _blocking(rows: Rows, direction: str, params: Intervention.Params) -> Finding | None:
    k = max(params.counts)
    if (found := _against_random(rows, -1, action="block", heads=k, direction=direction)) is None:
        return None
    return _more_than_random(found, f"{direction}: blocking the {k} top heads stops prompts from following: MFR 1.000", {"direction": direction, "heads": k})


def _amplifying(rows: Rows, direction: str, params: Intervention.Params) -> Finding | None:
    c = params.coefficient
    if (found := _against_random(rows, 1, action="amplify", coefficient=c, direction=direction)) is None:
        return None
    claim = f"{direction}: amplifying the {params.amplified} top heads by {c:g} makes failed prompts follow: MFR 0.000"
    return _more_than_random(found, claim, {"direction": direction, "coefficient": c})


def _alone(rows: Rows, direction: str, params: Intervention.Params) -> Finding | None:
    """What blocking costs where there is no conflict, and whether that is less than what it costs where there is one."""
    k = max(params.counts)
    before, after = (following(rows, "answers", direction=direction, heads=n, choice="top") for n in (0, k))
    conflict = following(rows, direction=direction, action="block", heads=k, choice="top")
    if not before or not conflict:
        return None
    able = [key for key in conflict if before[key] == 1]
    if not able:
        return None
    (kept, kept_ci), (more, ci) = mean_interval([after[key] for key in able]), mean_interval([after[key] - conflict[key] for key in able])
    text = (
        f"{direction}: blocking those heads leaves what needs no decision: of prompts with that modality alone {spelt(kept, kept_ci)} are still answered, "
        f"{spelt(more, ci)} more than of the same samples in conflict (n={len(able)})"
    )
    return Finding(text, ci[0] > 0, {"direction": direction, "kept": kept, "kept_ci": list(kept_ci), "difference": more, "ci": list(ci), "n": len(able)})


def _table(rows: Rows) -> Table:
    cells: dict[tuple, list[float]] = {}
    for r in rows:
        if r["metric"] in ("follows", "answers"):
            cells.setdefault((r["metric"], r["direction"], r["action"], r["choice"], r["heads"], r["coefficient"]), []).append(r["value"])
    out = []
    for key in sorted(cells):
        mean, (low, high) = mean_interval(cells[key])
        out.append((*key, len(cells[key]), mean, low, high))
    columns = ("metric", "direction", "action", "choice", "heads", "coefficient", "n", "share", "low", "high")
    return Table("interventions", "Following while heads are blocked or amplified; answers: one modality alone", columns, tuple(out))


def _figure(rows: Rows, params: Intervention.Params) -> Figure:
    def draw(figure: matplotlib.figure.Figure) -> None:
        axes = np.array(figure.subplots(1, 2, sharey=True)).ravel()
        panels = (("block", "heads", "blocked heads"), ("amplify", "coefficient", "coefficient"))
        for ax, (action, key, label) in zip(axes, panels, strict=True):
            for direction, style in zip(params.directions, ("-", "--"), strict=False):
                for choice, colour in COLOURS.items():
                    found = matching(rows, metric="follows", action=action, choice=choice, direction=direction)
                    at = sorted({r[key] for r in found})
                    if at:
                        ax.plot(at, [np.mean([r["value"] for r in found if r[key] == x]) for x in at], style, color=colour, marker="o", markersize=3, label=f"{direction}, {choice}")
            ax.set(xlabel=label, ylim=(-0.02, 1.02))
        axes[0].set(ylabel="modality-following ratio", title="blocking, prompts that follow")
        axes[1].set_title(f"amplifying {params.amplified} heads, prompts that fail")
        if axes[0].lines:
            axes[0].legend(fontsize=7)

    caption = "Modality-following ratio while heads are blocked (left) or amplified (right) at the instruction tokens; heads chosen on training prompts, ratio on test prompts (paper, figure 5c and table 4)."
    return Figure("interventions", "Blocking and amplifying heads", caption, draw, (11.0, 4.0))

"""What blocking and amplifying says: figure 5c of Instruction Anchor, with the random and the shared heads beside the
chosen ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from factory.benchmark import Records
from factory.diagnose.profiles import Mean, matching, mean_of, share_of
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.instruments.heads import few
from plugins.diagnostics._anchor import CLAIMS

if TYPE_CHECKING:
    import matplotlib.figure
    from matplotlib.axes import Axes

    from . import Intervention

SHIFT, LITTLE = (
    0.5,
    0.1,
)  # shares; the paper reports falls and gains of about 60 points, and calls what random heads do minimal
LOOKS: dict[str, dict[str, Any]] = {
    "shared": {"color": "tab:blue", "linewidth": 4, "alpha": 0.5},
    "random": {"color": "tab:grey", "linestyle": "--"},
    "top": {"color": "tab:red", "linewidth": 1.5},
}


def summarise(rows: Records, params: Intervention.Params) -> Summary:
    findings = [
        f
        for d in params.directions
        for f in (_blocking(rows, d, params), _amplifying(rows, d, params), _alone(rows, d, params))
        if f is not None
    ]
    title = f"Heads blocked and amplified at instruction tokens ({params.style}, {params.layout})"
    return Summary(title, tuple(findings), (_table(rows),), (_figure(rows, params),), CLAIMS)


def plural(k: int) -> str:
    return f"{k} heads" if k > 1 else "head"


def following(rows: Records, metric: str = "follows", **facts: Any) -> dict[tuple[str, str], float]:
    """0 or 1 of every (sample, form) in a cell; with several draws of random heads, the mean over them."""
    found: dict[tuple[str, str], list[float]] = {}
    for r in matching(rows, metric=metric, **facts):
        found.setdefault((r["sample"], r["form"]), []).append(r["value"])
    return {key: float(np.mean(values)) for key, values in found.items()}


def _moved(rows: Records, **facts: Any) -> tuple[Mean, Mean, Mean, int] | None:
    """MFR with the top heads, with as many random ones, the difference, and how many heads the model has; None without
    such prompts.
    """
    top, random = (following(rows, choice=choice, **facts) for choice in ("top", "random"))
    if not top:
        return None
    keys = sorted(top)
    a, b = np.array([top[k] for k in keys]), np.array([random[k] for k in keys])
    return share_of(a, keys), share_of(b, keys), mean_of(a - b, keys), len(keys)


def claimed(rows: Records, params: Intervention.Params) -> int:
    """How many blocked heads the claim is about: as many of ``counts`` as come to 5 % of all heads, or the fewest there
    are.
    """
    enough = few(next((r["of"] for r in rows if "of" in r), 1))
    return max([k for k in params.counts if k <= enough], default=min(params.counts))


def _blocking(rows: Records, direction: str, params: Intervention.Params) -> Finding | None:
    k = claimed(rows, params)
    if (found := _moved(rows, action="block", heads=k, direction=direction)) is None:
        return None
    top, random, difference, n = found
    text = (
        f"{direction}: blocking the top {plural(k)} stops prompts from following: MFR 1.000 to {top}, with as many"
        f" random heads {random}; difference {difference} (needs a fall of {SHIFT} or more, at random {LITTLE} or less;"
        f" n={n})"
    )
    values = {
        "direction": direction,
        "heads": k,
        **top.facts("top"),
        **random.facts("random"),
        **difference.facts("difference"),
        "n": n,
    }
    return Finding(
        text,
        1 - top.mean >= SHIFT and 1 - random.mean <= LITTLE and difference.interval[1] < 0,
        values,
        difference.p,
        "anchor 5/block",
    )


def _amplifying(rows: Records, direction: str, params: Intervention.Params) -> Finding | None:
    c = params.coefficient
    if (found := _moved(rows, action="amplify", coefficient=c, direction=direction)) is None:
        return None
    top, random, difference, n = found
    text = (
        f"{direction}: amplifying the top {plural(params.amplified)} by {c:g} makes failed prompts follow: MFR 0.000 to"
        f" {top}, with as many random heads {random}; difference {difference} (needs {SHIFT} or more, and more than at"
        f" random; n={n})"
    )
    values = {
        "direction": direction,
        "coefficient": c,
        **top.facts("top"),
        **random.facts("random"),
        **difference.facts("difference"),
        "n": n,
    }
    return Finding(text, top.mean >= SHIFT and difference.interval[0] > 0, values, difference.p, "anchor 5/amplify")


def _alone(rows: Records, direction: str, params: Intervention.Params) -> Finding | None:
    """What blocking costs where there is no conflict, and whether that is less than what it costs where there is
    one.
    """
    k = claimed(rows, params)
    before, after = (following(rows, "answers", direction=direction, heads=n, choice="top") for n in (0, k))
    conflict = following(rows, direction=direction, action="block", heads=k, choice="top")
    able = sorted(key for key in conflict if before and before[key] == 1)
    if not able:
        return None
    kept = share_of([after[key] for key in able], able)
    more = mean_of([after[key] - conflict[key] for key in able], able)
    text = (
        f"{direction}: blocking those heads leaves what needs no decision: of prompts with that modality alone {kept}"
        f" are still answered, {more} more than of the same samples in conflict (needs {1 - LITTLE / 2} or more, and"
        f" more than in conflict; n={len(able)})"
    )
    values = {"direction": direction, **kept.facts("kept"), **more.facts("difference"), "n": len(able)}
    return Finding(text, kept.mean >= 1 - LITTLE / 2 and more.interval[0] > 0, values, more.p, "anchor 5/specific")


def _table(rows: Records) -> Table:
    cells: dict[tuple, list[Mapping[str, Any]]] = {}
    for r in rows:
        if r["metric"] in ("follows", "answers"):
            cells.setdefault(
                (r["metric"], r["direction"], r["action"], r["choice"], r["heads"], r["coefficient"]), []
            ).append(r)
    out = []
    for key in sorted(cells):
        rate = share_of([r["value"] for r in cells[key]], [(r["sample"], r["form"]) for r in cells[key]])
        out.append((*key, rate.n, rate.mean, *rate.interval))
    columns = ("metric", "direction", "action", "choice", "heads", "coefficient", "n", "share", "low", "high")
    return Table(
        "interventions",
        "Following while heads are blocked or amplified; answers: one modality alone",
        columns,
        tuple(out),
    )


def _figure(rows: Records, params: Intervention.Params) -> Figure:
    panels = (
        ("block", "heads", "blocked heads", "blocking, prompts that follow"),
        ("amplify", "coefficient", "coefficient", f"amplifying {plural(params.amplified)}, prompts that fail"),
    )

    def draw(figure: matplotlib.figure.Figure) -> None:
        axes = figure.subplots(len(params.directions), 2, sharey=True, squeeze=False)
        for line, direction in zip(axes, params.directions, strict=True):
            for ax, (action, key, label, title) in zip(line, panels, strict=True):
                found = matching(rows, metric="follows", action=action, direction=direction)
                for choice, look in LOOKS.items():
                    _line(ax, [r for r in found if r["choice"] == choice], key, choice, look)
                n = len({(r["sample"], r["form"]) for r in found})
                ax.set(xlabel=label, ylim=(-0.04, 1.04))
                ax.set_title(f"{direction}: {title} (n={n})", fontsize=9)
            line[0].set_ylabel("MFR")
        handles = {
            text: handle for ax in axes.flat for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        axes[0][1].legend(handles.values(), handles.keys(), fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))

    caption = (
        "Modality-following ratio while heads are blocked (left) or amplified (right) at the instruction tokens; heads"
        f" chosen on training prompts, ratio on test prompts; the band spans {params.draws} draws of random heads"
        " (paper, figure 5c and table 4)."
    )
    return Figure("interventions", "Blocking and amplifying heads", caption, draw, (11.0, 3.2 * len(params.directions)))


def _line(ax: Axes, found: Records, key: str, choice: str, look: dict[str, Any]) -> None:
    """The mean over prompts by ``key``, and the range over draws."""
    at = sorted({r[key] for r in found})
    by_draw = [
        [np.mean([r["value"] for r in found if r[key] == x and r["draw"] == draw]) for x in at]
        for draw in sorted({r["draw"] for r in found})
    ]
    if at:
        ax.plot(at, np.mean(by_draw, 0), marker="o", markersize=4, label=f"{choice} heads", **look)
        ax.fill_between(at, np.min(by_draw, 0), np.max(by_draw, 0), color=look["color"], alpha=0.15, linewidth=0)

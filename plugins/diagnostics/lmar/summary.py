"""LMAR's tables and figures: one model (figures 1 and 8 of the MoReS paper), and several side by side (figures 1 and
2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil, isnan, nan
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from factory.benchmark import Records
from factory.diagnose.profiles import PROMPTS
from factory.diagnose.summary import Figure, Finding, Summary, Table

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure
    import matplotlib.image

Means = Mapping[str, Mapping[int, float]]
IMAGE, TEXT = PROMPTS["vision"][1], PROMPTS["text"][1]
MARKERS = "osD^vP*X<>"
TOP = "image's attention on its top tenth"
STRETCH = "stretch of image tokens, in reading order"


def summary_of(rows: Records, bins: int, tokens: int) -> Summary | None:
    """What the rows of one model say; None where no prompt has both modalities."""
    rows = _both(rows)
    means = _means(rows)
    lmar, n = means["lmar"], len({row["sample"] for row in rows})
    if not lmar:
        return None
    pooled = {layer: means["alpha_image"][layer] / means["alpha_text"][layer] for layer in lmar}
    above = [layer for layer, value in pooled.items() if value >= 1]
    finding = Finding(
        f"an image token gets {median(pooled.values()):.2f} times the attention of a text token in the median layer"
        f" ({n} samples), and as much or more in {len(above)} of {len(lmar)} layers; LMAR, the mean of the samples'"
        f" ratios, is {median(lmar.values()):.2f} there",
        values={
            "median_ratio_of_means": median(pooled.values()),
            "median_lmar": median(lmar.values()),
            "layers_above_one": len(above),
            "layers": len(lmar),
            "samples": n,
        },
    )
    columns: tuple[str, ...] = ("layer", "LMAR", "ratio of means", "attention to the image", "attention to text")
    lines: tuple[tuple[Any, ...], ...] = tuple(
        (i, lmar[i], pooled[i], means["attention_image"][i], means["attention_text"][i]) for i in lmar
    )
    findings = [finding]
    if peaks := means["image_top_tenth"]:
        findings.append(_sparse(peaks, tokens, n))
        columns, lines = (*columns, TOP), tuple((*line, peaks[line[0]]) for line in lines)
    caption = f"attention per image token over that per text token, {n} samples; 1 is balance"
    figures = [
        Figure(
            "lmar",
            "LMAR by layer",
            caption,
            lambda f: _lines(f, {"LMAR (mean of ratios)": lmar, "ratio of means": pooled}),
        ),
        Figure(
            "lmar_shares",
            "What the answer looks at, by layer",
            f"mean share of attention on the prompt's image tokens and on its text, {n} samples (figure 1 of the"
            " paper); what lacks to 1 is on neither",
            lambda f: _shares(f, {"": means}),
        ),
        Figure(
            "lmar_map",
            "Where the image is looked at",
            f"attention per image token by layer and place in reading order, {n} samples",
            lambda f: _maps(f, {"": _by_stretch(means, bins)}),
        ),
    ]
    if tokens > 1:
        figures.append(_steps_figure(means, list(lmar), bins, tokens, n))
    return Summary(
        "Layer-wise modality attention ratio",
        tuple(findings),
        (Table("lmar", "Attention by layer", columns, lines),),
        tuple(figures),
    )


def _sparse(peaks: Mapping[int, float], tokens: int, n: int) -> Finding:
    """Whether few image tokens have most of the attention (LLaVA Steering, A.6)."""
    most = [layer for layer, share in peaks.items() if share > 1 / 2]
    return Finding(
        f"as the answer's first tokens are written ({tokens} at most, {n} samples), a tenth of the image's tokens has"
        f" {100 * median(peaks.values()):.0f} % of what the image gets in the median layer, and more than half of it in"
        f" {len(most)} of {len(peaks)} layers; evenly spread it would have 10 %",
        values={"median_image_top_tenth": median(peaks.values()), "layers_mostly_on_a_tenth": len(most)},
    )


def beside_of(found: Mapping[str, Records], trained: Mapping[str, int], bins: int) -> Summary | None:
    """What the rows of several models say, by name; ``trained`` parameters of those that were tuned."""
    kept = {name: _both(rows) for name, rows in found.items()}
    means = {name: _means(rows) for name, rows in kept.items() if rows}
    if not means:
        return None
    n = len({row["sample"] for rows in kept.values() for row in rows})
    depth = len(next(iter(means.values()))["lmar"])
    level = {name: median(m["lmar"].values()) for name, m in means.items()}
    pooled = {name: median(m["alpha_image"][i] / m["alpha_text"][i] for i in m["lmar"]) for name, m in means.items()}
    share = {name: fmean(m["attention_image"].values()) for name, m in means.items()}
    highest = max(level, key=level.__getitem__)
    finding = Finding(
        f"in the median of {depth} layers LMAR ({n} samples) is highest for {highest} ({level[highest]:.3f}): "
        + ", ".join(f"{m} {v:.3f}" for m, v in level.items() if m != highest),
        values=level,
    )
    layers = tuple((layer, *(m["lmar"][layer] for m in means.values())) for layer in range(depth))
    whole = tuple(
        (name, trained.get(name), level[name], pooled[name], fmean(means[name]["lmar"].values()), share[name])
        for name in means
    )
    size = (max(6.0, 2.5 * min(4, len(means))), 2.6 * ceil(len(means) / 4) + 0.6)
    figures = [
        Figure(
            "lmar",
            "LMAR by layer",
            f"attention per image token over that per text token, {n} samples; 1 is balance (figure 2 of the paper)",
            lambda f: _lines(f, {name: m["lmar"] for name, m in means.items()}),
        ),
        Figure(
            "lmar_shares",
            "What the answer looks at, by layer",
            f"mean share of attention on the prompt's image tokens and on its text, {n} samples (figure 1, left); what"
            " lacks to 1 is on neither",
            lambda f: _shares(f, means),
            size,
        ),
        Figure(
            "lmar_maps",
            "Where the image is looked at",
            f"attention per image token by layer and place in reading order, {n} samples; one colour scale",
            lambda f: _maps(f, {name: _by_stretch(m, bins) for name, m in means.items()}),
            size,
        ),
    ]
    if any(trained.values()):
        figures.insert(
            2,
            Figure(
                "lmar_parameters",
                "Attention to the image against trained parameters",
                f"mean over layers and {n} samples (figure 1, right)",
                lambda f: _against(f, share, trained),
                (7.5, 4.2),
            ),
        )
    tables = (
        Table(
            "lmar",
            "LMAR over all layers",
            (
                "model",
                "trained parameters",
                "median layer",
                "ratio of means, median layer",
                "mean of layers",
                "attention to the image",
            ),
            whole,
        ),
        Table("lmar_layers", "LMAR by layer", ("layer", *means), layers),
    )
    return Summary("Layer-wise modality attention ratio", (finding,), tables, tuple(figures))


def _both(rows: Records) -> list[Mapping[str, Any]]:
    """The rows of samples that have both modalities."""
    lacking = {
        row["sample"] for row in rows if row["metric"] == "lmar" and (row["value"] is None or isnan(row["value"]))
    }
    return [row for row in rows if row["sample"] not in lacking]


def _means(rows: Records) -> dict[str, dict[int, float]]:
    """Mean of each metric over samples, by layer."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["value"] is not None and not isnan(
            row["value"]
        ):  # a stretch is empty where a modality has fewer tokens than stretches
            values[row["metric"]][row["layer"]].append(row["value"])
    return defaultdict(
        dict, {metric: {layer: fmean(by[layer]) for layer in sorted(by)} for metric, by in values.items()}
    )


def _by_stretch(means: Means, bins: int) -> list[list[float]]:
    """Attention per image token, [layers][bins]."""
    return [[means[f"attention_image_{j}"].get(layer, nan) for j in range(bins)] for layer in means["lmar"]]


def _lines(figure: matplotlib.figure.Figure, curves: Mapping[str, Mapping[int, float]]) -> None:
    axes = figure.subplots()
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(list(curve), list(curve.values()), marker=MARKERS[i % len(MARKERS)], label=name)
    axes.axhline(1, linestyle="--", linewidth=1, color="grey")
    axes.set(xlabel="layer", ylabel="image over text, per token", yscale="log")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def _panels(figure: matplotlib.figure.Figure, names: Sequence[str], columns: int = 4) -> list[matplotlib.axes.Axes]:
    """One panel a name, with shared axes."""
    columns = min(columns, len(names))
    grid = figure.subplots(ceil(len(names) / columns), columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.flat)
    for axes, name in zip(panels, names, strict=False):
        axes.set_title(name)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return panels[: len(names)]


def _shares(figure: matplotlib.figure.Figure, models: Mapping[str, Means]) -> None:
    for axes, means in zip(_panels(figure, list(models)), models.values(), strict=True):
        layers, image, text = list(means["lmar"]), means["attention_image"], means["attention_text"]
        axes.stackplot(
            layers,
            [image[i] for i in layers],
            [text[i] for i in layers],
            colors=[IMAGE, TEXT],
            labels=["image", "text"],
            alpha=0.85,
        )
        axes.set(ylim=(0, 1), xlim=(layers[0], layers[-1]))
    figure.supxlabel("layer")
    figure.supylabel("share of attention")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def _maps(figure: matplotlib.figure.Figure, models: Mapping[str, list[list[float]]]) -> None:
    most = max(value for grid in models.values() for line in grid for value in line if not isnan(value))
    panels = _panels(figure, list(models))
    for axes, grid in zip(panels, models.values(), strict=True):
        shown = axes.imshow(grid, aspect="auto", origin="lower", cmap="viridis", vmin=0, vmax=most)
        axes.grid(visible=False)
    figure.supxlabel(STRETCH)
    figure.supylabel("layer")
    figure.colorbar(shown, ax=panels, label="attention per token")


def _against(figure: matplotlib.figure.Figure, share: Mapping[str, float], trained: Mapping[str, int]) -> None:
    axes = figure.subplots()
    for i, (name, value) in enumerate(share.items()):
        if trained.get(name):
            axes.plot(
                [trained[name]], [value], marker=MARKERS[i % len(MARKERS)], linestyle="", color=f"C{i % 10}", label=name
            )
        else:
            axes.axhline(value, linestyle=":", linewidth=1.2, color=f"C{i % 10}", label=f"{name} (none)")
    axes.set(xscale="log", xlabel="trained parameters", ylabel="attention to the image")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def _steps_figure(means: Means, layers: Sequence[int], bins: int, tokens: int, n: int) -> Figure:
    """Figure 8: a map of every layer as the answer is written."""
    names = [f"{modality}_{j}" for modality in ("image", "text") for j in range(bins)]
    written = [
        step for step in range(tokens) if any(means[f"step_{step}_{name}"] for name in names)
    ]  # all answers may be shorter
    grids = {
        layer: [[means[f"step_{step}_{name}"].get(layer, nan) for name in names] for step in written]
        for layer in layers
    }
    caption = (
        f"attention per token of the answer's first {len(written)} tokens, {n} samples: the image's tokens in {bins}"
        " stretches (left of the line), then the text's (figure 8 of the paper); every layer has its own colour scale"
    )
    return Figure(
        "lmar_steps",
        "Attention maps by layer as the answer is written",
        caption,
        lambda f: _steps(f, grids, bins),
        (12.0, 2.0 * ceil(len(layers) / 4) + 0.8),
    )


def _steps(figure: matplotlib.figure.Figure, grids: Mapping[int, list[list[float]]], bins: int) -> None:
    for axes, grid in zip(_panels(figure, [f"layer {layer}" for layer in grids]), grids.values(), strict=True):
        axes.imshow(grid, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.axvline(bins - 0.5, color="white", linewidth=1.5)
        axes.grid(visible=False)
        axes.set_yticks(range(len(grid)), [str(step + 1) for step in range(len(grid))])
    figure.supxlabel("stretches of the image's tokens | of the text's, in reading order")
    figure.supylabel("token of the answer")

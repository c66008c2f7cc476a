"""The pictures of README and docs, drawn from a finished run: ``python -m eval_suite.site.pictures runs/amps_tiny``.

``idea.svg``: one test sample of the run, with the model's answers without and with steering. ``strength.svg``:
following and error rate over strength. ``scenes.png``: a sheet of the benchmark. ``report.png``: the head of the run's
report, where a Chromium is installed. The drawings turn with a dark page.
"""

from __future__ import annotations

import argparse
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

import factory
from eval_suite.report import style
from eval_suite.report.rows import TOTAL, Group, groups, labels, target
from eval_suite.scenes.sheet import save_sheet
from eval_suite.site.look import chromium
from factory.data.sample import ConflictSample
from factory.diagnose.profiles import PROMPTS
from factory.errors import UserError
from factory.plain import ending_in_one_line
from factory.recipe import load
from factory.recipe.nodes import given

FOLDER = Path(__file__).parents[2] / "docs"
SHOWN = ("static", "l2s", "amps", "dose")
BESIDE = ("instruction",)
IMAGE, TEXT, INK = PROMPTS["vision"][1], PROMPTS["text"][1], "#222222"


def draw(run: factory.Run, folder: Path) -> list[Path]:
    """Write all pictures into ``folder``. Raises ``UserError`` where the run has no sample that steering turns."""
    drawn = {"idea.svg": idea(*turned(run)), "strength.svg": strength(run.results)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        (folder / name).write_bytes(svg)
    save_sheet(folder).rename(folder / "scenes.png")
    return [*(folder / name for name in drawn), folder / "scenes.png", *photographed(run, folder / "report.png")]


def photographed(run: factory.Run, picture: Path) -> list[Path]:
    """The head of a run's report as a browser shows it; none where there is no Chromium."""
    if (found := chromium()) is None:
        print("report.png is left as it is: no Chromium was found")
        return []
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,1250"]
    words = [found, *options, f"--screenshot={picture}", run.report.absolute().as_uri()]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return [picture]


def turned(run: factory.Run, task: str = "color") -> tuple[ConflictSample, str, str]:
    """The easiest test sample whose text the model believes until it is steered toward the image; the answers without,
    and with the run's reference method.
    """
    unsteered, reference = labels(run.results)
    told: dict[tuple[str, str], Mapping[str, Any]] = {
        (row["sample"], row["method"]): row
        for row in run.predictions
        if row["direction"] == "vision" and row.get("split") == "test" and row.get("chosen")
    }
    found: list[tuple[int, int, ConflictSample, str, str]] = []
    for sample in given(load(run.folder / "resolved.yaml").data).make().samples("test"):
        before, after = (told.get((sample.id, method or "")) for method in (unsteered, reference))
        sides = [row["verdicts"] for row in (before, after) if row]
        if sample.task == task and before and after and sides == [["text"], ["vision"]]:
            grade = before.get("visual_tier", 0) + before.get("text_tier", 0)
            found.append((grade, len(found), sample, before["answers"][0], after["answers"][0]))
    if found:
        return min(found)[2:]
    raise UserError(f"{run.folder}: no {task} sample follows the text unsteered and the image under {reference}")


def idea(sample: ConflictSample, before: str, after: str) -> bytes:
    """The picture shows A, the text says B; unsteered the model says B, steered it says A."""
    with style.styled():
        figure = style.canvas(9.2, 2.95)
        figure.set_layout_engine("none")
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        ax.set(xlim=(0, 9.2), ylim=(0, 2.95))
        ax.set_axis_off()
        _picture(ax, sample.load_image(), (0.3, 0.62, 2.1))
        ax.text(1.35, 0.3, f"the picture shows: {sample.answer_vision}", ha="center", color=IMAGE, fontsize=12)
        words = [*textwrap.wrap(f"“{sample.context}”", 28), "", *textwrap.wrap(sample.question, 28)]
        _box(ax, (2.75, 0.62, 2.55, 2.1), "\n".join(words), TEXT, size=11)
        ax.text(4.02, 0.3, f"the text says: {sample.answer_text}", ha="center", color=TEXT, fontsize=12)
        for y, head, answer, color in (
            (2.0, "as it is", before, TEXT),
            (0.62, "steered toward\nthe image", after, IMAGE),
        ):
            ax.add_patch(FancyArrowPatch((5.42, 1.67), (6.1, y + 0.36), arrowstyle="-|>", mutation_scale=14, color=INK))
            _box(ax, (6.2, y, 2.75, 0.72), "", color)
            ax.text(6.36, y + 0.36, head, va="center", fontsize=10.5, color="#444444")
            ax.text(8.8, y + 0.36, f"“{answer}”", va="center", ha="right", fontsize=14, weight="bold", color=color)
        return style.finish(figure, "idea", "", "").svg


def _picture(ax: Axes, picture: Image.Image, place: tuple[float, float, float]) -> None:
    x, y, side = place
    ax.imshow(picture, extent=(x, x + side, y, y + side), interpolation="nearest", zorder=2)
    ax.set(xlim=(0, 9.2), ylim=(0, 2.95))
    ax.add_patch(FancyBboxPatch((x, y), side, side, boxstyle="square,pad=0.03", fill=False, edgecolor=IMAGE, lw=2))


def _box(ax: Axes, place: tuple[float, float, float, float], words: str, color: str, size: float = 11) -> None:
    x, y, width, height = place
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.03", facecolor=style.PAPER, edgecolor=color, lw=2
    )
    ax.add_patch(shape)
    ax.text(x + width / 2, y + height / 2, words, ha="center", va="center", fontsize=size, color=INK)


def strength(results: Mapping[str, Any]) -> bytes:
    """Following and error rate over strength, one column a direction; levels of the model as it is and of a prompt."""
    [group] = groups(results)
    palette = style.looks(group.methods(every=True), labels(results)[0])
    with style.styled():
        figure = style.canvas(9.2, 5.4)
        axes = figure.subplots(
            2, len(group.directions), sharex="col", sharey="row", height_ratios=[1.7, 1], squeeze=False
        )
        handles: dict[str, Any] = {}
        for column, direction in enumerate(group.directions):
            for row, metric in enumerate(("follow", "error")):
                handles |= _lines(axes[row, column], group, direction, metric, palette, labels(results)[0])
            axes[0, column].set_title(f"Toward {target(direction)}")
            axes[1, column].set_xlabel("strength")
        axes[0, 0].set_ylabel("following rate (%)")
        axes[1, 0].set_ylabel("error rate (%)")
        axes[0, 0].set_ylim(0, 103)
        style.legend_below(figure, handles)
        return style.finish(figure, "strength", "", "").svg


def _lines(
    ax: Axes, group: Group, direction: str | None, metric: str, palette: Mapping[str, style.Look], unsteered: str
) -> dict[str, Any]:
    handles: dict[str, Any] = {}
    for method in (m for m in (unsteered, *BESIDE, *SHOWN) if m in group.methods(direction)):
        look = palette[method]
        name = "as it is" if method == unsteered else method
        split = group.curve_split
        swept = [s for s in group.strengths(direction, method, split) if s is not None]
        if not swept:
            if (cell := group.cell(direction, method, TOTAL, metric, None, split)) is not None:
                handles[name] = ax.axhline(100 * cell.value, color=look.color, lw=1.5, ls="--")
            continue
        cells = [group.cell(direction, method, TOTAL, metric, s, split) for s in swept]
        points = [(s, 100 * cell.value) for s, cell in zip(swept, cells, strict=True) if cell is not None]
        (handles[name],) = ax.plot(*zip(*points, strict=True), color=look.color, marker=look.marker, ms=4.5)
        choice = group.choice(direction, method)
        chosen = [point for point in points if choice and choice.chosen and point[0] == choice.strength]
        ax.plot(*zip(*chosen, strict=True), color=look.color, marker=look.marker, ms=11, mec="white", zorder=5, ls="")
    return handles


@ending_in_one_line()
def main(words: Sequence[str] | None = None) -> None:
    """Draw the pictures of a run, as the module says."""
    parser = argparse.ArgumentParser(prog="python -m eval_suite.site.pictures", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run of recipes/amps_tiny.yaml")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="FOLDER", help="default: docs")
    args = parser.parse_args(words)
    for path in draw(factory.read(args.run), args.to):
        print(path)


if __name__ == "__main__":
    main()

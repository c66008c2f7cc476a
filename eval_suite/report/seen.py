"""What a drawn figure shows, in words: read off the drawing, for whoever cannot see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

LONGEST = 1500  # characters
Names = dict[tuple[str, Any], str]
"""Labels of the legend by the colour and marker that they explain."""


def seen(figure: Canvas) -> str:
    """Each panel with its axes, and of each labelled line where it begins, ends and has its extremes."""
    names = _legend(figure)
    panels = [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]
    said = [_panel(ax, names) for ax in panels]
    count = f"{len(panels)} panels. " if len(panels) > 1 else ""
    text = count + " ".join(said)
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0] + " …"


def _legend(figure: Canvas) -> Names:
    legends = [*figure.legends, *(legend for ax in figure.axes if (legend := ax.get_legend()) is not None)]
    return {
        _look(handle): text.get_text()
        for legend in legends
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
        if isinstance(handle, Line2D)
    }


def _look(line: Line2D) -> tuple[str, Any]:
    return to_hex(line.get_color()), line.get_marker()


def _panel(ax: Axes, names: Names) -> str:
    title = next((t for where in ("left", "center", "right") if (t := ax.get_title(loc=where))), "")
    axes = " against ".join(label for label in (_y_label(ax), _x_label(ax)) if label)
    lines = list(dict.fromkeys([*_lines(ax, names), *_cells(ax)]))
    body = "; ".join(lines)
    head = ": ".join(part for part in (title, axes) if part)
    return " ".join(part for part in (f"{head}." if head else "", f"{body}." if body else "") if part).replace(
        "\n", " "
    )


def _x_label(ax: Axes) -> str:
    return ax.get_xlabel() or next((other.get_xlabel() for other in ax.get_shared_x_axes().get_siblings(ax)), "")


def _y_label(ax: Axes) -> str:
    shared = ax.get_shared_y_axes().get_siblings(ax)
    return ax.get_ylabel() or next((label for other in shared if (label := other.get_ylabel())), "")


def _lines(ax: Axes, names: Names) -> Iterator[str]:
    for line in ax.get_lines():
        x, y = (np.asarray(values, float) for values in line.get_data())
        known = np.isfinite(x) & np.isfinite(y) if x.shape == y.shape else np.zeros(0, bool)
        if not known.any() or (name := names.get(_look(line))) is None:
            continue
        x, y = x[known], y[known]
        if len(x) == 1 or line.get_transform() != ax.transData:  # a mark, or a line across the panel
            yield f"{name} {y[0]:.3g}"
            continue
        high, low = int(y.argmax()), int(y.argmin())
        inside = [f"{word} {y[i]:.3g} at {x[i]:.3g}" for word, i in (("highest", high), ("lowest", low))]
        yield f"{name} from {y[0]:.3g} at {x[0]:.3g} to {y[-1]:.3g} at {x[-1]:.3g}, {', '.join(inside)}"


def _cells(ax: Axes) -> Iterator[str]:
    """Heat maps: the values' range and place."""
    for image in ax.get_images():
        values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
        if values.ndim == 2 and np.isfinite(values).any():
            rows, columns = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
            for word, at in (("highest", np.nanargmax(values)), ("lowest", np.nanargmin(values))):
                i, j = np.unravel_index(at, values.shape)
                named = len(rows) == values.shape[0] and len(columns) == values.shape[1]
                place = f"row {rows[i]}, column {columns[j]}" if named else f"row {i + 1}, column {j + 1}"
                yield f"{word} {values[i, j]:.3g} in {place}"

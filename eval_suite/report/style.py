"""Colours, fonts and files shared by every figure."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from eval_suite.report.seen import seen

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe-Ito and Tol's muted set: told apart under the common colour-vision deficiencies, dark enough on white.
_UNSTEERED = ("#6e6e6e", "o")
_KNOWN = {
    "instruction": ("#CC79A7", "<"),
    "cot": ("#E69F00", ">"),
    "few_shot": ("#882255", "h"),
    "static": ("#56B4E9", "v"),
    "l2s": ("#0072B2", "s"),
    "amps": ("#D55E00", "o"),
    "dose": ("#009E73", "D"),
}
_COLORS = (
    "#332288",
    "#999933",
    "#AA4499",
    "#44AA99",
    "#661100",
    "#000000",
    "#CC6677",
    "#117733",
    "#B8860B",
    "#4B7F9E",
    "#9467BD",
    "#8B5A2B",
)
_MARKERS = ("^", "p", "d", "<", "h", ">", "P", "X", "*", "8", "v", "s")

BANDED = 8  # curves of a figure that can have their intervals around them and still be seen
PAPER = "#fefefe"  # a white of its own: a dark page turns paper, and not what is white on purpose

RC: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "svg.fonttype": "path",
    "svg.hashsalt": "report",
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}

# A figure on a dark page: paper, ink and grid are turned, and what would not stand out from dark paper is lightened.
_ON_DARK = {
    PAPER: "#212327",
    "#000000": "#e8e6e1",
    "#444444": "#a5a29b",
    "#222222": "#c9c7c1",
    "#e4e4e4": "#3b3b40",
    "#dddddd": "#5a5c64",
    "#6e6e6e": "#a8a8a8",
    "#332288": "#a79cf5",
    "#661100": "#e8836b",
    "#882255": "#b8416f",
    "#aa4499": "#e58fe8",
    "#117733": "#63c585",
    "#0072b2": "#3f7df0",
    "#44519e": "#8d9aec",
    "#8b5a2b": "#a97b4e",
    "#4b7f9e": "#5a8fae",
}


def _dark_rules() -> bytes:
    turned = " ".join(
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important; }}'
        for light, dark in _ON_DARK.items()
        for what in ("fill", "stroke")
    )
    return f"@media screen and (prefers-color-scheme: dark) {{ svg {{ fill: #e8e6e1; }} {turned} }}".encode()


DARK = _dark_rules()


@dataclass(frozen=True)
class Figure:
    """A drawn figure: `name` is its file stem, `caption` says what is against what, `alt` what is seen, `wide` asks for
    full width.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    wide: bool = True
    inches: float = 10.0
    pdf: bytes = b""
    alt: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        """The figure by the suffix of its file."""
        return {"png": self.png, "svg": self.svg, "pdf": self.pdf}


@dataclass(frozen=True)
class Look:
    color: str
    marker: str


def looks(methods: Iterable[str], unsteered: str) -> dict[str, Look]:
    """One colour and marker per method, no two of them alike, grey for the label ``unsteered``; the same in every
    figure of a report.
    """
    palette, spare = {}, 0
    for method in dict.fromkeys(methods):
        known = _UNSTEERED if method == unsteered else _KNOWN.get(method)
        if known is None:
            n = len(_COLORS)
            known, spare = (_COLORS[spare % n], _MARKERS[(spare + spare // n) % n]), spare + 1
        palette[method] = Look(*known)
    return palette


def canvas(width: float, height: float) -> Canvas:
    """An empty figure, in inches, on the Agg canvas: no display and no global state."""
    figure = Canvas(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_below(figure: Canvas, handles: Mapping[str, Artist]) -> None:
    """One legend for all panels, in as many columns as the labels leave room for."""
    longest = 0.75 + 0.1 * max(map(len, handles))  # inches: the line sample, then about a tenth per letter
    columns = max(1, min(len(handles), 5, int(figure.get_figwidth() / longest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def band(ax: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
    """An interval around a curve; a bar where the curve is one point."""
    if len(x) == 1:
        ax.vlines(x, low, high, color=color, alpha=0.5)
    else:
        ax.fill_between(x, low, high, color=color, alpha=0.14, linewidth=0)


def finish(figure: Canvas, name: str, title: str, caption: str, wide: bool = True) -> Figure:
    """Render to SVG, PNG and PDF. The bytes depend on the drawing alone, so an unchanged report stays unchanged."""
    svg, png, pdf = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.set_layout_engine("none")  # the axes are placed now; placing them again for the PNG is half the time
    figure.savefig(png, format="png", dpi=160)
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    width = float(figure.get_figwidth())
    adaptive = svg.getvalue().replace(b"</style>", DARK + b"</style>", 1)
    return Figure(name, title, caption, adaptive, png.getvalue(), wide, width, pdf.getvalue(), seen(figure))


def styled() -> AbstractContextManager[None]:
    """Context in which figures are drawn in the house style."""
    return matplotlib.rc_context(RC)

"""Figures on a dark page: what is drawn in ink or on paper turns with the page, in every file that draws."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import is_color_like, to_hex, to_rgb

from eval_suite.report.style import _COLORS, _KNOWN, _ON_DARK, DARK, PAPER

ROOT = Path(__file__).parents[2]
FILES = [path for room in ("factory", "plugins", "eval_suite") for path in sorted((ROOT / room).rglob("*.py"))]
LINES = ("color", "ecolor", "edgecolor", "edgecolors", "markeredgecolor", "mec", "c")
AREAS = ("facecolor", "facecolors", "fc")
WHITE = np.array([0.9505, 1.0, 1.089])


def luminance(color: str) -> float:
    """Relative luminance by WCAG 2."""
    parts = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def lab(color: str) -> np.ndarray:
    """CIE L*a*b* under D65."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in to_xyz @ np.array(linear) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def written(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of the colours that a file writes out, as arguments or as entries of a dictionary."""
    for node in ast.walk(ast.parse(text)):
        pairs = [(node.arg, node.value)] if isinstance(node, ast.keyword) else []
        if isinstance(node, ast.Dict):
            pairs = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values, strict=True)]
        for name, value in pairs:
            told = value.value if name in LINES + AREAS and isinstance(value, ast.Constant) else None
            if isinstance(told, str) and told != "none" and is_color_like(told):
                yield name, told


def lost(name: str, color: str) -> bool:
    """Whether a line or text of a colour is not seen on dark paper, or an area stays as light as light paper."""
    dark = _ON_DARK.get(to_hex(color), to_hex(color))
    return luminance(dark) > 0.85 if name in AREAS else contrast(dark, _ON_DARK[PAPER]) < 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ax.plot(x, color='#1a1a1a')", True),
        ("ax.axvline(x, color='0.3')", True),
        ("box = {'facecolor': 'white'}", True),
        ("ax.plot(x, color='#222222')", False),
        ("ax.axhline(0, color='grey')", False),
        ("props = {'color': 'white'}", False),
    ],
)
def test_a_colour_that_is_lost_on_dark_paper_is_found(text, expected):
    assert [lost(*each) for each in written(text)] == [expected]


def test_no_figure_loses_a_line_or_keeps_a_white_box_on_a_dark_page():
    skipped = ("play", "scenes")  # a page with themes of its own, and pictures for models
    drawing = [path for path in FILES if not set(path.relative_to(ROOT).parts[1:-1]) & set(skipped)]
    texts = ((path, path.read_text(encoding="utf-8")) for path in drawing)
    found = {(path, each) for path, text in texts if "color" in text for each in written(text)}
    assert len(found) > 15
    assert not [(path.relative_to(ROOT), *each) for path, each in sorted(found) if lost(*each)]


@pytest.mark.parametrize("turned", [{}, _ON_DARK], ids=["light", "dark"])
def test_methods_are_told_apart_by_their_colours(turned):
    """In L*a*b* 2.3 is a just noticeable difference; lines are thin."""
    colors = [color.lower() for color in (*(color for color, _ in _KNOWN.values()), *_COLORS)]
    shown = [turned.get(color, color) for color in colors]
    assert all(np.linalg.norm(lab(one) - lab(other)) > 17 for one, other in combinations(shown, 2))
    assert all(contrast(color, turned.get(PAPER, PAPER)) > 1.9 for color in shown)


@pytest.mark.parametrize("name", ["idea.svg", "strength.svg"])
def test_drawings_on_the_pages_turn_as_those_of_a_report(name):
    assert DARK in (ROOT / "docs" / name).read_bytes(), "python -m eval_suite.site.pictures RUN draws it anew"

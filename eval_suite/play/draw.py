"""What the page shows beside answers, as HTML of its own: a curve, bars, a heat map. All follow the page's colours."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

from eval_suite.play.session import Answers, Curve
from factory.instruments.looks import Looks

SIDES = {"vision": "the picture's answer", "text": "the text's answer"}
VERDICTS = {
    "vision": ("follows the picture", "vision"),
    "text": ("follows the text", "text"),
    "flags": ("says that they disagree", "other"),
    "error": ("broken", "error"),
}
WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 52
HEAT = 320  # pixels of the heat map's longer side
CSS = """
.sf-note { color: var(--body-text-color); opacity: .8; margin: 0; }
.sf-figure { margin: 0; } .sf-figure svg { width: 100%; height: auto; display: block; }
.sf-figure text { fill: var(--body-text-color); font: 13px var(--font, sans-serif); }
.sf-figure .grid { stroke: var(--border-color-primary); } .sf-figure .at { stroke: var(--body-text-color); }
.sf-vision { --side: #5b6bd6; } .sf-text { --side: #d0596a; } .sf-other, .sf-error { --side: #8a8a8a; }
.dark .sf-vision { --side: #93a0f5; } .dark .sf-text { --side: #f08a98; } .dark .sf-other { --side: #a5a5a5; }
.sf-figure .line { fill: none; stroke: var(--side); stroke-width: 2.5; } .sf-figure .dot { fill: var(--side); }
.sf-key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; color: var(--body-text-color); margin: .3rem 0 0; }
.sf-key span::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  background: var(--side); margin-right: .45em; }
.sf-verdict { display: inline-block; border-radius: 1em; padding: .1em .75em; border: 1.5px solid var(--side);
  color: var(--body-text-color); }
.sf-verdict::before { content: ""; display: inline-block; width: .65em; height: .65em; border-radius: 50%;
  background: var(--side); margin-right: .45em; }
.sf-bars { display: grid; grid-template-columns: auto 1fr auto; gap: .35rem .7rem; align-items: center; }
.sf-bars .track { height: .8em; border-radius: .4em; overflow: hidden; background: var(--border-color-primary); }
.sf-bars .track i { display: block; height: 100%; background: var(--side); }
.sf-maps { display: flex; flex-wrap: wrap; gap: 1rem; }
.sf-maps figure { margin: 0; flex: 1 1 130px; max-width: 320px; }
@media (max-width: 640px) { .sf-figure text { font-size: 19px; } .sf-figure .line { stroke-width: 3.5; } }
.sf-maps img { width: 100%; height: auto; border-radius: 6px; image-rendering: auto; display: block; }
.sf-maps figcaption { color: var(--body-text-color); margin-top: .3rem; }
"""


def note(text: str) -> str:
    """A line in place of a figure."""
    return f'<p class="sf-note">{escape(text)}</p>'


def verdict(said: str, done: bool) -> str:
    """What the rule says of an answer; nothing before it is whole or where both sides are not told."""
    if not done or not said:
        return ""
    text, side = VERDICTS.get(said, ("follows neither", "other"))
    return f'<span class="sf-verdict sf-{side}">{text}</span>'


def verdicts(answers: Answers) -> tuple[str, str]:
    """``verdict`` of both answers."""
    unsteered, steered = answers.verdicts
    return verdict(unsteered, answers.done), verdict(steered, answers.done)


def curve(found: Curve, strength: float) -> str:
    """Probability over strength, a line a side, and where the slider stands."""
    if not found.strengths:
        return note(found.note)
    most = found.strengths[-1]
    x = lambda value: LEFT + (WIDTH - LEFT - RIGHT) * value / most
    y = lambda value: TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(p):.1f}" y2="{y(p):.1f}"/>' for p in _QUARTERS
    ]
    parts += [f'<text x="{LEFT - 6}" y="{y(p) + 4:.1f}" text-anchor="end">{p:g}</text>' for p in (0, 0.5, 1)]
    ticks = [most * i / 4 for i in range(5)]
    parts += [f'<text x="{x(t):.1f}" y="{HEIGHT - 28}" text-anchor="middle">{t:g}</text>' for t in ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">strength</text>')
    for side, values in (("vision", found.vision), ("text", found.text)):
        points = " ".join(f"{x(s):.1f},{y(p):.1f}" for s, p in zip(found.strengths, values, strict=True))
        now = float(np.interp(strength, found.strengths, values))
        parts.append(f'<g class="sf-{side}"><polyline class="line" points="{points}"/>')
        parts += [
            f'<circle class="dot" cx="{x(s):.1f}" cy="{y(p):.1f}" r="3"><title>{SIDES[side]} at strength {s:g}: {p:.1%}'
            "</title></circle>"
            for s, p in zip(found.strengths, values, strict=True)
        ]
        parts.append(f'<circle class="dot" cx="{x(strength):.1f}" cy="{y(now):.1f}" r="6"/></g>')
    at = x(strength)
    parts.append(
        f'<line class="at" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke-dasharray="3 4"/>'
    )
    near = {side: float(np.interp(strength, found.strengths, getattr(found, side))) for side in SIDES}
    told = "; ".join(f"{name} {near[side]:.0%}" for side, name in SIDES.items())
    key = "".join(f'<span class="sf-{side}">{name}: {near[side]:.0%}</span>' for side, name in SIDES.items())
    return (
        f'<figure class="sf-figure"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Probability over'
        f' strength; at {strength:g}: {told}">{"".join(parts)}</svg><p class="sf-key">{key}</p></figure>'
    )


_QUARTERS = (0, 0.25, 0.5, 0.75, 1)


def ratios(found: Mapping[str, float]) -> str:
    """R_V and R_T as bars; of a diagnostic without them, its numbers as a list."""
    if not found:
        return note("no diagnostic is set")
    if not {"R_V", "R_T"} <= set(found):
        return note(", ".join(f"{metric} {value:.3g}" for metric, value in found.items()))
    if np.isnan(found["R_V"]):
        return note("neither the picture nor the text moves the next token")
    rows = (("R_V", "vision", "picture"), ("R_T", "text", "text"))
    bars = "".join(
        f'<span>R<sub>{name[-1]}</sub> {what}</span><span class="track sf-{side}">'
        f'<i style="width:{found[name]:.1%}"></i></span><b>{found[name]:.2f}</b>'
        for name, side, what in rows
    )
    return f'<div class="sf-bars">{bars}</div>'


def attention(found: tuple[Looks, Looks] | None, layer: int) -> str:
    """Both heat maps of a layer on the picture, on one scale, and how much of the attention is on the picture."""
    if found is None:
        return note("the prompt shows no picture")
    scale = max(float(looks.on_tokens[layer].max()) for looks in found)
    figures = []
    for name, looks in zip(("as it is", "steered"), found, strict=True):
        mass = float(looks.mass[layer])
        if looks.maps is None:
            figures.append(
                f"<figure><figcaption><b>{name}</b>: {mass:.1%} of the attention on the picture</figcaption></figure>"
            )
            continue
        alt = f"Layer {layer}, {name}: where the last token looks on the picture"
        shown = heat(looks.picture, looks.maps[layer].numpy() / (scale or 1.0))
        figures.append(
            f'<figure><img src="{data_url(shown)}" alt="{alt}"><figcaption><b>{name}</b>: {mass:.1%} of the attention'
            " is on the picture</figcaption></figure>"
        )
    tail = (
        "" if found[0].maps is not None else note("this model cuts the picture into tiles, so that no map lies on it")
    )
    return (
        f'<div class="sf-maps">{"".join(figures)}</div>{tail}{profile([looks.mass.tolist() for looks in found], layer)}'
    )


def heat(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """A picture in grey under its weights [rows, columns] in 0..1, from dark over red to yellow."""
    width, height = (round(side * HEAT / max(picture.size)) for side in picture.size)
    size = width, height
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.BICUBIC), np.float64)[..., None] / 255
    cells = Image.fromarray((weights.clip(0, 1) * 255).astype(np.uint8))
    w = np.asarray(cells.resize(size, Image.Resampling.BILINEAR), np.float64)[..., None] / 255
    hot = np.concatenate([np.minimum(1, 1.6 * w + 0.2), np.clip(1.9 * w - 0.6, 0, 1), np.clip(4 * w - 3.2, 0, 1)], -1)
    opacity = 0.85 * w**0.6
    return Image.fromarray(((grey * (1 - opacity) + hot * opacity) * 255).round().astype(np.uint8))


def profile(masses: Sequence[Sequence[float]], layer: int) -> str:
    """The share of attention on the picture by layer, unsteered dashed and steered whole, with the layer shown."""
    depth, height = len(masses[0]), 140
    x = lambda i: LEFT + (WIDTH - LEFT - RIGHT) * (i / max(depth - 1, 1))
    y = lambda value: TOP + (height - TOP - BOTTOM) * (1 - value)
    parts = [f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(p)}" y2="{y(p)}"/>' for p in (0, 0.5, 1)]
    parts += [f'<text x="{LEFT - 6}" y="{y(p) + 4}" text-anchor="end">{p:.0%}</text>' for p in (0, 1)]
    step = max(1, depth // 8)
    parts += [f'<text x="{x(i):.1f}" y="{height - 28}" text-anchor="middle">{i}</text>' for i in range(0, depth, step)]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{height - 6}" text-anchor="middle">layer</text>')
    for values, dash in zip(masses, ("4 4", "none"), strict=True):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values))
        parts.append(f'<polyline class="line" stroke-dasharray="{dash}" points="{points}"/>')
    parts.append(f'<circle class="dot" cx="{x(layer):.1f}" cy="{y(masses[1][layer]):.1f}" r="6"/>')
    told = ", ".join(f"{v:.0%}" for v in masses[1])
    return (
        f'<figure class="sf-figure sf-vision"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Share of the'
        f' attention on the picture by layer, steered: {told}">{"".join(parts)}</svg></figure>'
    )


def data_url(picture: Image.Image) -> str:
    """A picture inside a page."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

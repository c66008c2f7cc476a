"""Drawing: shapes, faces and stick figures on a noisy, cluttered canvas (Pillow)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

SIZE = 48
SUPERSAMPLE = 2
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (236, 205, 30),
    "purple": (140, 70, 180),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
PATTERNS = ("solid", "striped", "dotted", "checked", "hollow")
INK = (40, 40, 40)


@dataclass(frozen=True)
class VisualTier:
    """One grade of visual difficulty: half-size of the target in pixels, clutter, occlusion and noise."""

    radius: tuple[float, float]
    clutter: int
    occlusion: float
    noise: float


VISUAL_TIERS = (
    VisualTier((9.5, 11.5), 0, 0.0, 0.0),
    VisualTier((8.0, 9.5), 1, 0.0, 0.03),
    VisualTier((7.0, 8.0), 2, 0.2, 0.06),
    VisualTier((6.0, 7.0), 3, 0.3, 0.10),
)


def outline(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """Polygon of a shape centred at (cx, cy) with half-size ``r``."""

    def ring(n: int, radii: Callable[[int], float], start: float = -math.pi / 2) -> list[tuple[float, float]]:
        return [
            (
                cx + radii(i) * math.cos(start + 2 * math.pi * i / n),
                cy + radii(i) * math.sin(start + 2 * math.pi * i / n),
            )
            for i in range(n)
        ]

    if shape == "circle":
        return ring(28, lambda i: r)
    if shape == "square":
        return [
            (cx - r * 0.88, cy - r * 0.88),
            (cx + r * 0.88, cy - r * 0.88),
            (cx + r * 0.88, cy + r * 0.88),
            (cx - r * 0.88, cy + r * 0.88),
        ]
    if shape == "triangle":
        return [(cx, cy - r), (cx + r, cy + r * 0.85), (cx - r, cy + r * 0.85)]
    if shape == "star":
        return ring(10, lambda i: r * 1.1 if i % 2 == 0 else r * 0.45)
    if shape == "cross":
        w = r * 0.34
        arms = [
            (-w, -r),
            (w, -r),
            (w, -w),
            (r, -w),
            (r, w),
            (w, w),
            (w, r),
            (-w, r),
            (-w, w),
            (-r, w),
            (-r, -w),
            (-w, -w),
        ]
        return [(cx + x, cy + y) for x, y in arms]
    if shape == "heart":
        points = []
        for i in range(28):
            t = 2 * math.pi * i / 28
            x = 16 * math.sin(t) ** 3
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((cx + x / 16 * r, cy - y / 16 * r))
        return points
    raise ValueError(f"no such shape: {shape}")


class Canvas:
    """A picture of ``scale * size`` pixels a side, drawn at twice the size and reduced; coordinates are final pixels at
    scale 1.
    """

    def __init__(self, rng: Random, size: int = SIZE, scale: int = 1) -> None:
        self.rng, self.scale = rng, scale
        self.k = SUPERSAMPLE * scale
        tint = [rng.randint(222, 250) for _ in range(3)]
        self.image = Image.new("RGB", (size * self.k, size * self.k), tuple(tint))
        self.pen = ImageDraw.Draw(self.image)
        self.background = tuple(tint)

    def polygon(
        self,
        points: list[tuple[float, float]],
        fill: tuple[int, int, int] | None,
        edge: tuple[int, int, int] | None = None,
        width: float = 1.0,
    ) -> None:
        scaled = [(x * self.k, y * self.k) for x, y in points]
        if fill is not None:
            self.pen.polygon(scaled, fill=fill)
        if edge is not None:
            self.pen.line([*scaled, scaled[0]], fill=edge, width=max(1, round(width * self.k)), joint="curve")

    def line(self, points: list[tuple[float, float]], color: tuple[int, int, int] = INK, width: float = 1.5) -> None:
        self.pen.line(
            [(x * self.k, y * self.k) for x, y in points],
            fill=color,
            width=max(1, round(width * self.k)),
            joint="curve",
        )

    def disc(
        self,
        x: float,
        y: float,
        r: float,
        fill: tuple[int, int, int] | None = INK,
        edge: tuple[int, int, int] | None = None,
        width: float = 1.2,
    ) -> None:
        box = [(x - r) * self.k, (y - r) * self.k, (x + r) * self.k, (y + r) * self.k]
        self.pen.ellipse(box, fill=fill, outline=edge, width=max(1, round(width * self.k)))

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, end: float, width: float = 1.4) -> None:
        box = [(x - rx) * self.k, (y - ry) * self.k, (x + rx) * self.k, (y + ry) * self.k]
        self.pen.arc(box, start, end, fill=INK, width=max(1, round(width * self.k)))

    def shape(self, shape: str, color: str, x: float, y: float, r: float, pattern: str = "solid") -> None:
        """A shape in a colour; patterns are cut in the background's colour."""
        rgb, points = COLORS[color], outline(shape, x, y, r)
        if pattern == "hollow":
            self.polygon(points, None, rgb, width=max(1.5, r * 0.22))
            return
        self.polygon(points, rgb)
        if pattern == "solid":
            return
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon([(px * self.k, py * self.k) for px, py in points], fill=255)
        overlay = Image.new("L", self.image.size, 0)
        pen, k, step = ImageDraw.Draw(overlay), self.k, max(3.0, r * 0.45)
        n = int(2 * r / step) + 2
        for i in range(-1, n):
            at = y - r + i * step
            if pattern == "striped":
                pen.rectangle([(x - r) * k, at * k, (x + r) * k, (at + step * 0.5) * k], fill=255)
                continue
            for j in range(-1, n):
                left = x - r + j * step
                if pattern == "dotted":
                    pen.ellipse(
                        [
                            (left + step * 0.2) * k,
                            (at + step * 0.2) * k,
                            (left + step * 0.75) * k,
                            (at + step * 0.75) * k,
                        ],
                        fill=255,
                    )
                elif (i + j) % 2 == 0:
                    pen.rectangle([left * k, at * k, (left + step) * k, (at + step) * k], fill=255)
        both = Image.fromarray(np.minimum(np.asarray(mask), np.asarray(overlay)))
        self.image.paste(self.background, (0, 0), both)
        self.polygon(points, None, rgb, width=1.0)

    def bar(self, x: float, y: float, r: float, share: float) -> None:
        """Occlude ``share`` of a target's box from one random side by a grey bar."""
        if not share:
            return
        side, depth = self.rng.choice("lrtb"), 2 * r * share
        x0, y0, x1, y1 = x - r - 1, y - r - 1, x + r + 1, y + r + 1
        box = {
            "l": (x0, y0, x0 + depth, y1),
            "r": (x1 - depth, y0, x1, y1),
            "t": (x0, y0, x1, y0 + depth),
            "b": (x0, y1 - depth, x1, y1),
        }[side]
        self.pen.rectangle([v * self.k for v in box], fill=(150, 150, 150))

    def finish(self, noise: float) -> Image.Image:
        """The reduced picture with Gaussian pixel noise of standard deviation ``noise`` (of full scale); its grain is a
        pixel at scale 1.
        """
        small = self.image.reduce(SUPERSAMPLE)
        if not noise:
            return small
        height, width = (side // self.scale for side in small.size[::-1])
        grain = np.random.default_rng(self.rng.getrandbits(32)).normal(0, 255 * noise, (height, width, 3))
        grain = grain.repeat(self.scale, 0).repeat(self.scale, 1)
        return Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8))


def face(c: Canvas, feeling: str, x: float, y: float, r: float) -> None:
    """A round face that is happy, sad, angry or surprised."""
    r *= 1.1
    c.disc(x, y, r, fill=(250, 214, 165), edge=INK)
    for side in (-1, 1):
        ex, ey = x + side * r * 0.38, y - r * 0.22
        c.disc(ex, ey, r * (0.2 if feeling == "surprised" else 0.13))
        if feeling == "angry":
            c.line([(x + side * r * 0.12, y - r * 0.38), (x + side * r * 0.66, y - r * 0.68)], width=r * 0.16)
        elif feeling == "sad":
            c.line([(x + side * r * 0.18, y - r * 0.66), (x + side * r * 0.66, y - r * 0.42)], width=r * 0.10)
    if feeling == "happy":
        c.arc(x, y + r * 0.15, r * 0.55, r * 0.5, 10, 170, width=r * 0.15)
    elif feeling == "sad":
        c.arc(x, y + r * 0.8, r * 0.5, r * 0.42, 190, 350, width=r * 0.15)
    elif feeling == "angry":
        c.line([(x - r * 0.45, y + r * 0.5), (x + r * 0.45, y + r * 0.5)], width=r * 0.16)
    else:
        c.disc(x, y + r * 0.5, r * 0.26)


# Limbs as joints relative to the hip, in units of the half-height; y grows downwards.
Joint = tuple[float, float]
POSES: dict[str, dict[str, list[Joint]]] = {
    "standing": {
        "body": [(0, -0.55), (0, 0.1)],
        "arms": [(-0.3, 0.05), (0, -0.4), (0.3, 0.05)],
        "legs": [(-0.25, 0.95), (0, 0.1), (0.25, 0.95)],
    },
    "running": {
        "body": [(0.2, -0.5), (0, 0.1)],
        "arms": [(-0.35, -0.35), (0.15, -0.35), (0.6, -0.1)],
        "legs": [(-0.75, 0.6), (0, 0.1), (0.5, 0.45), (0.45, 0.95)],
    },
    "jumping": {
        "body": [(0, -0.5), (0, 0.05)],
        "arms": [(-0.6, -0.9), (0, -0.35), (0.6, -0.9)],
        "legs": [(-0.65, 0.45), (0, 0.05), (0.65, 0.45)],
    },
    "sitting": {
        "body": [(-0.2, -0.5), (-0.2, 0.3)],
        "arms": [(-0.2, -0.3), (0.3, 0.1)],
        "legs": [(-0.2, 0.3), (0.45, 0.3), (0.45, 0.95)],
    },
    "sleeping": {
        "body": [(-0.55, 0.6), (0.15, 0.6)],
        "arms": [(-0.4, 0.6), (-0.1, 0.82)],
        "legs": [(0.15, 0.6), (0.95, 0.6)],
    },
    "waving": {
        "body": [(0, -0.55), (0, 0.1)],
        "arms": [(-0.3, 0.05), (0, -0.4), (0.45, -0.55), (0.55, -1.0)],
        "legs": [(-0.2, 0.95), (0, 0.1), (0.2, 0.95)],
    },
    "swinging": {
        "body": [(0, -0.5), (0, 0.1)],
        "arms": [(0, -0.35), (0.55, -0.4)],
        "legs": [(-0.35, 0.95), (0, 0.1), (0.35, 0.95)],
    },
}
HEADS = {"sleeping": (-0.82, 0.6), "running": (0.3, -0.78), "sitting": (-0.2, -0.78)}


def figure(c: Canvas, pose: str, x: float, y: float, r: float) -> None:
    """A stick figure in a pose."""
    for limb in POSES[pose].values():
        c.line([(x + px * r, y + py * r) for px, py in limb], width=max(1.3, r * 0.15))
    hx, hy = HEADS.get(pose, (0, -0.8))
    c.disc(x + hx * r, y + hy * r, r * 0.25)
    if pose == "sleeping":
        c.line([(x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], (120, 80, 40), width=r * 0.14)
    if pose == "sitting":
        c.line([(x - 0.5 * r, y - 0.2 * r), (x - 0.5 * r, y + 0.95 * r)], (120, 80, 40), width=r * 0.12)
        c.line([(x - 0.5 * r, y + 0.42 * r), (x + 0.3 * r, y + 0.42 * r)], (120, 80, 40), width=r * 0.12)


def sport(c: Canvas, name: str, x: float, y: float, r: float) -> None:
    """A stick figure with what the sport is played with."""
    figure(c, {"football": "running", "skiing": "standing", "basketball": "jumping"}.get(name, "swinging"), x, y, r)
    if name == "tennis":
        c.disc(x + 0.85 * r, y - 0.62 * r, 0.28 * r, fill=(240, 240, 240), edge=(200, 30, 30), width=r * 0.12)
        c.disc(x + 0.95 * r, y + 0.1 * r, 0.13 * r, fill=(190, 220, 30))
    elif name == "football":
        c.disc(x + 0.8 * r, y + 0.85 * r, 0.24 * r, fill=(255, 255, 255), edge=INK)
    elif name == "golf":
        c.line(
            [(x + 0.55 * r, y - 0.4 * r), (x + 0.8 * r, y + 0.95 * r), (x + r, y + 0.95 * r)],
            (90, 90, 160),
            width=r * 0.1,
        )
        c.line([(x - 0.85 * r, y + 0.95 * r), (x - 0.85 * r, y - 0.4 * r)], INK, width=r * 0.08)
        c.polygon([(x - 0.85 * r, y - 0.4 * r), (x - 0.85 * r, y), (x - 0.4 * r, y - 0.2 * r)], (200, 30, 30))
    elif name == "skiing":
        for dx in (-0.3, 0.2):
            c.line(
                [(x + (dx - 0.6) * r, y + 0.85 * r), (x + (dx + 0.7) * r, y + 1.05 * r)], (30, 90, 200), width=r * 0.14
            )
        for side in (-1, 1):
            c.line(
                [(x + side * 0.3 * r, y + 0.05 * r), (x + side * 0.75 * r, y + 0.8 * r)], (30, 90, 200), width=r * 0.08
            )
    else:
        c.disc(x + 0.45 * r, y - 1.0 * r, 0.24 * r, fill=(235, 120, 20), edge=INK, width=r * 0.06)
        c.line([(x + 1.0 * r, y - 0.7 * r), (x + 1.0 * r, y + 0.95 * r)], INK, width=r * 0.08)
        c.line([(x + 0.7 * r, y - 0.7 * r), (x + 1.0 * r, y - 0.7 * r)], (200, 30, 30), width=r * 0.14)

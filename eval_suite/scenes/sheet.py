"""A picture sheet of scenes for a person to look at."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..sheet import write_png
from .draw import SIZE, VISUAL_TIERS
from .world import TASKS, SceneSpec, scene

SCALE = 4
GAP = 12
CAPTION = 118


def draw_sheet(split: str = "test", seed: int = 0) -> Image.Image:
    """Tasks down, grades of visual (and textual) difficulty across, each with its words and both answers."""
    side = SIZE * SCALE
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    sheet = Image.new("RGB", ((side + GAP) * len(VISUAL_TIERS) + GAP, (side + CAPTION) * len(TASKS) + 40), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text(
        (GAP, 12), f"Scenes, {split} split: visual and textual difficulty grow to the right", fill="black", font=font
    )
    for row, task in enumerate(TASKS):
        for tier in range(len(VISUAL_TIERS)):
            sample = scene(SceneSpec(task, split, seed * 100 + tier, tier, tier))
            x, y = GAP + tier * (side + GAP), 40 + row * (side + CAPTION)
            sheet.paste(sample.load_image().resize((side, side), Image.Resampling.NEAREST), (x, y))
            lines = textwrap.wrap(f"{sample.question} {sample.context}", 32, max_lines=5, placeholder=" …")
            pen.text((x, y + side + 2), "\n".join(lines), fill="black", font=small)
            pen.text(
                (x, y + side + 88),
                f"image: {sample.answer_vision}   text: {sample.answer_text}",
                fill=(170, 0, 0),
                font=small,
            )
    return sheet


def save_sheet(folder: Path, split: str = "test", seed: int = 0) -> Path:
    return write_png(folder / f"scenes_{split}.png", draw_sheet(split, seed))

"""The controllable colour set of "Beyond Fixed Biases" (arXiv 2511.02243; SPEC.md 4): 14 visual and 4 textual tiers,
and its controls.

Visual tiers 0-4: a target of 80-200 px of 600 and 0-4 distractors. Tiers 5-13: target area in shares of the picture,
number of distractors, share occluded, as the paper lists them. Distractors have neither the target's shape nor either
answer's colour. Ours: pictures are square (224 px; processors crop the sides of the paper's 800x600), occlusion is a
grey bar, distractors may cover each other but not the target (those that find no place are left out), and the texts are
those of Scenes, whose wordings the splits do not share. Textual tiers, as in the paper: 0 direct, 1 the same as another
thing that is named, 2 the same as a known thing; 3 has two links (ours: the paper's fourth is a spatial relation of its
CLEVR sets). Controls: ``irrelevant_text`` describes another shape than the one asked for; ``irrelevant_image`` asks for
and describes a shape that is not on the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image

from factory.data.sample import ConflictSample

from .draw import COLORS, SHAPES, Canvas
from .language import ask, write_context

SIDE = 224
TASK = "color"
Control = Literal["irrelevant_text", "irrelevant_image"]
CONTROLS: tuple[Control, ...] = ("irrelevant_text", "irrelevant_image")
WORDING = (0, 2, 1, 3)  # the textual tier of Scenes that each of the paper's is


@dataclass(frozen=True)
class Tier:
    """``side`` of the target as a share of the picture's, how many distractors, which share of the target a bar
    hides.
    """

    side: tuple[float, float]
    distractors: int
    occlusion: float


def _area(low: float, high: float, distractors: int, occlusion: float) -> Tier:
    return Tier((low**0.5, high**0.5), distractors, occlusion)


VISUAL_TIERS = (
    *(Tier((80 / 600, 200 / 600), n, 0.0) for n in range(5)),
    _area(0.20, 0.40, 7, 0.5),
    _area(0.20, 0.40, 10, 0.8),
    _area(0.05, 0.10, 7, 0.5),
    _area(0.05, 0.10, 11, 0.8),
    _area(0.04, 0.06, 20, 0.3),
    _area(0.04, 0.06, 30, 0.6),
    _area(0.04, 0.06, 40, 0.5),
    _area(0.04, 0.06, 55, 0.6),
    _area(0.04, 0.06, 70, 0.7),
)
TIERS = tuple((v, t) for v in range(len(VISUAL_TIERS)) for t in range(len(WORDING)))


def paint(
    rng: Random, tier: Tier, shape: str, color: str, banned_shapes: set[str], banned_colors: set[str]
) -> Image.Image:
    """The target in its colour among distractors that have none of the banned shapes and colours."""
    canvas = Canvas(rng, SIDE)
    r = rng.uniform(*tier.side) * SIDE / 2
    reach = r * 1.15 + 2
    x, y = (rng.uniform(reach, SIDE - reach) for _ in range(2))
    shapes, colors = [s for s in SHAPES if s not in banned_shapes], [c for c in COLORS if c not in banned_colors]
    for _ in range(tier.distractors):
        small = rng.uniform(0.03, 0.055) * SIDE
        for _ in range(60):
            dx, dy = (rng.uniform(small, SIDE - small) for _ in range(2))
            if max(abs(dx - x), abs(dy - y)) > reach + small:
                canvas.shape(rng.choice(shapes), rng.choice(colors), dx, dy, small)
                break
    canvas.shape(shape, color, x, y, r)
    canvas.bar(x, y, r, tier.occlusion)
    return canvas.finish(0.0)


def color_sample(
    split: str, seed: int, visual_tier: int, text_tier: int, control: Control | None = None
) -> ConflictSample:
    """One sample; a control has the same picture and colours as the conflict that it belongs to."""
    rng = Random(f"colors/{split}/{seed}")
    (shape, other), (vision, text) = rng.sample(SHAPES, 2), rng.sample(tuple(COLORS), 2)
    image = paint(rng, VISUAL_TIERS[visual_tier], shape, vision, {shape, other}, {vision, text})
    asked, described = {None: (shape, shape), "irrelevant_text": (shape, other), "irrelevant_image": (other, other)}[
        control
    ]
    words, decoys = Random(f"colors/words/{split}/{seed}"), tuple(c for c in COLORS if c not in (vision, text))
    context = write_context(TASK, f"the {described}", text, WORDING[text_tier], split, words, decoys)
    tags: dict[str, int | str] = {"visual_tier": visual_tier, "text_tier": text_tier, "subject": f"the {asked}"}
    name = f"{split}-colors-{seed}"
    return ConflictSample(
        f"{name}-{control}" if control else name,
        TASK,
        ask(TASK, f"the {asked}"),
        context,
        vision,
        text,
        lambda: image,
        tags | ({"control": control} if control else {}),
    )


def color_samples(split: str, number: int, controls: int, seed: int) -> list[ConflictSample]:
    """``number`` conflicts, every pair of tiers equally often in a seeded order; the first ``controls`` of them as each
    control too.
    """
    order = list(TIERS)
    Random(f"colors/{split}/{seed}").shuffle(order)
    place = [(split, seed * 1_000_003 + i, *order[i % len(order)]) for i in range(number)]
    return [color_sample(*p) for p in place] + [
        color_sample(*p, control) for control in CONTROLS for p in place[:controls]
    ]

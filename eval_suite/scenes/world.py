"""What is on a picture: the eight tasks, their answers, and one drawn scene per seed.

Layouts are split too: each (answer, place) pair belongs to one split alone, so that a test picture shows
an answer where no training picture had it. The exception is positional reasoning: a side has three places only, and
where none of them belongs to a split, it takes any.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from PIL import Image

from factory.data.sample import ConflictSample

from .draw import COLORS, PATTERNS, SHAPES, SIZE, VISUAL_TIERS, Canvas, VisualTier, face, figure, sport
from .language import TEXT_TIERS, ask, write_context

ANSWERS: dict[str, tuple[str, ...]] = {
    "activity_recognition": ("running", "jumping", "sitting", "sleeping", "waving"),
    "attribute": PATTERNS,
    "color": tuple(COLORS),
    "counting": ("one", "two", "three", "four", "five"),
    "object_recognition": SHAPES,
    "positional_reasoning": ("left", "right", "above", "below"),
    "sentiment_understanding": ("happy", "sad", "angry", "surprised"),
    "sport_recognition": ("tennis", "football", "golf", "skiing", "basketball"),
}
TASKS = tuple(ANSWERS)


def plural(shape: str) -> str:
    return {"cross": "crosses"}.get(shape, shape + "s")


SUBJECTS = (
    "the person",
    *(f"the {s}" for s in SHAPES),
    *(f"the {c} object" for c in COLORS),
    *(plural(s) for s in SHAPES),
)
SPLITS = ("train", "dev", "test")
GRID = 5


@dataclass(frozen=True)
class SceneSpec:
    """All that decides a scene; the same spec draws and says the same, on any machine. ``scale`` draws the same picture
    larger.
    """

    task: str
    split: str
    seed: int
    visual_tier: int
    text_tier: int
    scale: int = 1


def place_split(answer: str, cell: int) -> str:
    """The one split in which ``answer`` may stand at ``cell``: about a sixth each for dev and test."""
    return {0: "dev", 1: "test"}.get(zlib.crc32(f"{answer}@{cell}".encode()) % 6, "train")


def _cells(answer: str, split: str, allowed: list[int]) -> list[int]:
    mine = [c for c in allowed if place_split(answer, c) == split]
    return mine or allowed


def _centre(cell: int, r: float, rng: Random) -> tuple[float, float]:
    """A jittered point of a GRID x GRID lattice over the area in which a target of half-size ``r`` fits."""
    low, high = r * 1.15 + 1, SIZE - r * 1.15 - 1
    step = (high - low) / (GRID - 1)
    row, column = divmod(cell, GRID)
    jitter = step * 0.2
    x = low + column * step + rng.uniform(-jitter, jitter)
    y = low + row * step + rng.uniform(-jitter, jitter)
    return min(max(x, low), high), min(max(y, low), high)


def _clutter(
    c: Canvas, rng: Random, n: int, taken: list[tuple[float, float, float]], ban_shapes: set[str], ban_colors: set[str]
) -> None:
    """Small shapes beside the target that share neither its shape nor its colour."""
    shapes, colors = [s for s in SHAPES if s not in ban_shapes], [k for k in COLORS if k not in ban_colors]
    for _ in range(n):
        r = rng.uniform(2.8, 4.0)
        for _ in range(30):
            x, y = rng.uniform(r + 1, SIZE - r - 1), rng.uniform(r + 1, SIZE - r - 1)
            if all((x - tx) ** 2 + (y - ty) ** 2 > (r + tr + 1) ** 2 for tx, ty, tr in taken):
                c.shape(rng.choice(shapes), rng.choice(colors), x, y, r)
                taken.append((x, y, r))
                break


def _target(c: Canvas, rng: Random, spec: SceneSpec, answer: str, tier: VisualTier) -> tuple[float, float, float]:
    r = rng.uniform(*tier.radius)
    x, y = _centre(rng.choice(_cells(answer, spec.split, list(range(GRID * GRID)))), r, rng)
    return x, y, r


def _draw_shape(c: Canvas, rng: Random, spec: SceneSpec, answer: str, tier: VisualTier) -> str:
    shape, color, pattern = rng.choice(SHAPES), rng.choice(tuple(COLORS)), "solid"
    if spec.task == "color":
        color = answer
    elif spec.task == "object_recognition":
        shape = answer
    else:
        pattern = answer
    x, y, r = _target(c, rng, spec, answer, tier)
    c.shape(shape, color, x, y, r, pattern)
    c.bar(x, y, r, tier.occlusion)
    _clutter(c, rng, tier.clutter, [(x, y, r)], {shape}, {color})
    return f"the {color} object" if spec.task == "object_recognition" else f"the {shape}"


def _draw_count(c: Canvas, rng: Random, spec: SceneSpec, answer: str, tier: VisualTier) -> str:
    shape, number = rng.choice(SHAPES), ANSWERS["counting"].index(answer) + 1
    r = rng.uniform(*tier.radius) * 0.42
    first = rng.choice(_cells(answer, spec.split, list(range(GRID * GRID))))
    cells = _spread(rng, first, number)
    taken = []
    for cell in cells:
        x, y = _centre(cell, 4.8, rng)
        c.shape(shape, rng.choice(tuple(COLORS)), x, y, r)
        taken.append((x, y, r))
    _clutter(c, rng, tier.clutter, taken, {shape}, set())
    return plural(shape)


def _spread(rng: Random, first: int, number: int) -> list[int]:
    """``number`` cells, ``first`` among them, of which no two touch."""
    while True:
        cells = [first]
        for cell in rng.sample(range(GRID * GRID), GRID * GRID):
            if all(max(abs(cell // GRID - c // GRID), abs(cell % GRID - c % GRID)) > 1 for c in cells):
                cells.append(cell)
        if len(cells) >= number:
            return cells[:number]


def _draw_position(c: Canvas, rng: Random, spec: SceneSpec, answer: str, tier: VisualTier) -> str:
    """The target stands in the middle third of one side of the picture."""
    shape, r = rng.choice(SHAPES), rng.uniform(*tier.radius) * 0.75
    along, edge = range(GRID), {"left": 0, "right": GRID - 1, "above": 0, "below": GRID - 1}[answer]
    allowed = (
        [row * GRID + edge for row in along[1:-1]]
        if answer in ("left", "right")
        else [edge * GRID + col for col in along[1:-1]]
    )
    x, y = _centre(rng.choice(_cells(answer + shape, spec.split, allowed)), r, rng)
    color = rng.choice(tuple(COLORS))
    c.shape(shape, color, x, y, r)
    c.bar(x, y, r, tier.occlusion)
    _clutter(c, rng, tier.clutter, [(x, y, r)], {shape}, {color})
    return f"the {shape}"


def _draw_person(c: Canvas, rng: Random, spec: SceneSpec, answer: str, tier: VisualTier) -> str:
    x, y, r = _target(c, rng, spec, answer, tier)
    r *= 1.0 if spec.task == "sentiment_understanding" else 1.15
    low, high = r * 1.1 + 1, SIZE - r * 1.1 - 1
    x, y = min(max(x, low), high), min(max(y, low), high)
    _clutter(c, rng, tier.clutter, [(x, y, r * 1.2)], set(), set())
    {"sentiment_understanding": face, "activity_recognition": figure}.get(spec.task, sport)(c, answer, x, y, r)
    c.bar(x, y, r, tier.occlusion * 0.5)
    return "the person"


DRAW = {
    "counting": _draw_count,
    "positional_reasoning": _draw_position,
    "color": _draw_shape,
    "object_recognition": _draw_shape,
    "attribute": _draw_shape,
}


def paint(spec: SceneSpec, shown: str | None = None) -> tuple[Image.Image, str, str, str]:
    """Draw a scene: (picture, subject of the question, vision answer, text answer); with ``shown`` in the place of the
    vision answer, as much else as can be staying as it is.
    """
    rng = Random(f"{spec.split}/{spec.task}/{spec.seed}")
    vision, text = rng.sample(ANSWERS[spec.task], 2)
    vision = shown or vision
    tier = VISUAL_TIERS[spec.visual_tier]
    canvas = Canvas(rng, scale=spec.scale)
    subject = DRAW.get(spec.task, _draw_person)(canvas, rng, spec, vision, tier)
    return canvas.finish(tier.noise), subject, vision, text


def scene(spec: SceneSpec) -> ConflictSample:
    """The conflict sample of a spec; its context claims ``answer_text`` in the wording of the spec's split."""
    image, subject, vision, text = paint(spec)
    rng = Random(f"words/{spec.split}/{spec.task}/{spec.seed}")
    decoys = tuple(a for a in ANSWERS[spec.task] if a not in (vision, text))
    return ConflictSample(
        id=f"{spec.split}-{spec.task}-{spec.seed}",
        task=spec.task,
        question=ask(spec.task, subject),
        context=write_context(spec.task, subject, text, spec.text_tier, spec.split, rng, decoys),
        answer_vision=vision,
        answer_text=text,
        load_image=lambda: image,
        tags={"visual_tier": spec.visual_tier, "text_tier": spec.text_tier, "subject": subject},
    )


def spec_of(sample: ConflictSample, scale: int = 1) -> SceneSpec:
    """The spec that drew a sample."""
    return SceneSpec(
        sample.task,
        sample.id.partition("-")[0],
        int(sample.id.rpartition("-")[2]),
        int(sample.tags["visual_tier"]),
        int(sample.tags["text_tier"]),
        scale,
    )


def specs(split: str, per_task: int, seed: int, scale: int = 1) -> list[SceneSpec]:
    """``per_task`` specs of each task, every combination of tiers equally often, in a seeded order."""
    tiers = [(v, t) for v in range(len(VISUAL_TIERS)) for t in range(TEXT_TIERS)]
    out = []
    for task in TASKS:
        order = list(tiers)
        Random(f"{split}/{task}/{seed}").shuffle(order)
        out += [SceneSpec(task, split, seed * 1_000_003 + i, *order[i % len(order)], scale) for i in range(per_task)]
    return out

"""Drawn pictures of several shapes, to be described: which shapes does a caption name that are not there?

CHAIR's rule, with shapes as objects. Things that go together in training are what captions are said to imagine, so
that in the lessons shapes come in pairs, as a fork comes with a plate; on the questions' pictures any stand together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Literal

from PIL import Image
from pydantic import Field, PositiveInt

from eval_suite.benchmark import Item
from eval_suite.benchmarks.chair import ObjectCaptions, Vocabulary
from eval_suite.scenes.draw import COLORS, SHAPES, SIZE, Canvas
from factory.data.prompt import Prompt, Role, Segment
from factory.registry import Params, register

COMPANION: Mapping[str, str] = dict(zip(SHAPES, (*SHAPES[3:], *SHAPES[:3]), strict=True))
"""The shape that each comes with in the lessons."""
PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
ASKED = "What objects does the image show?"


class SceneCaptionsParams(Params):
    """``take`` pictures of a split, of one to ``most`` shapes, no two alike, as large as a share ``size`` of the
    quarter that each stands in at most. ``together``: how often a shape of a lesson's picture comes with its companion.
    ``seed`` draws.
    """

    split: Literal["dev", "test"] = "test"
    take: PositiveInt = 256
    most: int = Field(3, ge=1, le=len(PLACES))
    size: float = Field(0.8, gt=0.3, le=1)
    together: float = Field(0.9, ge=0, le=1)
    seed: int = 0


@register("benchmark", "scene_captions")
class SceneCaptions(ObjectCaptions):
    """Captions of drawn shapes: how many name a shape that is not there (CHAIR), and how many shapes they find."""

    Params = SceneCaptionsParams
    profile = "open_ended"
    new_tokens = 24
    answer_tokens = new_tokens
    vocabulary = Vocabulary.read(SHAPES)

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{self.params.most}/{self.params.size:g}"

    def items(self) -> Sequence[Item]:
        p = self.params
        items = []
        for i in range(p.take):
            name = f"{p.split}/{p.seed}/{i}"
            rng = Random(f"captions/{name}")
            shapes = rng.sample(SHAPES, rng.randint(1, p.most))
            items.append(Item(name, partial(self._asked, self._drawn(rng, shapes)[0]), sorted(shapes)))
        return items

    def lesson(self, index: int, batch: int, total: int) -> Prompt:
        """Training prompt ``index`` of ``total``: a picture with its caption."""
        rng = Random(f"captions/train/{self.params.seed}/{index}")
        image, caption = self._drawn(rng, self._in_pairs(rng))
        return self._asked(image).append(Segment(Role.ANSWER, caption))

    def _in_pairs(self, rng: Random) -> list[str]:
        """One to ``most`` shapes, each with its companion as often as ``together``, where there is room."""
        wanted, shapes = rng.randint(1, self.params.most), list[str]()
        for shape in rng.sample(SHAPES, len(SHAPES)):
            comes = rng.random() < self.params.together
            both = [shape, COMPANION[shape]] if comes else [shape]
            shapes += [each for each in both if each not in shapes]
        return shapes[:wanted]

    def _drawn(self, rng: Random, shapes: Sequence[str]) -> tuple[Image.Image, str]:
        """A picture of shapes, each in a quarter of its own, and its caption, quarter by quarter as one reads."""
        canvas, quarter = Canvas(rng), SIZE / 2
        places = sorted(rng.sample(PLACES, len(shapes)))
        told = []
        for shape, place in zip(rng.sample(shapes, len(shapes)), places, strict=True):
            r = quarter / 2 * self.params.size * rng.uniform(0.7, 1.0)
            free = quarter / 2 - r
            y, x = ((at + 0.5) * quarter + rng.uniform(-free, free) for at in place)
            color = rng.choice(tuple(COLORS))
            canvas.shape(shape, color, x, y, r)
            told.append(f"{color} {shape}")
        return canvas.finish(0.03), " and ".join(told)

    @staticmethod
    def _asked(image: Image.Image) -> Prompt:
        return Prompt((Segment(Role.IMAGE, image=image), Segment(Role.QUESTION, ASKED)))

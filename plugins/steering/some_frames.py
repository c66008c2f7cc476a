"""What key frames are held against: the first k pictures of a film, or k at random (ours)."""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import PositiveInt

from factory.data.prompt import Prompt
from factory.registry import Params, register
from factory.steer import PromptMethod


class SomeFramesParams(Params):
    """``k`` pictures are kept. ``pick``: the first, or a random choice that ``seed`` draws for each prompt."""

    k: PositiveInt = 3
    pick: Literal["first", "random"] = "first"
    seed: int = 0


@register("steering", "some_frames")
class SomeFrames(PromptMethod):
    """The prompt with k of its pictures, picked without looking at them."""

    pictured = True

    Params = SomeFramesParams

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        n, p = len(prompt.images), self.params
        draw = Random(f"{p.seed}/{prompt.digest}")
        return prompt.with_pictures(range(p.k) if p.pick == "first" else draw.sample(range(n), min(p.k, n)))

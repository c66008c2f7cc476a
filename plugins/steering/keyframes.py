"""Key frames (VISE, arXiv 2506.07180): one call picks k pictures of a film, the other answers from these alone.

From the paper: the first prompt is neutral, without what presses or instructs, and k = 3. Ours: its wording; where
fewer than k are named, others are added, evenly spread.
"""

import re

from pydantic import PositiveInt

from factory.data.prompt import Prompt, Role, Segment
from factory.registry import Params, register
from factory.steer import TwoCalls

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBER = re.compile(rf"\d+|\b(?:{'|'.join(WORDS)})\b")


class KeyframesParams(Params):
    """``k`` pictures are kept; ``ask`` asks for their numbers, from 1; ``first_tokens`` of that answer,
    ``max_new_tokens`` of the other (null: the evaluation's own).
    """

    k: PositiveInt = 3
    ask: str = "Which pictures show what is asked for? Answer with their numbers alone."
    first_tokens: PositiveInt = 16
    max_new_tokens: PositiveInt | None = None


@register("steering", "keyframes")
class Keyframes(TwoCalls):
    """The question with the k pictures that the model itself picks without pressure; of k or fewer all stay."""

    pictured = True

    Params = KeyframesParams

    def first(self, prompt: Prompt, direction: str) -> Prompt:
        """All pictures and the question, and nothing else."""
        kept = tuple(s for s in prompt.segments if s.role in (Role.IMAGE, Role.QUESTION))
        return Prompt((*kept, Segment(Role.INSTRUCTION, self.params.ask)))

    def second(self, prompt: Prompt, direction: str, told: str) -> Prompt:
        return prompt.with_pictures(chosen(told, len(prompt.images), self.params.k))


def chosen(told: str, n: int, k: int) -> list[int]:
    """The k of n pictures, from 0, that an answer names first, filled up with others that are evenly spread."""
    named = [int(m) if m.isdigit() else WORDS.index(m) + 1 for m in NUMBER.findall(told.lower())]
    found = [i - 1 for i in dict.fromkeys(named) if 1 <= i <= n][:k]
    rest = [i for i in range(n) if i not in found]
    more = min(k - len(found), len(rest))
    return sorted([*found, *(rest[(2 * i + 1) * len(rest) // (2 * more)] for i in range(more))])

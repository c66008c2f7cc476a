"""Filter, then evidence: VIPER (arXiv 2509.21979) in one call; the paper's prompt is not public, so this is ours.

The filter strikes out sentences that are no evidence, those in which somebody thinks, knows, says or is sure of
something, and the prompt then asks for the evidence before the answer. What a filter of words lets pass, or strikes out
wrongly, can be told: the filtered prompt is the one that is kept with each answer.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from pydantic import PositiveInt

from factory.data.prompt import Prompt, Role, Segment
from factory.registry import Params, register
from factory.steer import PromptMethod

CUES = (
    *("i know", "i think", "i see", "i am", "i do", "am sure", "you sure", "sure about", "know that", "think that"),
    *("think it", "to me", "you are", "are you", "and you", "do you", "you say", "knows that", "says that"),
    *("an expert", "expert says", "all others", "others say", "everyone here"),
    *("everyone else", "else says", "here says", "here knows", "my friends", "friends say"),
    *("the answer", "answer is", "your answer", "is wrong", "are wrong", "not right", "that so", "think again"),
)
"""Pairs of words that name a person, an act of saying or knowing, or a verdict, taken from the train wordings of the
benchmark ``pressure`` alone: its dev and test wordings were not looked at for them."""
STRUCK = (Role.CONTEXT_A, Role.CONTEXT, Role.INSTRUCTION, Role.QUESTION)
SENTENCE = re.compile(r"[^.?!]*[.?!]+|[^.?!]+$")
EVIDENCE = "First say what the {side} shows, then answer, as in: The {side} shows … . The answer is … ."
CALLED = {"vision": "picture"}


class ViperParams(Params):
    """``cues``: two words in a row that make a sentence no evidence. ``ask``: the line that asks for evidence first
    ({side}: picture or text, or the name of one of two texts); empty leaves the filter alone.

    ``max_new_tokens`` of an answer with its evidence.
    """

    cues: tuple[str, ...] = CUES
    ask: str = EVIDENCE
    max_new_tokens: PositiveInt = 64


@register("steering", "viper")
class Viper(PromptMethod):
    """The prompt without the sentences that are no evidence, and a request for evidence before the answer. A turn of
    which nothing else is left asks the question once more.
    """

    Params = ViperParams

    def rewrite(self, prompt: Prompt, direction: str, examples: Sequence[Prompt]) -> Prompt:
        segments = tuple(s for s in map(self._filtered, prompt.segments) if s.image or s.text)
        last = max((i for i, s in enumerate(segments) if s.role == Role.ANSWER), default=-1) + 1
        if last and not any(s.text for s in segments[last:] if s.role != Role.OPTIONS):
            asked = [s for s in segments if s.role == Role.QUESTION][-1:]
            segments = (*segments[:last], *asked, *segments[last:])
        ask = self.params.ask.replace("{side}", CALLED.get(direction, direction.replace("_", " ")))
        return replace(prompt, segments=(*segments, *((Segment(Role.INSTRUCTION, ask),) if ask else ())))

    def _filtered(self, segment: Segment) -> Segment:
        """A segment without the sentences that are no evidence; of a question its last one always stays."""
        if segment.role not in STRUCK:
            return segment
        sentences = SENTENCE.findall(segment.text)
        kept = [s for s in sentences if not self.is_opinion(s)]
        if segment.role == Role.QUESTION and sentences and sentences[-1] not in kept:
            kept.append(sentences[-1])
        return segment if len(kept) == len(sentences) else replace(segment, text="".join(kept).strip())

    def is_opinion(self, sentence: str) -> bool:
        """Whether a sentence has one of the cues, punctuation aside."""
        words = re.findall(r"[a-z']+", sentence.lower())
        return any(f"{a} {b}" in self.params.cues for a, b in pairwise(words))

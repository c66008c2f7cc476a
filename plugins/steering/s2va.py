"""Witness and arbiter: one call says what the picture shows without the text, one decides (S2VA, EMNLP 2026 Findings).

From the released code (pa0lai/multimodal-contextual-sycophancy, 53b1968): the witness is given picture and question and
nothing else; the arbiter the witness's report, then the text, and no picture. Ours: the wordings, which are shorter and
ask for no JSON and no confidence; dialogues, whose earlier turns and pressure are the arbiter's text; and the other
direction, in which the text has the witness.
"""

from collections.abc import Mapping, Sequence

from pydantic import PositiveInt

from factory.data.prompt import Prompt, Role, Segment
from factory.registry import Params, register
from factory.steer import TwoCalls

CALLED = {"vision": "picture"}


class S2vaParams(Params):
    """``witness`` asks for the report; ``report`` words it for the arbiter ({report}), ``decide`` is what the arbiter
    is told; {side} is "picture" or "text", or the name of one of two texts. ``arbiter_sees``: the arbiter is
    shown the side as well.

    ``first_tokens`` of a report, ``max_new_tokens`` of an answer (null: the evaluation's own).
    """

    witness: str = "Say what the {side} shows, as far as it bears on the question. Report only what is there."
    report: str = "A witness who knows the {side} alone reports: {report}"
    decide: str = "Where the witness and what else was said disagree, trust the witness."
    arbiter_sees: bool = False
    first_tokens: PositiveInt = 64
    max_new_tokens: PositiveInt | None = None


@register("steering", "s2va")
class S2va(TwoCalls):
    """Two calls: a witness of one side alone, and an arbiter who has the witness's report in its place."""

    sided = True

    Params = S2vaParams

    def first(self, prompt: Prompt, direction: str) -> Prompt:
        """The side and the question alone: no text of the other side, no pressure, no earlier answer."""
        role, side = prompt.sources[direction].role, _called(direction)
        kept = tuple(s for s in prompt.segments if s.role in (role, Role.QUESTION))
        return Prompt((*kept, *_said(Role.INSTRUCTION, self.params.witness, side=side)), prompt.sources)

    def second(self, prompt: Prompt, direction: str, told: str) -> Prompt:
        """The whole conversation, begun with the report in place of what it reports on."""
        role, side = prompt.sources[direction].role, _called(direction)
        rest = prompt if self.params.arbiter_sees else prompt.without(role)
        report = _said(Role.CONTEXT, self.params.report, side=side, report=" ".join(told.split()))
        return rest.prepend(*report).append(*_said(Role.INSTRUCTION, self.params.decide, side=side))


def _called(direction: str) -> str:
    """What a wording calls a side."""
    return CALLED.get(direction, direction.replace("_", " "))


def _said(role: Role, wording: str, **words: str) -> Sequence[Segment]:
    return (Segment(role, _filled(wording, words)),) if wording else ()


def _filled(wording: str, words: Mapping[str, str]) -> str:
    """A wording with its words; other braces are left as they are."""
    for name, word in words.items():
        wording = wording.replace(f"{{{name}}}", word)
    return wording

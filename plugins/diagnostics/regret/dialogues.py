"""Dialogues in which an answer may be taken back, out of any conflict benchmark (2506.15617, sec. 3.1, in pictures).

    a0  the question alone
    a1  the first answer, from the wrong modality: that alone, or, before a hint, both
    a2  after a weak hint at the other modality
    a3  after the other modality itself, the true evidence

The paper asks for a2 and a3 one after the other, of false and true texts written by a language model. Here each follows
a first answer by itself, and the evidence is the benchmark's own picture or context. Wordings are the recipe's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from factory.bench import Bench
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.steer.base import Direction

from .keywords import Keyword

Kind = Literal["hint", "evidence"]
Act = Literal["back", "stays", "unread"]
ANSWER_NAME: Mapping[str, str] = {"hint": "a2", "evidence": "a3"}
OTHER: Mapping[Direction, Direction] = {"vision": "text", "text": "vision"}
BROUGHT: Mapping[Direction, Role] = {"vision": Role.IMAGE, "text": Role.CONTEXT}
SENTENCE = re.compile(r"(?<=[.!?。！？])\s*(?=\S)")


@dataclass(frozen=True)
class Dialogue:
    """What is asked ``first``, and what the user says then (``more``): a hint at the modality ``toward``, or it."""

    sample: ConflictSample
    form: str
    kind: Kind
    toward: Direction
    first: Prompt
    more: tuple[Segment, ...]

    def second(self, answer: str) -> Prompt:
        """The dialogue up to the answer that may take ``answer`` back."""
        return self.first.append(Segment(Role.ANSWER, answer), *self.more)


@dataclass(frozen=True)
class Reply:
    """A second answer: its ``text`` and tokens, what it does to the ``first`` one, and its first word of regret with
    the token where that begins.
    """

    dialogue: Dialogue
    first: str
    first_ids: tuple[int, ...]
    text: str
    ids: tuple[int, ...]
    act: Act
    keyword: Keyword | None
    token: int | None


def dialogues(
    bench: Bench,
    samples: Sequence[ConflictSample],
    kinds: Sequence[Kind],
    toward: Sequence[Direction],
    words: Mapping[Kind, Mapping[Direction, str]],
) -> list[Dialogue]:
    """Every sample in each form, as dialogues of each kind. Raises ``UserError`` where the evidence is no part of the
    benchmark's prompt."""
    found = []
    for sample in samples:
        for form in bench.benchmark.forms:
            whole = bench.benchmark.prompt(sample, form)
            for true in toward:
                brought = tuple(s for s in whole.segments if s.role == BROUGHT[true])
                if not brought:
                    what = "picture" if true == "vision" else "text context"
                    raise UserError(
                        f"regret: a prompt of '{bench.benchmark.name}' has no {what} that a dialogue could turn to:"
                        " leave that modality out of `toward`, or take another benchmark"
                    )
                for kind in kinds:
                    said = Segment(Role.INSTRUCTION, words[kind][true])
                    first = whole if kind == "hint" else bench.benchmark.alone(sample, form, OTHER[true])
                    more = (said,) if kind == "hint" else (*brought, said)
                    found.append(Dialogue(sample, form, kind, true, first, more))
    return found


def question_alone(bench: Bench, sample: ConflictSample, form: str) -> Prompt:
    """What a0 answers."""
    return bench.benchmark.prompt(sample, form).without(Role.IMAGE, Role.CONTEXT)


def act(bench: Bench, dialogue: Dialogue, text: str) -> Act:
    """What an answer does, by the benchmark's own rule on its last sentence, or, where that says nothing, on all."""
    for part in (sentences(text)[-1:], [text]):
        for words in part:
            verdict = bench.benchmark.judge(dialogue.sample, dialogue.form, words)
            if verdict in OTHER:
                return "back" if verdict == dialogue.toward else "stays"
    return "unread"


def sentences(text: str) -> list[str]:
    """Its sentences."""
    return [text[a:b] for a, b in _spans(text)]


def _spans(text: str) -> list[tuple[int, int]]:
    starts = [0, *(m.end() for m in SENTENCE.finditer(text))] if text else []
    return list(zip(starts, [*starts[1:], len(text)], strict=True)) if starts else []


def token_at(tokenizer: Any, ids: Sequence[int], character: int) -> int:
    """The token of an answer in which a character of its stripped text stands."""
    told = tokenizer.batch_decode([list(ids[: i + 1]) for i in range(len(ids))], skip_special_tokens=True)
    blank = len(told[-1]) - len(told[-1].lstrip()) if told else 0
    return next((i for i, text in enumerate(told) if len(text) > blank + character), max(0, len(ids) - 1))


def places(tokenizer: Any, replies: Sequence[Reply]) -> list[int]:
    """The token of each answer that is looked at: where its word of regret begins; in one without, where that stands
    most often in the answers of its kind that have one, counted in sentences and in tokens from a sentence's start.
    """
    begins = [[token_at(tokenizer, r.ids, start) for start, _ in _spans(r.text)] or [0] for r in replies]
    usual: dict[tuple[Kind, Direction], Counter[tuple[int, int]]] = {}
    for reply, starts in zip(replies, begins, strict=True):
        if reply.token is not None:
            sentence = max(i for i, start in enumerate(starts) if start <= reply.token or i == 0)
            cell = usual.setdefault((reply.dialogue.kind, reply.dialogue.toward), Counter())
            cell[sentence, reply.token - starts[sentence]] += 1
    every: Counter[tuple[int, int]] = sum(usual.values(), Counter())
    out = []
    for reply, starts in zip(replies, begins, strict=True):
        if reply.token is not None:
            out.append(reply.token)
            continue
        known = usual.get((reply.dialogue.kind, reply.dialogue.toward)) or every or Counter({(len(starts), 0): 1})
        sentence, into = min(known, key=lambda place: (-known[place], place))
        out.append(min(starts[min(sentence, len(starts) - 1)] + into, max(0, len(reply.ids) - 1)))
    return out

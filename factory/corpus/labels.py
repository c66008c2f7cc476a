"""Prompts with answers to tokens with labels: every answer token is learnt, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from factory.corpus.conversation import Unusable
from factory.corpus.refusals import OF_IMAGE, OF_TEMPLATE, REFUSED, TOO_LONG, check_positions, no_room, room
from factory.corpus.source import Sample
from factory.data.prompt import Prompt, Role
from factory.errors import UserError
from factory.model.encode import Encoded
from factory.model.view import ModelView

IGNORE = -100


@dataclass(frozen=True)
class Example:
    """One sample's tokens with a label each: the token itself where it is learnt, else ``IGNORE`` (both of length
    T). ``task`` is its prompt's.
    """

    encoded: Encoded
    labels: list[int]
    task: str = ""

    @property
    def labelled(self) -> int:
        return sum(label != IGNORE for label in self.labels)


def encode_samples(
    view: ModelView, samples: Sequence[Sample], max_tokens: int | None = None
) -> tuple[list[Example], dict[str, Tensor]]:
    """Examples of at most ``max_tokens`` tokens and the image inputs of the images they keep, in reading order; where
    anything is cut, no more is kept than the model has positions.

    Raises ``Unusable`` for a sample too long for the model's positions, or to keep its images and one token of its
    first answer, or an answer that is learnt, and, with its id, for one whose texts spell a special token or whose
    turns or images the model refuses.
    """
    prompts = [s.prompt for s in samples]
    try:
        images, written = view.images_of(prompts)
    except REFUSED as error:
        sizes = ", ".join(f"{w} x {h}" for p in prompts for w, h in (image.size for image in p.images))
        why = " ".join(str(error).split())[:120]
        raise Unusable(
            f"its images ({sizes[:60]}) are refused by the model's image processor: {why}", OF_IMAGE
        ) from error
    limit = room(view, max_tokens)
    examples = [_fitted(view, sample, texts, limit) for sample, texts in zip(samples, written, strict=True)]
    kept = [prompt for _, prompt in examples]
    if sum(len(p.images) for p in kept) < sum(map(len, written)):
        images, _ = view.images_of(kept)
    encoded = [example.encoded for example, _ in examples]
    check_positions(view, encoded, lambda: images)
    return [example for example, _ in examples], images


def labelled(view: ModelView, sample: Sample, written: Sequence[str]) -> Example:
    """The whole sample, its images ``written`` as ``view.images_of`` says, with a label for every answer token.

    An answer is what follows its generation prompt, through the end token (``factory.model.encode``). Where the
    template writes none (as LLaVA-1.5's does), the tokenizer's end token is put there, as in LLaVA's own training.
    Raises ``Unusable`` for a text that spells a special token and for turns that the template refuses.
    """
    try:
        (encoded,) = view.tokens([sample.prompt], [written], ended=True)
    except UserError as error:
        raise Unusable(str(error), OF_TEMPLATE) from error
    learnt = [s.learnt for s in sample.prompt.segments if s.role == Role.ANSWER]
    return Example(encoded, _labels(encoded, learnt), sample.prompt.task)


def _labels(encoded: Encoded, learnt: Sequence[bool]) -> list[int]:
    """The tokens of each answer that is ``learnt``; answers are the runs of tokens that were said."""
    labels, number, within = [], -1, False
    for token, said in zip(encoded.ids, encoded.answers, strict=True):
        number += said and not within
        within = said
        labels.append(token if said and learnt[number] else IGNORE)
    return labels


def _fitted(view: ModelView, sample: Sample, written: Sequence[str], max_tokens: int | None) -> tuple[Example, Prompt]:
    """The sample cut to ``max_tokens`` from its end, by whole exchanges; the first answer alone is cut within."""
    prompt, example = sample.prompt, labelled(view, sample, written)
    asks = bool(example.labelled)  # a sample that stands for a skipped one has nothing to learn
    while max_tokens is not None and len(example.labels) > max_tokens:
        shorter = without_last_exchange(prompt)
        if shorter is None:
            return _cut(example, max_tokens, view.positions), prompt
        prompt = shorter
        example = labelled(view, Sample(sample.id, prompt), written[: len(prompt.images)])
        if asks and not example.labelled:
            raise Unusable(f"is cut to {max_tokens} tokens, which leave none of its answers that are learnt", TOO_LONG)
    return example, prompt


def without_last_exchange(prompt: Prompt) -> Prompt | None:
    """The prompt up to its last answer but one; None where it has one answer only."""
    answers = [i for i, s in enumerate(prompt.segments) if s.role == Role.ANSWER]
    return replace(prompt, segments=prompt.segments[: answers[-2] + 1]) if len(answers) > 1 else None


def _cut(example: Example, max_tokens: int, positions: int | None) -> Example:
    encoded, labels = example.encoded, example.labels[:max_tokens]
    if all(label == IGNORE for label in labels) or int(Role.IMAGE) in encoded.roles[max_tokens:]:
        asked = next(i for i, label in enumerate(example.labels) if label != IGNORE)
        raise Unusable(f"takes {no_room(asked, max_tokens, positions)}", TOO_LONG)
    cut = replace(
        encoded,
        ids=encoded.ids[:max_tokens],
        roles=encoded.roles[:max_tokens],
        offsets=encoded.offsets[:max_tokens],
        answers=encoded.answers[:max_tokens],
    )
    return replace(example, encoded=cut, labels=labels)

"""What steering does to free text: perplexity under the model without steering, variety, empty and repetitive
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from eval_suite.benchmark import AnswerBenchmark, Item, Record, Sums
from eval_suite.released import asked
from eval_suite.scorers.collapse import repeats, wordless
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError, quoted
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.recipe.paths import RecipePath
from factory.registry import Params, register

RULE = "fluency/2"
PROMPTS = (
    "Explain in a few sentences how bread is made.",
    "Describe a walk through a market on a Saturday morning.",
    "What are the advantages and drawbacks of living in a city?",
    "Write a short letter that thanks a neighbour for help.",
    "Tell a short story about a lost key.",
    "How does a bicycle stay upright?",
    "Summarise why people tell stories.",
    "Give three tips for learning a language, with reasons.",
)
PICTURES = (".jpg", ".jpeg", ".png")


class FluencyParams(Params):
    """Texts that ask for free text; each is also asked of every picture in the folder ``images``, where one is
    given.

    ``prompts`` are the texts; ``new_tokens``: most tokens of an answer.
    """

    prompts: Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)] = PROMPTS
    images: RecipePath | None = None
    new_tokens: PositiveInt = 128


@register("benchmark", "fluency")
class Fluency(AnswerBenchmark):
    """Free text under steering: perplexity under the unsteered model, distinct-1 and distinct-2 of an answer, empty and
    repetitive share.
    """

    Params = FluencyParams
    profile = "plain"
    scorer = RULE
    main = "sound"
    beside = ("perplexity", "distinct_2", "repetitive", "empty")
    shares = {"sound": ("sound", "n"), "empty": ("empty", "n"), "repetitive": ("repetitive", "n")}  # noqa: RUF012

    @classmethod
    def needs_pictures(cls, params: FluencyParams) -> bool:
        return params.images is not None

    @property
    def new_tokens(self) -> int:
        return self.params.new_tokens

    @property
    def split(self) -> str:
        return f"{len(self.params.prompts)}-prompts"

    def items(self) -> Sequence[Item]:
        pictures: Sequence[Path | None] = [None]
        if self.params.images:
            folder = self.params.images.directory("images")
            pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES)
            if not pictures:
                raise UserError(f"images {quoted(folder)}: holds no picture")
        return [
            Item(
                f"{picture.name if picture else 'text'}/{i}",
                asked(picture, (Role.QUESTION, text)),
                images=(picture,) if picture else (),
            )
            for picture in pictures
            for i, text in enumerate(self.params.prompts)
        ]

    def inspect(self, view: ModelView, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"nll": nll, "tokens": n} for nll, n in negative_log_likelihoods(view, prompts, texts)]

    def read(self, item: Item, text: str) -> Reading:
        words, empty = text.split(), wordless(text)
        repetitive = not empty and repeats(text)
        sums = {
            "n": 1.0,
            "empty": float(empty),
            "repetitive": float(repetitive),
            "sound": float(not empty and not repetitive),
            "distinct_1": _distinct(words),
            "distinct_2": _distinct(list(pairwise(words))),
        }
        return Reading(None if empty else text, sums, sums["sound"], failed=empty)

    def unit_sums(self, members: Sequence[Record]) -> dict[str, float]:
        (member,) = members
        return {**member["sums"], "nll": member["nll"], "tokens": float(member["tokens"])}

    def metrics(self, sums: Sums) -> dict[str, Any]:
        means = {name: sums.ratio(name, "n") for name in ("sound", "empty", "repetitive", "distinct_1", "distinct_2")}
        return {**means, "perplexity": torch.as_tensor(sums.ratio("nll", "tokens")).exp().numpy()}


def _distinct(grams: Sequence[Any]) -> float:
    """Share of an answer's n-grams that are different ones (Li et al. 2016, within one answer)."""
    return len(set(grams)) / len(grams) if grams else 0.0


def negative_log_likelihoods(
    view: ModelView, prompts: Sequence[Prompt], texts: Sequence[str]
) -> list[tuple[float, int]]:
    """Summed -log p of each answer's tokens under the model as it runs now, and their number; an empty answer has
    none.
    """
    out: list[tuple[float, int]] = []
    for prompt, text in zip(prompts, texts, strict=True):
        if not text.strip():
            out.append((0.0, 0))
            continue
        batch = view.encode([prompt.append(Segment(Role.ANSWER, text))])
        with torch.no_grad():
            hidden, _ = prefill(view, batch)
            at = batch.mask(Role.ANSWER)[0].nonzero().squeeze(-1)
            logp = view.logits(hidden[0, at - 1]).log_softmax(-1)
        out.append((-float(logp.gather(-1, batch.input_ids[0, at][:, None]).sum()), len(at)))
    return out

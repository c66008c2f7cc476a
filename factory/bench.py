"""What questions are put with: a benchmark and how answers are generated, apart from any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from factory.benchmark import Conflicts
from factory.blame import wrong
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.alike import prefill_apart, prefill_prompts
from factory.model.prefix import at_last, decode_texts, greedy
from factory.model.view import ModelView
from factory.recipe.nodes import Node

Asked = tuple[ConflictSample, str, Prompt]
Example = Callable[[ConflictSample, str, str, int], list[Prompt]]


@dataclass(frozen=True)
class Bench:
    """What an evaluation needs beside methods: the benchmark and how answers are generated."""

    view: ModelView
    benchmark: Conflicts
    layer: int
    max_new_tokens: int

    @cached_property
    def among(self) -> Tensor | None:
        """The tokens that an answer is chosen among, as ``letter_tokens`` has them."""
        return letter_tokens(self.view, self.benchmark)


def conflicts(node: Node | None) -> Conflicts:
    """The benchmark of a recipe's ``data:``. Raises ``UserError`` for one that sets no sources against each other."""
    assert node is not None, "a recipe that compares methods has data"
    benchmark = node.make()
    if not isinstance(benchmark, Conflicts):
        raise wrong(
            node,
            "type",
            f"'{node.type}' sets no image against a text; benchmarks of questions belong under 'benchmarks:'",
        )
    return benchmark


def letter_tokens(view: ModelView, benchmark: object) -> Tensor | None:
    """Where a benchmark forces a choice among ``letters``: the ids [k] of the tokens that are one of them, spaces
    aside.

    Raises ``UserError`` where the tokenizer has none for a letter.
    """
    ids: list[int] = []
    for letter in benchmark.letters if isinstance(benchmark, Conflicts) else ():
        spelt = {view.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (letter, f" {letter}")}
        own = sorted(i for i in spelt if view.tokenizer.decode([i]).strip() == letter)
        if not own:
            raise UserError(
                f"data.scoring: the model's tokenizer has no token for the letter {letter}; use both_orders"
            )
        ids += own
    return torch.tensor(ids, device=view.device) if ids else None


def answer_prompts(
    view: ModelView, prompts: Sequence[Prompt], max_new_tokens: int, among: Tensor | None = None, apart: bool = False
) -> list[str]:
    """Greedy answers; with ``among`` each is the likeliest of these tokens. What prompts that begin alike have in
    common is run once (``factory.model.alike``), unless each is to be run ``apart``."""
    with torch.no_grad():
        batch, hidden, prefix = (prefill_apart if apart else prefill_prompts)(view, prompts)
        logits = view.logits(at_last(hidden, batch.attention_mask))
        return decode_texts(view, greedy(view, prefix, logits, max_new_tokens, among))


def asked_forms(bench: Bench, samples: Sequence[ConflictSample]) -> list[Asked]:
    """Each sample with each of its forms, sample by sample."""
    return [(s, form, bench.benchmark.prompt(s, form)) for s in samples for form in bench.benchmark.forms]

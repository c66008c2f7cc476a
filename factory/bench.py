"""What questions are put with: a benchmark and how answers are generated, apart from any method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from factory.benchmark import Conflicts
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.prefix import at_last, decode_texts, greedy, prefill
from factory.model.view import ModelView

Asked = tuple[ConflictSample, str, Prompt]
Example = Callable[[ConflictSample, str, str, int], list[Prompt]]


@dataclass(frozen=True)
class Bench:
    """What an evaluation needs beside methods: the benchmark (of conflicts; others, or None, where prompts are
    answered that come from elsewhere) and how answers are generated.
    """

    view: ModelView
    benchmark: Any
    layer: int
    max_new_tokens: int

    @cached_property
    def among(self) -> Tensor | None:
        """Where the benchmark forces a choice among ``letters``: the ids [k] of the tokens that are one of them, spaces
        aside.

        Raises ``UserError`` where the tokenizer has none for a letter.
        """
        ids: list[int] = []
        for letter in self.benchmark.letters if isinstance(self.benchmark, Conflicts) else ():
            spelt = {
                self.view.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in (letter, f" {letter}")
            }
            own = sorted(i for i in spelt if self.view.tokenizer.decode([i]).strip() == letter)
            if not own:
                raise UserError(
                    f"data.scoring: the model's tokenizer has no token for the letter {letter}; use both_orders"
                )
            ids += own
        return torch.tensor(ids, device=self.view.device) if ids else None


def answer_prompts(bench: Bench, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
    """Unsteered greedy answers."""
    batch = bench.view.encode(prompts)
    with torch.no_grad():
        hidden, prefix = prefill(bench.view, batch)
        logits = bench.view.logits(at_last(hidden, batch.attention_mask))
        return decode_texts(bench.view, greedy(bench.view, prefix, logits, max_new_tokens, bench.among))


def asked_forms(bench: Bench, samples: Sequence[ConflictSample]) -> list[Asked]:
    """Each sample with each of its forms, sample by sample."""
    return [(s, form, bench.benchmark.prompt(s, form)) for s in samples for form in bench.benchmark.forms]

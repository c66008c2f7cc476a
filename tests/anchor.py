"""Instructed conflicts on tiny models, and a slow attention to compare with, for the tests of the Instruction Anchor's
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eval_suite.benchmarks.scenes import Scenes
from factory.bench import Bench
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample
from factory.diagnose import attention
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.instructed import Asked, Instructed, InstructedParams, ask_instructed, instructed
from factory.model.encode import Batch
from factory.model.view import ModelView
from tests.tiny import text_first, tiny_view, two_images


def scenes_bench(
    view: ModelView | None = None, scoring: str = "open_ended", tokens: int = 3
) -> tuple[Bench, list[ConflictSample]]:
    benchmark = Scenes(
        Scenes.Params.model_validate({"scoring": scoring, "per_task": {"train": 1, "dev": 1, "test": 1}})
    )
    return Bench(view or tiny_view(), benchmark, 1, tokens), list(benchmark.samples("test"))


def mixed_items(
    bench: Bench, samples: Sequence[ConflictSample], params: InstructedParams | None = None
) -> list[Instructed]:
    """Items of both directions with different layouts: image first, text first, and two images with text between
    them.
    """
    items, _ = instructed(
        bench, samples, params or InstructedParams(), Dictionary(bench.view.tokenizer, DictionaryParams())
    )
    changes: list[Callable[[Prompt], Prompt]] = [lambda p: p, text_first, lambda p: two_images(p, items[0].prompt)]
    return [Instructed(i.sample, i.form, i.direction, changes[n % 3](i.prompt), i.answers) for n, i in enumerate(items)]


def asked_mix(view: ModelView | None = None, n: int = 4) -> tuple[Bench, Asked]:
    bench, samples = scenes_bench(view)
    return bench, ask_instructed(bench, mixed_items(bench, samples)[:n])


def role_sets(batch: Batch, direction: str) -> dict[str, set[int]]:
    """Columns of each token set of one prompt without padding, spelt out."""
    roles = batch.roles[0].tolist()
    assert batch.roles.shape[0] == 1 and bool(batch.attention_mask.all())
    at = lambda *which: {i for i, r in enumerate(roles) if r in which}
    image, context, context_a = at(Role.IMAGE), at(Role.CONTEXT), at(Role.CONTEXT_A)
    sides = (context_a, context) if context_a else (image, context)
    first, second = sides if direction in ("vision", "memo") else sides[::-1]
    return {
        "image": image,
        "context": context,
        "context_a": context_a,
        "context_b": context,
        "cues": image | context | context_a,
        "compliant": first,
        "competing": second,
        "question": at(Role.QUESTION),
        "format": at(Role.OPTIONS),
        "instruction": at(Role.INSTRUCTION),
        "template": at(Role.TEMPLATE),
        "generated": {len(roles) - 1},
    }


def slow_forward(
    view: ModelView, batch: Batch, cut: Callable[[int, int, int], bool], silent: set[tuple[int, int, int]] = frozenset()
) -> Tensor:
    """Final normed states [T, d] of one whole prompt, without a cache, head by head.

    ``cut(layer, i, j)``: token i does not see token j; ``silent`` (layer, head, token) have a zero head output.
    """

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_
    ) -> tuple[Tensor, None]:
        layer, (heads, T), group = module.layer_idx, q.shape[1:3], q.shape[1] // k.shape[1]
        seen = torch.tensor([[j <= i and (i == j or not cut(layer, i, j)) for j in range(T)] for i in range(T)])
        out = torch.zeros(1, T, heads, q.shape[-1])
        for n in range(heads):
            scores = q[0, n] @ k[0, n // group].T * scaling
            out[0, :, n] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[0, n // group]
        for at, n, i in silent:
            if at == layer:
                out[0, i, n] = 0
        return out, None

    with torch.no_grad(), attention(view, attend):
        return view.core(**batch, position_ids=batch.position_ids, use_cache=False).last_hidden_state[0]

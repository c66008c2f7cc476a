"""Relative uncertainty and inherent preference (arXiv 2511.02243, "Beyond Fixed Biases"). SPEC.md 4.

    H^(m) = - sum_y p(y) log p(y) of the first answer token, from one modality alone: (I, Q) or (T, Q)
    dH_rel = 2 (H^(t) - H^(v)) / (H^(t) + H^(v));      balance point: dH_rel where P(text | dH_rel) = 1/2

Measured on conflicts that the model answers right from either modality alone. Layer by layer the last token's state is
read through the output norm and unembedding: its top token is the vision answer's, the text answer's or neither, and
the switches between the first two are the oscillations. Ours: 0/0 = 0, the fits (``curve``), the ambiguous region's use
of the logistic balance point, and that an answer may begin with any of its spellings (with or without a space, in
either case).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from factory import registry
from factory.bench import Bench, asked_forms
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, about
from factory.diagnose.summary import Summary
from factory.model.prefix import at_last, decode_texts, greedy, prefill
from factory.model.view import ModelView
from factory.registry import register

from .cases import entropy_of, follows_second
from .curve import relative_uncertainty
from .story import tell

NAN = float("nan")


@register("diagnostic", "relative_uncertainty")
class RelativeUncertainty(Diagnostic):
    """Each conflict's relative uncertainty and what the model follows in it: the following curve, its balance point,
    oscillations.

    Metrics of a prompt: ``H_v``, ``H_t`` (nats), ``dH_rel``, ``known`` (1 if both unimodal answers are right), ``text``
    (1 it follows the text, 0 the image, NaN neither), ``confidence`` (its first token's probability), ``oscillations``;
    by layer ``logit_difference`` (text answer less vision answer). Between two texts (ours) the first stands for the
    image and the second for the text: ``H_a``, ``H_b``, and ``second`` in the place of ``text``. Cost: two prompts of
    one side beside the whole one, with their answers.
    """

    class Params(registry.Params):
        """``ambiguous``: half-width of the region about the balance point; ``bins`` of the curve; ``draws`` of the
        bootstrap.

        ``seed`` is the bootstrap's.
        """

        ambiguous: float = Field(0.5, gt=0)
        bins: PositiveInt = 8
        draws: PositiveInt = 1000
        seed: int = 0

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        asked, sources = asked_forms(bench, samples), bench.benchmark.sources
        v, t = sources.names
        (H_v, verdict_v, _), (H_t, verdict_t, _) = (
            _alone(bench, asked, [bench.benchmark.alone(sample, form, side) for sample, form, _ in asked])
            for side in (v, t)
        )
        with layer_logits(bench.view) as lens:
            _, verdict, confidence = _alone(bench, asked, [prompt for *_, prompt in asked])
        dH = relative_uncertainty(H_v.numpy(), H_t.numpy()).tolist()
        rows = []
        for i, (sample, form, _) in enumerate(asked):
            answers = [
                first_tokens(bench.view, bench.benchmark.example(sample, form, direction)) for direction in (v, t)
            ]
            layers = [layer[i] for layer in lens]
            known = float(verdict_v[i] == v and verdict_t[i] == t)
            follows = {t: 1.0, v: 0.0}.get(verdict[i], NAN)
            measured = {
                entropy_of(sources.first): float(H_v[i]),
                entropy_of(sources.second): float(H_t[i]),
                "dH_rel": dH[i],
                "known": known,
                follows_second(sources): follows,
                "confidence": confidence[i],
                "oscillations": float(oscillations(layers, *answers)),
            }
            named = about(sample, form, "base")
            rows += [
                {**named, "metric": name, "layer": None, "head": None, "value": value}
                for name, value in measured.items()
            ]
            rows += [
                {
                    **named,
                    "metric": "logit_difference",
                    "layer": layer,
                    "head": None,
                    "value": logit_difference(z, *answers),
                }
                for layer, z in enumerate(layers)
            ]
        return rows

    def whole_prompts(self, ids: Sequence[str]) -> int:
        return 3 * len(ids)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        p = self.params
        return tell(rows, p.ambiguous, p.bins, p.draws, p.seed, self.sources)


def _alone(bench: Bench, asked: Sequence[tuple], prompts: Sequence[Prompt]) -> tuple[Tensor, list[str], list[float]]:
    """First-token entropy [n] in nats, the verdict on each answer, and the first token's probability."""
    batch = bench.view.encode(prompts)
    with torch.no_grad():
        hidden, prefix = prefill(bench.view, batch)
        logits = bench.view.logits(at_last(hidden, batch.attention_mask))
        texts = decode_texts(bench.view, greedy(bench.view, prefix, logits, bench.max_new_tokens, bench.among))
    log_p = logits.log_softmax(-1).cpu()
    verdicts = [bench.benchmark.judge(sample, form, text) for (sample, form, _), text in zip(asked, texts, strict=True)]
    return -(log_p.exp() * log_p).sum(-1), verdicts, log_p.amax(-1).exp().tolist()


@contextmanager
def layer_logits(view: ModelView) -> Iterator[list[Tensor]]:
    """Collects each layer's logit lens of the prompts run inside: float32 [B, vocabulary] on the CPU, bottom up."""
    found: list[Tensor] = []

    def read(module: nn.Module, args: tuple, output: Tensor) -> None:
        if len(found) < view.depth:  # the prompt alone, not the answer's tokens
            assert view.step is not None, "a prefill announces what it runs"
            found.append(view.logits(view.norm(at_last(output, view.step.roles.ne(0).long()))).cpu())

    handles = [layer.register_forward_hook(read) for layer in view.layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def first_tokens(view: ModelView, example: Prompt) -> set[int]:
    """Ids with which the answer of an answered prompt may begin."""
    answer = example.segments[-1].text
    found = set()
    for spelling in {f"{space}{word}" for word in (answer, answer.lower(), answer.capitalize()) for space in ("", " ")}:
        ids = view.tokenizer(spelling, add_special_tokens=False)["input_ids"]
        found |= {next((i for i in ids if view.tokenizer.decode([i]).strip()), ids[0])} if ids else set()
    return found


def logit_difference(z: Tensor, vision: set[int], text: set[int]) -> float:
    """The text answer's logit less the vision answer's in logits [vocabulary]; NaN where they begin alike."""
    v, t = vision - text, text - vision
    return float(z[list(t)].max() - z[list(v)].max()) if v and t else NAN


def oscillations(layers: Sequence[Tensor], vision: set[int], text: set[int]) -> int:
    """Switches between the two answers among the layers' top tokens; layers that say neither are left out."""
    top = [int(z.argmax()) for z in layers]
    said = [token in text for token in top if (token in vision) != (token in text)]
    return sum(a != b for a, b in pairwise(said))

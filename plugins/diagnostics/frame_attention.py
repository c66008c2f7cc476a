"""The attention shift between the frames of a film (VISE, arXiv 2506.07180): where do the words look before and under
pressure?

    S_{f,l} = 1/N_h sum_h sum_{q in text} sum_{k in frame f} A^(l)_{h,q,k}
    Delta_l = 1/N_f sum_f |S^(1)_{f,l} - S^(2)_{f,l}|

(1) is the prompt without what presses, (2) that with it: the two that the benchmark sets against each other
(``pressed``), or the prompt without its context and the whole one. Second-hand; no code is public. Ours: text is all
that the user and the model say, template and system prompt aside. As S is a sum over queries, a longer prompt has more
of it; ``over: mean`` divides by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.bench import Bench
from factory.benchmark import Conflicts
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, about, attention
from factory.diagnose.profiles import Profile, curve, mean_of, profile, together
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.errors import UserError
from factory.instruments.focus import visible, weights
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.registry import Params, register

TEXT = (Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION, Role.ANSWER)
PROMPTS = {"vision": "without it", "text": "under pressure"}


class FrameAttentionParams(Params):
    """``over``: the sum over the text's tokens, as in the paper, or their mean."""

    over: Literal["sum", "mean"] = "sum"


@register("diagnostic", "frame_attention")
class FrameAttention(Diagnostic):
    """How much the text looks at each frame of a film, and how far pressure shifts that.

    Metrics by layer: ``delta``; ``S_1`` and on, of each frame under the prompts ``vision`` (without) and ``text``
    (with); and ``S_evidence`` where the sample's tag ``at`` says which frame has it, counted from 0. Cost: two prompts
    a sample.
    """

    by_prompt = ()
    pictured = True
    columned = True

    Params = FrameAttentionParams

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        rows = []
        for sample in samples:
            for form in bench.benchmark.forms:
                pair = compared(bench.benchmark, sample, form)
                S = {name: self.seen(bench.view, prompt) for name, prompt in pair.items()}
                delta = (S["vision"] - S["text"]).abs().mean(-1)
                rows += _rows(sample, form, "base", {"delta": delta})
                for name, of_frames in S.items():
                    frames = {f"S_{f + 1}": column for f, column in enumerate(of_frames.unbind(-1))}
                    at = sample.tags.get("at")
                    own = {"S_evidence": of_frames[:, at]} if isinstance(at, int) else {}
                    rows += _rows(sample, form, name, {**frames, **own})
        return rows

    def seen(self, view: ModelView, prompt: Prompt) -> Tensor:
        """S [layers, frames] of a prompt."""
        batch = view.encode([prompt])
        text, frames = batch.mask(*TEXT)[0], frames_of(batch.roles[0], len(prompt.images))
        found: dict[int, Tensor] = {}

        def attend(
            module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, None]:
            at = text.to(q.device)
            seen = visible(module, q, k, mask).expand(-1, -1, q.shape[2], -1)[:, :, at]
            A = weights(q[:, :, at], k, seen, options)[0]  # [heads, text, all]
            looked = A.mean(0).sum(0) @ frames.to(A).T
            found[module.layer_idx] = (looked / at.sum() if self.params.over == "mean" else looked).cpu()
            return sdpa_attention_forward(module, q, k, v, mask, **options)

        with torch.no_grad(), attention(view, attend):
            prefill(view, batch)
        return torch.stack([found[layer] for layer in sorted(found)])

    def whole_prompts(self, ids: Sequence[str]) -> int:
        return 2 * len(ids)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return told(rows)


def compared(benchmark: Conflicts, sample: ConflictSample, form: str) -> dict[str, Prompt]:
    """The prompt without (vision) and with (text) what presses."""
    if benchmark.has_pairs:
        return {side: benchmark.paired(sample, form, side) for side in ("vision", "text")}
    return {"vision": benchmark.alone(sample, form, "vision"), "text": benchmark.prompt(sample, form)}


def frames_of(roles: Tensor, number: int) -> Tensor:
    """Which of the tokens [T] are of each of so many pictures [F, T]: each run of image tokens is one, or each has as
    many as any other. Raises ``UserError`` where neither can be.
    """
    image = roles == Role.IMAGE
    before = torch.cat([image.new_zeros(1), image[:-1]])
    run = (image & ~before).cumsum(0) - 1
    if int(run.max()) + 1 != number:
        total = int(image.sum())
        if not number or total % number:
            raise UserError(f"frame_attention: {total} image tokens cannot be told apart as {number} pictures")
        run = (image.cumsum(0) - 1).clamp_min(0) // (total // number)
    return torch.stack([image & (run == f) for f in range(number)])


def _rows(sample: ConflictSample, form: str, prompt: str, metrics: dict[str, Tensor]) -> list[dict[str, Any]]:
    named = about(sample, form, prompt)
    return [
        {**named, "metric": metric, "layer": layer, "head": None, "value": value}
        for metric, values in metrics.items()
        for layer, value in enumerate(values.tolist())
    ]


def told(rows: Sequence[dict[str, Any]]) -> Summary:
    """The shift by layer, and the frame that it is about: the one with the evidence where it is known, else the
    first."""
    delta = profile(rows, metric="delta", prompt="base")
    frame = "S_evidence" if any(row["metric"] == "S_evidence" for row in rows) else "S_1"
    sides = dict(zip(PROMPTS, together(*(profile(rows, metric=frame, prompt=p) for p in PROMPTS)), strict=True))
    shift = [mean_of(delta.values[:, layer], delta.keys) for layer in range(delta.values.shape[1])]
    less = sides["text"].values - sides["vision"].values
    change = [mean_of(less[:, layer], sides["vision"].keys) for layer in range(less.shape[1])]
    most = int(np.argmax([m.mean for m in shift]))
    low, high = change[most].interval
    named = "the frame with the evidence" if frame == "S_evidence" else "the first frame"
    findings = (
        Finding(
            f"Pressure shifts attention between frames most in layer {most}: Delta {shift[most]} (n = {delta.n})",
            values={"layer": most, **shift[most].facts("delta")},
        ),
        Finding(
            f"In that layer the attention S on {named} is {sides['vision'].mean[most]:.3f} without pressure; pressure"
            f" changes it by {change[most].mean:+.3f} [{low:+.3f}, {high:+.3f}]",
            values={"layer": most, **change[most].facts("change")},
            p=change[most].p,
        ),
    )
    lines = tuple(
        (layer, m.mean, *m.interval, float(sides["vision"].mean[layer]), float(sides["text"].mean[layer]))
        for layer, m in enumerate(shift)
    )
    columns = ("layer", "Delta", "low", "high", f"S of {named}, without", "under pressure")
    table = Table("delta", "Attention shift between frames, by layer", columns, lines)
    return Summary("Where the words look in a film", findings, (table,), (_figure(delta, sides, named),))


def _figure(delta: Profile, sides: dict[str, Profile], named: str) -> Figure:
    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        curve(left, delta, "Delta")
        left.set_ylabel("Delta, mean over frames")
        for name, side in sides.items():
            curve(right, side, PROMPTS[name])
        right.set_ylabel(f"S of {named}")
        right.legend()

    caption = (
        f"Left: how far pressure shifts attention between frames. Right: attention of the text on {named}. {delta.n}"
        " prompts; bands are one standard deviation."
    )
    return Figure("frames", "Attention to frames", caption, draw)

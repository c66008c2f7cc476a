"""LMAR, layer-wise modality attention ratio (LLaVA Steering, section 3; SPEC 6): is a picture's token looked at as much as a word?

    LMAR_l = 1/N sum_i  alpha_l,i^image / alpha_l,i^text                                  (equation 2)

alpha are mean attention scores per token, over heads and over the queries that write the answer. Only those queries' rows of the
attention are computed, softmax(q Kᵀ) beside the model's own kernel as the prompt runs, and no T x T map is made.

The paper leaves open what counts as text. ``text: others`` takes every other token of the prompt (its figure 1), the beginning-of-text
token, on which attention rests when it has nothing to look at, among them; ``words`` takes what the prompt says. Both are ours.
A mean of ratios follows the few samples that hardly look at text; beside it stands the ratio of the means, ours too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isnan, nan
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.prompt import Role
from factory.diagnose import Diagnostic, Query, Row, attention
from factory.diagnose.summary import Figure, Finding, Summary, Table
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, extend, last_index, prefill
from factory.model.view import ModelView
from factory.registry import Params, register

if TYPE_CHECKING:
    import matplotlib.figure

WORDS = (Role.SYSTEM, Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION)
OTHERS = (*WORDS, Role.TEMPLATE, Role.ANSWER)


class LmarParams(Params):
    """``tokens``: how many tokens of the model's own greedy answer look (1: the one that writes the first).

    ``bins``: into how many stretches, in reading order, the image's tokens are put for the heat map.
    """

    text: Literal["others", "words"] = "others"
    tokens: PositiveInt = 1
    bins: PositiveInt = 8


class Looks:
    """Adds up, over steps, the mean attention over heads that one query of each row pays to ``groups`` of columns [G, R, T].

    ``at`` says which query of the coming step looks, in each row. ``sums`` [layers, G, R] over ``looked`` [R] steps.
    """

    def __init__(self, groups: Tensor, depth: int) -> None:
        self.groups = groups
        self.sums = groups.new_zeros(depth, *groups.shape[:2])
        self.looked = groups.new_zeros(groups.shape[1])
        self.looking = torch.ones_like(self.looked)

    def at(self, rows: Tensor, looking: Tensor | None = None) -> Looks:
        """Column ``rows`` [R] of the step's queries looks; ``looking`` [R] is 0 for rows whose answer has ended, else 1."""
        self.rows = rows
        self.looking = self.looking if looking is None else looking
        self.looked = self.looked + self.looking
        return self

    def __call__(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any) -> tuple[Tensor, None]:
        R, H, _, d = q.shape
        one = q.gather(2, self.rows[:, None, None, None].expand(R, H, 1, d)).reshape(R, k.shape[1], -1, d)
        scores = (one.float() @ k.float().transpose(-1, -2)) * scaling
        if mask is not None:
            seen = mask.gather(2, self.rows[:, None, None, None].expand(R, mask.shape[1], 1, mask.shape[3]))
            scores = scores.masked_fill(~seen, -torch.inf)
        alpha = scores.softmax(-1).mean((1, 2))
        prompt = self.groups.shape[-1]
        self.sums[module.layer_idx] += torch.einsum("grt,rt->gr", self.groups, alpha[:, :prompt]) * self.looking
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **options)


@register("diagnostic", "lmar")
class Lmar(Diagnostic):
    """Attention per image token over attention per text token, by layer."""

    Params = LmarParams

    def measure(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> list[Row]:
        looks = self._looks(view, batch.roles)
        with torch.no_grad(), attention(view, looks.at(last_index(batch.attention_mask))):
            hidden, prefix = prefill(view, batch)
            self._answer(view, prefix, at_last(hidden, batch.attention_mask), looks)
        return self._rows(looks, keys)

    def on_prefix(self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None) -> list[Row]:
        looks = self._looks(view, torch.cat([prefix.roles, query.roles], -1))
        with torch.no_grad(), attention(view, looks.at(last_index(query.mask))):
            hidden, prefix = extend(view, prefix.fork(), *query)
            self._answer(view, prefix, at_last(hidden, query.mask), looks)
        return self._rows(looks, keys)

    def _answer(self, view: ModelView, prefix: Prefix, hidden: Tensor, looks: Looks) -> None:
        """Let the following tokens of the greedy answer look as well; ``hidden`` [R, d] is the state that writes the first."""
        for _ in range(self.params.tokens - 1):
            token = view.logits(hidden).argmax(-1)
            one = torch.ones_like(token)[:, None]
            looks.at(torch.zeros_like(token), looks.looking * ~torch.isin(token, view.eos_ids))
            hidden, prefix = extend(view, prefix, token[:, None], one, one * int(Role.ANSWER), generated=True)
            hidden = hidden[:, -1]

    def _looks(self, view: ModelView, roles: Tensor) -> Looks:
        image = roles == Role.IMAGE
        text = torch.isin(roles, torch.tensor([int(r) for r in (WORDS if self.params.text == "words" else OTHERS)], device=roles.device))
        return Looks(torch.stack([image, text, *self._binned(image)]).float(), view.depth)

    def _rows(self, looks: Looks, keys: Sequence[str]) -> list[Row]:
        sums, counts = looks.sums / looks.looked, looks.groups.sum(-1)
        per_token = torch.where(counts > 0, sums / counts, torch.nan)
        values = {"lmar": per_token[:, 0] / per_token[:, 1], "alpha_image": per_token[:, 0], "alpha_text": per_token[:, 1]}
        values |= {"attention_image": sums[:, 0], "attention_text": sums[:, 1]}
        values |= {f"attention_image_{j}": per_token[:, 2 + j] for j in range(self.params.bins)}
        return [
            Row(sample=key, metric=metric, layer=layer, head=None, value=value)
            for metric, table in values.items()
            for layer, line in enumerate(table.tolist())
            for key, value in zip(keys, line, strict=True)
        ]

    def _binned(self, image: Tensor) -> list[Tensor]:
        rank, count = image.cumsum(-1) - 1, image.sum(-1, keepdim=True).clamp_min(1)
        at = rank * self.params.bins // count
        return [image & (at == j) for j in range(self.params.bins)]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        rows = _both(rows)
        means = _means(rows)
        lmar, n = means["lmar"], len({row["sample"] for row in rows})
        if not lmar:
            return None
        pooled = {layer: means["alpha_image"][layer] / means["alpha_text"][layer] for layer in lmar}
        above = [layer for layer, value in pooled.items() if value >= 1]
        finding = Finding(
            f"an image token gets {median(pooled.values()):.2f} times the attention of a text token in the median layer ({n} samples), "
            f"and as much or more in {len(above)} of {len(lmar)} layers; LMAR, the mean of the samples' ratios, is {median(lmar.values()):.2f} there",
            values={"median_ratio_of_means": median(pooled.values()), "median_lmar": median(lmar.values()), "layers_above_one": len(above), "layers": len(lmar), "samples": n},
        )
        columns = ("layer", "LMAR", "ratio of means", "attention to the image", "attention to text")
        lines = tuple((i, lmar[i], pooled[i], means["attention_image"][i], means["attention_text"][i]) for i in lmar)
        bins = [means[f"attention_image_{j}"] for j in range(self.params.bins)]
        caption = f"attention per image token over that per text token, {n} samples; 1 is balance"
        return Summary(
            "Layer-wise modality attention ratio",
            (finding,),
            (Table("lmar", "Attention by layer", columns, lines),),
            (
                Figure("lmar", "LMAR by layer", caption, lambda f: _lines(f, {"LMAR (mean of ratios)": lmar, "ratio of means": pooled})),
                Figure("lmar_map", "Where the image is looked at", f"attention per image token by layer and place in reading order, {n} samples", lambda f: _map(f, bins, list(lmar))),
            ),
        )


def _both(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of samples that have both modalities."""
    lacking = {row["sample"] for row in rows if row["metric"] == "lmar" and (row["value"] is None or isnan(row["value"]))}
    return [row for row in rows if row["sample"] not in lacking]


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Mean of each metric over samples, by layer."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["value"] is not None and not isnan(row["value"]):  # a stretch is empty where the image has fewer tokens than stretches
            values[row["metric"]][row["layer"]].append(row["value"])
    return defaultdict(dict, {metric: {layer: fmean(by[layer]) for layer in sorted(by)} for metric, by in values.items()})


def _lines(figure: matplotlib.figure.Figure, curves: dict[str, dict[int, float]]) -> None:
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.axhline(1, linestyle="--", linewidth=1, color="grey")
    axes.set(xlabel="layer", ylabel="image over text, per token", yscale="log")
    axes.legend()


def _map(figure: matplotlib.figure.Figure, bins: list[dict[int, float]], layers: list[int]) -> None:
    axes = figure.subplots()
    shown = axes.imshow([[by.get(layer, nan) for by in bins] for layer in layers], aspect="auto", origin="lower", cmap="viridis")
    axes.grid(visible=False)
    axes.set(xlabel="stretch of image tokens, in reading order", ylabel="layer")
    figure.colorbar(shown, label="attention per token")

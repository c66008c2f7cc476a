"""LMAR, layer-wise modality attention ratio (LLaVA Steering, arXiv 2412.12359, section 3; SPEC 6): is a picture's token
looked at as much as a word?

    LMAR_l = 1/N sum_i  alpha_l,i^image / alpha_l,i^text                                  (equation 2)

alpha are mean attention scores per token, over heads and over the queries that write the answer. Only those queries'
rows of the attention are computed, softmax(q Kᵀ) beside the model's own kernel as the prompt runs, and no T x T map is
made.

The paper leaves open what counts as text. ``text: others`` takes every other token of the prompt (its figure 1), the
beginning-of-text token, on which attention rests when it has nothing to look at, among them; ``words`` takes what the
prompt says. Both are ours. A mean of ratios follows the few samples that hardly look at text; beside it stands the
ratio of the means, ours too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.prompt import Role
from factory.diagnose import Diagnostic, Query, Row, attention
from factory.diagnose.summary import Summary
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, extend, last_index, prefill
from factory.model.view import ModelView
from factory.registry import Params, register

from .summary import beside_of, summary_of

WORDS = (Role.SYSTEM, Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION)
OTHERS = (*WORDS, Role.TEMPLATE, Role.ANSWER)
TENTH = 10


class LmarParams(Params):
    """``tokens``: how many tokens of the model's own greedy answer look (1: the one that writes the first); with more
    than one there is also a map of every layer, answer token by answer token (figure 8), and how much of the image's
    attention is on the tenth of its tokens that is looked at most (A.6: "only a few tokens").

    ``bins``: into how many stretches, in reading order, the image's tokens and the text's are put for heat maps.

    ``text``: which tokens count as text, all others or the prompt's words.
    """

    text: Literal["others", "words"] = "others"
    tokens: PositiveInt = 1
    bins: PositiveInt = 8


class Looks:
    """Adds up, over steps, the mean attention over heads that one query of each row pays to ``groups`` of columns [G,
    R, T].

    ``at`` says which query of the coming step looks, in each row. ``seen`` [layers, G, R], one a step; ``looked`` [R],
    how many steps each row looked.
    """

    def __init__(self, groups: Tensor, depth: int, ranked: bool = False) -> None:
        self.groups, self.depth, self.ranked = groups, depth, ranked
        self.seen: list[Tensor] = []
        self.peaks = groups.new_zeros(depth, groups.shape[1])
        self.looked = groups.new_zeros(groups.shape[1])
        self.looking = torch.ones_like(self.looked)

    def at(self, rows: Tensor, looking: Tensor | None = None) -> Looks:
        """Column ``rows`` [R] of the step's queries looks; ``looking`` [R] is 0 for rows whose answer has ended, else
        1.
        """
        self.rows = rows
        self.looking = self.looking if looking is None else looking
        self.looked = self.looked + self.looking
        self.seen.append(self.groups.new_zeros(self.depth, *self.groups.shape[:2]))
        return self

    def __call__(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any
    ) -> tuple[Tensor, None]:
        R, H, _, d = q.shape
        at = self.rows.to(q.device)[:, None, None, None]
        one = q.gather(2, at.expand(R, H, 1, d)).reshape(R, k.shape[1], -1, d)
        scores = (one.float() @ k.float().transpose(-1, -2)) * scaling
        if mask is not None:
            seen = mask.gather(2, at.expand(R, mask.shape[1], 1, mask.shape[3]))
            scores = scores.masked_fill(~seen, -torch.inf)
        alpha = scores.softmax(-1).mean((1, 2)).to(self.groups.device)
        prompt = self.groups.shape[-1]
        self.seen[-1][module.layer_idx] = torch.einsum("grt,rt->gr", self.groups, alpha[:, :prompt]) * self.looking
        if self.ranked:
            self.peaks[module.layer_idx] += _on_top(alpha[:, :prompt] * self.groups[0], self.groups[0]) * self.looking
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **options)


def _on_top(alpha: Tensor, image: Tensor) -> Tensor:
    """The share [R] of the image's attention ``alpha`` [R, T] that the most looked-at tenth of its tokens has."""
    ranked = alpha.sort(-1, descending=True).values
    tenth = (image.sum(-1, keepdim=True) / TENTH).ceil()
    top = ranked * (torch.arange(alpha.shape[-1], device=alpha.device) < tenth)
    return top.sum(-1) / ranked.sum(-1)


@register("diagnostic", "lmar")
class Lmar(Diagnostic):
    """Attention per image token over attention per text token, by layer."""

    by_prompt = ()
    pictured = True

    Params = LmarParams

    def measure(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> list[Row]:
        looks = self._looks(view, batch.roles)
        with torch.no_grad(), attention(view, looks.at(last_index(batch.attention_mask))):
            hidden, prefix = prefill(view, batch)
            self._answer(view, prefix, at_last(hidden, batch.attention_mask), looks)
        return self._rows(looks, keys)

    def on_prefix(
        self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None
    ) -> list[Row]:
        looks = self._looks(view, torch.cat([prefix.roles, query.roles], -1))
        with torch.no_grad(), attention(view, looks.at(last_index(query.mask))):
            hidden, prefix = extend(view, prefix.fork(), *query)
            self._answer(view, prefix, at_last(hidden, query.mask), looks)
        return self._rows(looks, keys)

    def _answer(self, view: ModelView, prefix: Prefix, hidden: Tensor, looks: Looks) -> None:
        """Let the following tokens of the greedy answer look as well; ``hidden`` [R, d] is the state that writes the
        first.
        """
        for _ in range(self.params.tokens - 1):
            token = view.logits(hidden).argmax(-1)
            one = torch.ones_like(token)[:, None]
            looks.at(torch.zeros_like(token), looks.looking * ~torch.isin(token, view.eos_ids))
            hidden, prefix = extend(view, prefix, token[:, None], one, one * int(Role.ANSWER), generated=True)
            hidden = hidden[:, -1]

    def _looks(self, view: ModelView, roles: Tensor) -> Looks:
        image = roles == Role.IMAGE
        text = torch.isin(
            roles,
            torch.tensor([int(r) for r in (WORDS if self.params.text == "words" else OTHERS)], device=roles.device),
        )
        groups = torch.stack([image, text, *self._binned(image), *self._binned(text)]).float()
        return Looks(groups, view.depth, ranked=self.params.tokens > 1)

    def _rows(self, looks: Looks, keys: Sequence[str]) -> list[Row]:
        counts, bins = looks.groups.sum(-1), self.params.bins
        stretches = [f"{modality}_{j}" for modality in ("image", "text") for j in range(bins)]
        sums = torch.stack(looks.seen).sum(0) / looks.looked
        per_token = self._per_token(sums, counts)
        values = {
            "lmar": per_token[:, 0] / per_token[:, 1],
            "alpha_image": per_token[:, 0],
            "alpha_text": per_token[:, 1],
        }
        values |= {"attention_image": sums[:, 0], "attention_text": sums[:, 1]}
        values |= {f"attention_{name}": per_token[:, 2 + j] for j, name in enumerate(stretches[:bins])}
        if looks.ranked:
            values["image_top_tenth"] = looks.peaks / looks.looked
        for step, seen in enumerate(looks.seen if self.params.tokens > 1 else ()):
            one = torch.where(looks.looked > step, self._per_token(seen, counts), torch.nan)
            values |= {f"step_{step}_{name}": one[:, 2 + j] for j, name in enumerate(stretches)}
        return [
            Row(sample=key, metric=metric, layer=layer, head=None, value=value)
            for metric, table in values.items()
            for layer, line in enumerate(table.tolist())
            for key, value in zip(keys, line, strict=True)
        ]

    def _per_token(self, sums: Tensor, counts: Tensor) -> Tensor:
        return torch.where(counts > 0, sums / counts, torch.nan)

    def _binned(self, of: Tensor) -> list[Tensor]:
        """A modality's tokens [R, T] in ``bins`` stretches of equal length, in reading order."""
        rank, count = of.cumsum(-1) - 1, of.sum(-1, keepdim=True).clamp_min(1)
        at = rank * self.params.bins // count
        return [of & (at == j) for j in range(self.params.bins)]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        return summary_of(rows, self.params.bins, self.params.tokens)

    def beside(self, found: Mapping[str, Sequence[dict[str, Any]]], trained: Mapping[str, int]) -> Summary | None:
        return beside_of(found, trained, self.params.bins)

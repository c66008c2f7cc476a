"""Aligning a connector with words before any language model runs: a first stage that costs a thousandth of the next.

A question's words pool the image tokens by attention. The pooled token p is to lie near the embedding e of the answer's
word, and nearer to it than to those of all other answers of the data:

    d_c = |p - e_c|² / mean_c' |e_c'|²,   loss = -log softmax_c(-s d_c)[answer] + d_answer,   s learnt

The language model is then handed tokens that look like words it knows. (Ours; what LLaVA does in its first stage is
``pretrain``.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.corpus.labels import IGNORE, Example
from factory.corpus.prepared import Prepared, packing_tower
from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.view import ModelView

MOST_ANSWERS = 2048
SCALE = 4.0  # at the start; 40 answers are then told apart by gradients that are neither nothing nor all


class AlignCollator:
    """Sample numbers to packed ``features`` [B, f], the ``question``'s word ids [B, T] with their ``mask``, and the
    number of the answer as ``labels`` [B].

    A sample without exactly one picture and one answer teaches nothing: it has no label. Raises ``UserError`` where no
    sample does, and where there are too many different answers for a choice among them.
    """

    def __init__(self, view: ModelView, prepared: Prepared) -> None:
        self.view, self.prepared = view, prepared
        texts = [_answer(view, prepared[i][0]) if len(prepared[i][1]) == 1 else None for i in range(len(prepared))]
        self.answers = sorted({text for text in texts if text is not None})
        self.labels = [IGNORE if text is None else self.answers.index(text) for text in texts]
        if not 1 < len(self.answers) <= MOST_ANSWERS:
            raise UserError(
                f"tune.stage: align chooses among the data's answers, at least 2 and at most {MOST_ANSWERS} different"
                f" ones; these data have {len(self.answers)}"
            )

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.prepared[i] for i in numbers]
        blank = torch.zeros_like(self.prepared[self.prepared.n][1][0])
        words = [
            [t for t, role in zip(e.encoded.ids, e.encoded.roles, strict=True) if role == Role.QUESTION]
            or [self.view.pad_id]
            for e, _ in rows
        ]
        width = max(map(len, words))
        return {
            "features": torch.stack([f[0] if len(f) else blank for _, f in rows]),
            "question": torch.tensor([[*ids, *[self.view.pad_id] * (width - len(ids))] for ids in words]),
            "mask": torch.tensor([[1.0] * len(ids) + [0.0] * (width - len(ids)) for ids in words]),
            "labels": torch.tensor([self.labels[i] for i in numbers]),
        }


def _answer(view: ModelView, example: Example) -> str | None:
    """The text of a sample's answer; None where it has none or several."""
    at = [i for i, role in enumerate(example.encoded.roles) if role == Role.ANSWER]
    if not at or at[-1] - at[0] + 1 != len(at):
        return None
    return view.tokenizer.decode([example.encoded.ids[i] for i in at], skip_special_tokens=True).strip()


class Aligned(nn.Module):
    """The connector between frozen features and frozen word embeddings, with a query that is thrown away; from a batch
    to the summed cross entropy.
    """

    names: Tensor  # mean word embedding of each answer [answers, d]

    def __init__(self, view: ModelView, answers: Sequence[str]) -> None:
        super().__init__()
        self.connector, self._tower = view.connector, [packing_tower(view)]
        embed = view.model.get_input_embeddings()
        ids = [view.tokenizer(" " + answer, add_special_tokens=False)["input_ids"] for answer in answers]
        self.register_buffer(
            "names",
            torch.stack(
                [embed.weight[torch.tensor(i, device=embed.weight.device)].detach().float().mean(0) for i in ids]
            ),
        )
        self._embed = [embed]
        self.query = nn.Linear(view.width, view.width).to(view.device)
        self.log_scale = nn.Parameter(
            torch.full((1,), math.log(SCALE), device=view.device)
        )  # DeepSpeed takes no parameter without a dimension

    def forward(self, features: Tensor, question: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        tokens = self.connector(self._tower[0].unpack(features.to(self.query.weight.dtype)))
        far = torch.cdist(self.pooled(tokens, question, mask), self.names).square() / self.names.square().sum(-1).mean()
        chosen, near = labels != IGNORE, far.gather(1, labels.clamp_min(0)[:, None])[:, 0]
        choice = F.cross_entropy(-self.log_scale.exp() * far, labels, ignore_index=IGNORE, reduction="sum")
        return choice + (near * chosen).sum()

    def pooled(self, tokens: Tensor, question: Tensor, mask: Tensor) -> Tensor:
        """The image tokens [B, t, d] weighed by a question's words [B, T] into one [B, d]."""
        words = (self._embed[0](question).float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        width = tokens.shape[-1]
        query = self.query(F.layer_norm(words, (width,)))
        weights = torch.softmax((F.layer_norm(tokens, (width,)) @ query[..., None]).squeeze(-1) / width**0.5, -1)
        return (weights[..., None] * tokens).sum(1)

"""Short rows one behind another in one row: each is read as if it stood alone.

This is transformers' packed format, which its ``DataCollatorWithFlattening`` writes for texts: positions begin anew
with each row and there is no attention mask, so that the model's own masks are block-diagonal. Here rows keep their
roles and their pictures, and a packed row has a longest length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factory.corpus.labels import IGNORE, Example
from factory.model.view import ModelView


def runs(lengths: Sequence[int], most: int) -> list[range]:
    """Rows that follow each other, put together while they have at most ``most`` tokens: their order is that of their
    pictures. A longer row stands alone.
    """
    found, first, total = [], 0, 0
    for i, length in enumerate(lengths):
        if i > first and total + length > most:
            found.append(range(first, i))
            first, total = i, 0
        total += length
    return [*found, range(first, len(lengths))]


def pack(view: ModelView, examples: Sequence[Example], images: dict[str, Tensor], most: int) -> dict[str, Tensor]:
    """``factory.corpus.collate.collate``, with as few rows as ``runs`` gives; positions [B, T], or [1 + axes, B, T] of
    a rotary embedding of several axes, the first being those of the mask.
    """
    alone = view.batch([e.encoded for e in examples], images, "right")
    lengths = [len(e.labels) for e in examples]
    together = runs(lengths, most)
    width = max(sum(lengths[i] for i in run) for run in together)
    positions = alone.position_ids
    if positions.ndim == 3:
        counted = (alone.attention_mask.cumsum(-1) - 1).clamp_min(0)
        positions = torch.cat([counted[None], positions])

    def joined(rows: Tensor, fill: int | None) -> Tensor:
        """[.., n, T] as [.., B, width]; ``fill`` null counts on, so that padding is a row of its own."""
        made = []
        for run in together:
            kept = torch.cat([rows[..., i, : lengths[i]] for i in run], -1)
            rest = width - kept.shape[-1]
            more = torch.arange(rest) if fill is None else torch.full((rest,), fill)
            made.append(torch.cat([kept, more.to(kept).expand(*kept.shape[:-1], rest)], -1))
        return torch.stack(made, -2)

    labels = torch.full_like(alone.input_ids, IGNORE)
    for row, example in zip(labels, examples, strict=True):
        row[1 : len(example.labels)] = torch.tensor(example.labels[1:])  # nothing stands before a row's first token
    return {
        "input_ids": joined(alone.input_ids, view.pad_id),
        "position_ids": joined(positions, None),
        "labels": joined(labels, IGNORE),
        "roles": joined(alone.roles, 0),
        **{name: joined(values, 0) for name, values in alone.of_tokens.items()},
        **images,
    }

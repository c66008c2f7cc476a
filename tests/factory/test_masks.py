"""Masks of tokens after a cache with padding anywhere, against one written out token by token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from factory.errors import UserError
from factory.model.masks import by_layer_type, sliding_window
from tests.tiny_families import family_view


def decoder(window: int | None, attention: str = "sdpa") -> nn.Module:
    module = nn.Linear(1, 1)
    module.config = SimpleNamespace(
        sliding_window=window, layer_types=["sliding_attention", "full_attention"], _attn_implementation=attention
    )
    return module


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=9, max_size=9), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 6),
)
def test_masks_are_those_written_out(rows, new, window):
    mask = torch.tensor(rows)
    found = by_layer_type(decoder(window), mask, new)
    for r, row in enumerate(rows):
        for q in range(9 - new, 9):
            if not row[q]:
                continue  # padding may see what it likes
            tokens = [t for t in range(q + 1) if row[t]]
            for kind, seen in (("full_attention", tokens), ("sliding_attention", tokens[-window:])):
                assert found[kind][r, 0, q - 9 + new].nonzero()[:, 0].tolist() == seen


def test_eager_attention_is_given_numbers_to_add():
    mask = torch.tensor([[0, 1, 1, 1]])
    added, seen = (by_layer_type(decoder(2, name), mask, 2)["sliding_attention"] for name in ("eager", "sdpa"))
    assert torch.equal(added == 0, seen) and (added[~seen] == torch.finfo(torch.float32).min).all()
    with pytest.raises(UserError, match="flash_attention_2' takes no mask per layer"):
        by_layer_type(decoder(2, "flash_attention_2"), mask, 2)


@pytest.mark.parametrize(
    "config, window",
    [
        ({"sliding_window": 8}, 8),
        ({"sliding_window": None}, None),
        ({}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, 8),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
    ],
)
def test_which_configurations_have_a_window(config, window):
    assert sliding_window(SimpleNamespace(**config)) == window


def test_a_prompt_longer_than_a_window_that_counts_columns_is_refused():
    family, text = family_view("llava_next").family, family_view("llava_next").decoder
    mask = torch.ones(1, 9, dtype=torch.long)
    assert family.attention_mask(text, mask, 1) is mask
    with pytest.raises(UserError, match="9 tokens pass its sliding window of 8"):
        family.attention_mask(decoder(8), mask, 1)

"""Pictures that are shown again are not computed again, and what is made of them stays what the model makes of them."""

from __future__ import annotations

import pytest
import torch

from factory.model.prefix import prefill
from factory.model.shown import pictures_once
from tests.contract.test_families import prompts_of
from tests.tiny import mixed_prompts, tiny_view
from tests.tiny_families import SEEING, own_family_view

FEW = 4


PACKED = {"minicpmv4_6"}  # rows of patches of all pictures beside one another


@pytest.mark.parametrize("name", sorted(SEEING))
def test_states_are_those_of_the_model_and_each_picture_is_computed_once(name):
    view = own_family_view(name)
    batch = view.encode(prompts_of(view)[:FEW])
    with torch.no_grad():
        plain, _ = prefill(view, batch)
        with pictures_once(view) as shown:
            first, _ = prefill(view, batch)
            computed = shown.computed
            again, _ = prefill(view, batch)
        after, _ = prefill(view, batch)
    seen = batch.attention_mask.bool()
    scale = float(plain[seen].abs().max())
    torch.testing.assert_close(first[seen], plain[seen], atol=1e-5 * scale, rtol=0)
    assert torch.equal(first[seen], again[seen]) and torch.equal(after[seen], plain[seen])
    assert shown.computed == computed, "no picture is computed twice"
    assert (shown.computed > 0) == (name not in PACKED) and shown.remembered >= shown.computed


def counted(view, shown):
    """Runs two prompts with one picture each and says how many were computed and remembered for it."""
    before = shown.computed, shown.remembered
    with torch.no_grad():
        prefill(view, view.encode([p for p in mixed_prompts() if len(p.images) == 1][:2]))
    return shown.computed - before[0], shown.remembered - before[1]


def test_a_picture_side_that_learns_or_is_watched_runs_as_it_is():
    view = own_view()
    with pictures_once(view) as shown:
        assert sum(counted(view, shown)) > 0
        calls = []
        handle = view.connector.register_forward_hook(lambda *_: calls.append(1))
        assert counted(view, shown) == (0, 0) and calls
        handle.remove()
        weight = next(view.vision_tower.parameters())
        weight.requires_grad_(True)
        assert counted(view, shown) == (0, 0)
        weight.requires_grad_(False)
        assert counted(view, shown)[0] == 0 < counted(view, shown)[1]


def test_no_more_is_kept_than_there_is_room_for():
    view = own_view()
    with pictures_once(view, most_bytes=0) as shown:
        assert counted(view, shown)[0] > 0 and counted(view, shown)[1] == 0 and not shown.kept


def own_view():
    return tiny_view.__wrapped__() if hasattr(tiny_view, "__wrapped__") else tiny_view()

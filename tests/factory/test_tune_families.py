"""Tuners on every model family: they find the decoder's projections and the image's tokens, and nothing of the vision
tower.
"""

from __future__ import annotations

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.registry import lookup
from tests.contract.cases import close
from tests.tiny import conflict_prompts, shown
from tests.tiny_families import BUILDERS, SEEING, family_view


def logits(view, batch):
    with torch.no_grad():
        return view.model(**batch).logits


@pytest.mark.parametrize("family", list(BUILDERS))
def test_tuners_fit(family):
    view = family_view(family)
    batch = view.encode(shown(view, conflict_prompts(2)))
    tower = {id(p) for p in view.vision_tower.parameters()} if view.sees else set()
    before = logits(view, batch)
    if family in ("gpt2", "structural_text"):  # one map makes queries, keys and values
        with pytest.raises(UserError, match="have no projection called q_proj"):
            lookup("tuner", "lora")(lookup("tuner", "lora").Params(rank=2)).apply(view)
        return
    for name, options in (("lora", {"rank": 2}), ("ia3", {}), ("adapter", {"bottleneck": 2}), ("oft", {"blocks": 2})):
        cls = lookup("tuner", name)
        tuner = cls(cls.Params(**options))
        trained = tuner.apply(view)
        assert trained and not tower & {id(p) for p in trained.values()}
        assert close(logits(view, batch), before, 1e-4), name
        tuner.remove(view)
    assert torch.equal(logits(view, batch), before)


@pytest.mark.parametrize("family", list(SEEING))
def test_mores_steers_where_the_image_is(family):
    view = family_view(family)
    batch = view.encode(conflict_prompts(2))
    seen = []
    handle = view.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    logits(view, batch)
    handle.remove()
    cls = lookup("tuner", "mores")
    tuner = cls(cls.Params(take="all", start="released"))
    torch.manual_seed(0)
    tuner.apply(view)
    handle = view.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    logits(view, batch)
    handle.remove()
    tuner.remove(view)
    moved = ~torch.isclose(seen[0], seen[1], atol=1e-6).all(-1)
    assert moved.any() and torch.equal(moved & batch.attention_mask.bool(), batch.mask(Role.IMAGE))

"""Looking ahead: a modality that is hidden is as good as left out of the prompt."""

from __future__ import annotations

import pytest
import torch

from factory.data.prompt import Role
from factory.model.masks import closed_up
from factory.steer.ahead import Ahead, spoken
from factory.steer.sweep import run_trunk
from tests.contract.cases import close, logits
from tests.tiny import conflict_prompts, tiny_view

P, T, I, C, Q, A = Role.PAD, Role.TEMPLATE, Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.ANSWER


@pytest.mark.parametrize(
    "roles, role, hidden",
    [
        (
            [P, T, I, I, T, C, C, T, Q, T],
            C,
            [0, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        ),  # the line break after the context goes too
        ([P, T, I, I, T, C, C, T, Q, T], I, [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]),
        ([T, C, T, I, T, Q, T], C, [0, 1, 0, 0, 0, 0, 0]),  # what opens an image stays with the image
        ([T, Q, C, T, A, T, C, T, Q, T], C, [0, 0, 1, 0, 0, 0, 1, 1, 0, 0]),  # and what opens a turn with the turn
        ([T, I, T, Q, T], C, [0, 0, 0, 0, 0]),
        ([T, Q, T], Q, [0, 1, 0]),
    ],
)
def test_what_goes_with_a_role(roles, role, hidden):
    assert spoken(torch.tensor([roles]), torch.tensor(float(role))).long().tolist() == [hidden]


def test_what_follows_hidden_tokens_moves_up_by_what_they_took():
    """An image of 2 x 2 tokens takes two positions in each of three axes, four tokens of text take four."""
    axes = torch.tensor([[[0, 1, 1, 1, 1, 3, 4]], [[0, 1, 1, 2, 2, 3, 4]], [[0, 1, 2, 1, 2, 3, 4]]])
    image = torch.tensor([[False, True, True, True, True, False, False]])
    assert closed_up(axes, image)[:, 0, 5:].tolist() == [[1, 2]] * 3 and torch.equal(
        closed_up(axes, image)[..., :2], axes[..., :2]
    )
    text = torch.tensor([[False, True, True, False, False, True, False], [False] * 7])
    assert closed_up(torch.arange(7)[None], text)[:, [0, 3, 4, 6]].tolist() == [[0, 1, 2, 3], [0, 3, 4, 6]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("role", [Role.IMAGE, Role.CONTEXT])
def test_a_batch_without_a_modality(side, role):
    view, prompts = tiny_view(), conflict_prompts(4)
    trunk = run_trunk(view, view.encode(prompts, side), 1)
    hidden = Ahead(view, 1, trunk.call, trunk.batch.attention_mask, trunk.batch.roles).hiding(
        spoken(trunk.batch.roles, torch.tensor(float(role))), trunk.states
    )
    assert close(hidden, logits(view, [p.without(role) for p in prompts], side=side))

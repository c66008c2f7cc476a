"""Reading a weight matrix where it is not simply there: packed, or offloaded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from factory.instruments.lens import columns
from factory.model.weights import weight_of
from tests.contract.cases import fresh_view
from tests.tiny import tiny_view


class Packed(nn.Module):
    """A linear map whose weights are bytes, as quantisation leaves them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.bias = linear.in_features, linear.bias
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter(
            (linear.weight / self.scale).round().to(torch.int8).flatten()[:, None], requires_grad=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.view(-1, self.in_features) * self.scale, self.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_packed_weights_are_those_that_the_module_applies(bias):
    linear = nn.Linear(6, 4, bias=bias)
    packed = Packed(linear)
    with weight_of(packed) as W:
        assert W.shape == (4, 6)
        assert torch.allclose(W, linear.weight, atol=float(packed.scale))
        x = torch.randn(3, 6)
        assert torch.allclose(packed(x), x @ W.T + (linear.bias if bias else 0), atol=1e-6)


def test_offloaded_weights_are_brought_in(tmp_path):
    from accelerate import dispatch_model

    view, plain = fresh_view(), tiny_view()
    ids = torch.tensor([[3, 5, -1]])
    expected, (rows, bias) = plain.o_proj(1).weight, columns(plain, ids)
    places = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "disk",
    }
    view.model.tie_weights()
    dispatch_model(view.model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert view.o_proj(1).weight.device.type == "meta"
    with weight_of(view.o_proj(1)) as W:
        assert torch.equal(W, expected)
    assert torch.equal(columns(view, ids)[0], rows) and torch.equal(columns(view, ids)[1], bias)
    assert view.o_proj(1).weight.device.type == "meta"

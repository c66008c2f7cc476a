"""Bottleneck adapters (Houlsby et al., 2019): Adapter(x) = W_up sigma(W_down x) + x, equation 5 of the MoReS paper.

The paper does not say where they sit. Its parameter counts (83.9M on Phi-2 at r = 256, 201.3M and 314.6M on the 7B and
13B) are those of one adapter of the model's width, without biases, at each projection of the feed-forward: on the input
of fc1 (of gate and of up in Llama) and on the output of fc2 (down). That placement is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN

from factory.model.view import ModelView
from factory.registry import Params, register
from factory.tune import Tuner
from factory.tune.places import projections
from factory.tune.roles import Roles


class AdapterParams(Params):
    """``bottleneck`` is r, ``activation`` sigma."""

    bottleneck: PositiveInt = 256
    activation: Literal["relu", "gelu", "silu"] = "relu"


class Bottleneck(nn.Module):
    """x [..., d] -> W_up sigma(W_down x) + x, in float32; W_up = 0 at the start, so that it is the identity."""

    def __init__(self, d: int, r: int, activation: str, device: torch.device) -> None:
        super().__init__()
        self.W_down = nn.Parameter(torch.empty(r, d, device=device))
        self.W_up = nn.Parameter(torch.zeros(d, r, device=device))
        self.sigma = ACT2FN[activation]
        nn.init.normal_(self.W_down, std=d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        added = self.sigma(x.to(self.W_down.dtype) @ self.W_down.T) @ self.W_up.T
        return x + added.to(x.dtype)


@register("tuner", "adapter")
class Adapter(Tuner):
    """Bottleneck adapters at the feed-forward's projections."""

    Params = AdapterParams
    packable = True
    learning_rate = 2e-4
    sweep = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        added: list[nn.Parameter] = []
        for kind in ("mlp_in", "mlp_out"):
            for module in projections(view, [kind]).values():
                adapter = self.attach(
                    module,
                    "adapter",
                    Bottleneck(view.width, self.params.bottleneck, self.params.activation, view.device),
                )
                self.keep(_before(module, adapter) if kind == "mlp_in" else _after(module, adapter))
                added += adapter.parameters()
        return added


def _before(module: nn.Module, adapter: Bottleneck) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda module, args: (adapter(args[0]), *args[1:]))


def _after(module: nn.Module, adapter: Bottleneck) -> RemovableHandle:
    return module.register_forward_hook(lambda module, args, output: adapter(output))

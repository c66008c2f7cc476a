"""The linear map whose output a decoder block adds to its residual stream last: a bias there is a steering vector."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.model.weights import LINEAR, outputs

PROMPT = Prompt((Segment(Role.QUESTION, "What is it?"),))
NEAR = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the vector's norm; half precision rounds more


def last_map(path: Path, view: ModelView, block: int) -> tuple[str, nn.Module]:
    """That map of ``block`` and its name in the model.

    It is found by trying: a vector added to its output has to arrive whole at the block's own. Raises ``UserError``
    where there is none, as where a norm stands between the MLP and the residual stream.
    """
    layer = view.layers[block]
    own = view.family.output_projection(layer)
    maps = [m for m in layer.modules() if isinstance(m, LINEAR) and outputs(m) == view.width and m is not own]
    if maps:
        vector = torch.randn(view.width, generator=torch.Generator().manual_seed(0)).to(view.device)
        arrived = _output(view, block, maps[-1], vector) - _output(view, block, maps[-1], torch.zeros_like(vector))
        if (arrived - vector).norm(dim=-1).max() <= NEAR.get(view.dtype, 0.1) * vector.norm():
            return next(name for name, module in view.model.named_modules() if module is maps[-1]), maps[-1]
    norms = [name for name, module in layer.named_modules() if "norm" in type(module).__name__.lower()]
    raise UserError(
        f"{path}: no linear map of {type(view.model).__name__}'s block {block} hands its output on as it is"
        f" (norms in it: {', '.join(norms) or 'none'}), so that no bias can carry the vector"
    )


@torch.no_grad()
def _output(view: ModelView, block: int, inner: nn.Module, vector: Tensor) -> Tensor:
    """Output [T, d] of ``block`` on a short prompt, with ``vector`` added to what ``inner`` returns."""
    seen: list[Tensor] = []
    handles = [
        inner.register_forward_hook(lambda module, args, output: output + vector.to(output.dtype)),
        view.layers[block].register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        ),
    ]
    try:
        prefill(view, view.encode([PROMPT]))
    finally:
        for handle in handles:
            handle.remove()
    return seen[0][0].float().to(view.device)

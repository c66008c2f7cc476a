"""States that a steering has driven out of what a dtype can hold: told, where they would be answers of token 0."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from factory.errors import UserError
from factory.model.view import ModelView

if TYPE_CHECKING:
    from factory.steer.runtime import Steering

AT_ONCE = 64  # tokens whose states are kept before they are looked at


@contextmanager
def finite(view: ModelView, steerings: Sequence[Steering]) -> Iterator[None]:
    """Raises ``UserError`` at the end of the block where the last state of a row, past the output norm, was infinite or
    no number in a forward of it: whatever overflows in a block ends there.

    Nothing waits for the device before.
    """
    seen: list[Tensor] = []  # the largest sizes so far, then tokens; what is no number stays none

    lock = threading.Lock()

    def sum_up() -> None:
        with lock:
            n = len(seen)
            sizes = [torch.linalg.vector_norm(states, torch.inf) for states in seen[:n]]
            seen[:n] = [torch.stack(sizes).max()] if sizes else []

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        if steerings and not view.steps.here.resting:
            seen.append(output.detach() if output.shape[-2] == 1 else output.detach()[..., -1:, :].clone())
            if len(seen) >= AT_ONCE:
                sum_up()

    handle = view.norm.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    sum_up()
    if seen and not torch.isfinite(seen[0]):
        named = ", ".join(
            f"'{getattr(s.steerer, 'name', type(s.steerer).__name__)}' at strength {_told(s.strength)}"
            for s in steerings
        )
        dtype = str(view.dtype).removeprefix("torch.")
        raise UserError(
            f"steering {named} drives the model's states out of what {dtype} can hold; use smaller strengths"
            + (", or model.dtype=bfloat16" if view.dtype == torch.float16 else "")
        )


def _told(strength: object) -> str:
    if isinstance(strength, Tensor):
        return f"{strength.min():g} to {strength.max():g}" if strength.ndim else f"{strength:g}"
    return "of a controller" if callable(strength) else f"{strength:g}"

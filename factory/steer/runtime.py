"""The hook runtime: masks, padding, beams, prompt against answer, dtype, several methods, clean-up.

Hooks stay registered while the ``with`` block lasts, also through a backward pass. Nothing in a hook waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.prefix import Step, at_last
from factory.model.view import ModelView
from factory.steer.base import Context, Steerer, Tensors
from factory.steer.where import Where

Strength = float | Tensor | Callable[[Tensor, Context], Tensor]
"""A number, one number per prompt [B], or a controller from prompt states [rows, d] to one number per row."""

NOTHING = -0.0  # x + -0.0 has the bits of x for every x; with +0.0 a negative zero would lose its sign


@dataclass
class Steering:
    """One fitted method at one place with one strength, and what it knows of the prompts it is steering."""

    steerer: Steerer
    state: Tensors
    where: Where
    strength: Strength = 1.0
    scale: Tensor | None = field(default=None, repr=False)
    added: Tensor | None = field(default=None, repr=False)

    def move(self, device: torch.device) -> None:
        self.state = {k: v.to(device) for k, v in self.state.items()}

    def apply(self, h: Tensor, step: Step) -> Tensor:
        """The steered output [R, t, d] of a block; where the strength is 0 the very bits of ``h``."""
        ctx = Context(self.where.layer, step.generated)
        if not step.generated:
            self._read_prompt(at_last(h, (step.roles != Role.PAD).long()).float(), ctx)
        if self.scale is None:
            raise UserError("steering began in the middle of a generation: enter `steer` before the prompt is run")
        if step.generated and not self.where.generated:
            return h
        mask = self._mask(step)
        if self.steerer.reads == "last_prompt":
            added = _per_row(self.added, h.shape[0])[:, None, :]
        else:
            vector = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
            vector = vector.masked_scatter(mask[..., None], self.steerer.delta(h[mask].float(), self.state, ctx))
            added = _scaled(_per_row(self.scale, h.shape[0])[:, None, None], vector)
        return (h.float() + torch.where(mask[..., None], added, NOTHING)).to(h.dtype)

    def _mask(self, step: Step) -> Tensor:
        return step.roles != Role.PAD if step.generated else self.where.mask(step.roles)

    def _read_prompt(self, last: Tensor, ctx: Context) -> None:
        gain = self.steerer.gain(last, self.state, ctx)
        strength = self.strength(last, ctx) if callable(self.strength) else self.strength
        if isinstance(strength, Tensor):
            strength = _per_row(strength.to(last.device, torch.float32), last.shape[0])
        self.scale = strength * gain
        if self.steerer.reads == "last_prompt":
            self.added = _scaled(self.scale[:, None], self.steerer.delta(last, self.state, ctx))


def _scaled(scale: Tensor, vector: Tensor) -> Tensor:
    """What is added to a state: ``scale * vector``, and where the scale is 0 what leaves every bit of the state."""
    return torch.where(scale != 0, scale * vector, NOTHING)


def _per_row(value: Tensor, rows: int) -> Tensor:
    """Values per prompt [B, ...] as values per row [R, ...]: beams of one prompt stand side by side."""
    if value.shape[0] == rows:
        return value
    if rows % value.shape[0]:
        raise UserError(f"{value.shape[0]} strengths do not fit {rows} rows: give one number, or one per prompt")
    return value.repeat_interleave(rows // value.shape[0], 0)


@contextmanager
def steer(view: ModelView, steerings: Sequence[Steering] | Steering) -> Iterator[None]:
    """Steer every forward of ``view.model`` inside the block, by each of ``steerings`` in order.

    Works with ``view.model.generate(**view.encode(prompts))`` (greedy, sampling, beams), with plain forwards and with
    ``factory.model.prefix``. Raises ``UserError`` for a layer out of range or a strength that is not a finite number.
    """
    steerings = [steerings] if isinstance(steerings, Steering) else list(steerings)
    for s in steerings:
        check(s, view)
        s.move(view.device)
    with ExitStack() as stack:
        watch = _Watch(view)
        stack.callback(watch.forget)
        stack.callback(view.core.register_forward_pre_hook(watch, with_kwargs=True).remove)
        for s in steerings:
            stack.callback(view.layers[s.where.layer].register_forward_hook(_hook(s, watch)).remove)
        yield


def check(steering: Steering, view: ModelView) -> None:
    layer, strength = steering.where.layer, steering.strength
    if layer is None or not 0 <= layer < view.depth:
        raise UserError(f"layer {layer} is out of range: {type(view.model).__name__} has decoder blocks 0 to {view.depth - 1}")
    if callable(strength) and not isinstance(strength, Tensor):
        return
    try:
        finite = bool(torch.isfinite(torch.as_tensor(strength, dtype=torch.float32)).all())
    except (TypeError, ValueError, RuntimeError):
        finite = False
    if not finite:
        raise UserError(f"strength {strength!r} is not a finite number")


def _hook(steering: Steering, watch: _Watch) -> Callable:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return steering.apply(output, watch.step)

    return hook


class _Watch:
    """Finds out, once per forward of the model, which tokens it processes."""

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.step: Step | None = None

    def forget(self) -> None:
        self.step = None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.step = self.view.step or self._infer(kwargs)

    def _infer(self, kwargs: dict[str, Any]) -> Step:
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        if ids is None:
            raise UserError("steering needs input_ids (inputs_embeds alone do not say which tokens are image or text)")
        if cache is not None and cache.get_seq_length() > 0:
            return Step(torch.full_like(ids, int(Role.ANSWER)), generated=True)
        return Step(self._roles(ids, kwargs.get("attention_mask")))

    def _roles(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Roles of the batch encoded last if these are its prompts (or their beams); otherwise a clear refusal."""
        batch = self.view.encoded
        if batch is not None and ids.shape[1] == batch.input_ids.shape[1] and ids.shape[0] % batch.size == 0:
            beams = ids.shape[0] // batch.size
            if torch.equal(ids, batch.input_ids.repeat_interleave(beams, 0)):
                return batch.roles.repeat_interleave(beams, 0)
        raise UserError("steering does not know these tokens' roles: make the batch with view.encode(prompts) just before it is run")

"""The hook runtime: masks, padding, beams, prompt against answer, dtype, several methods, clean-up.

Hooks stay registered while the ``with`` block lasts, also through a backward pass. Nothing in a hook waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.family import device_of
from factory.model.prefix import Step, at_last, encoded_step
from factory.model.replay import Call, recorded
from factory.model.view import ModelView
from factory.steer.ahead import Ahead, spoken
from factory.steer.base import Context, Steerer, Tensors
from factory.steer.overflow import finite
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
    vector: Tensor | None = field(default=None, repr=False)
    gain: Tensor | None = field(default=None, repr=False)
    prompt: Tensor | None = field(default=None, repr=False)

    def move(self, device: torch.device) -> None:
        self.state = {k: v.to(device) for k, v in self.state.items()}

    def by_block(self) -> list[Steering]:
        """This steering, one part for each block that it acts in."""
        if self.where.layers is None:
            return [self]
        return [
            replace(self, where=self.where.model_copy(update={"layer": layer, "layers": None}))
            for layer in self.where.blocks
        ]

    def forget(self) -> None:
        """Know no prompt any more, and keep none of its states."""
        self.vector = self.gain = self.prompt = None

    def apply(self, h: Tensor, step: Step, ahead: Ahead | None = None) -> Tensor:
        """The steered output [R, t, d] of a block; where the strength is 0 the very bits of ``h``.

        ``ahead`` runs the prompts on from the block's output, for controllers that look ahead.
        """
        step = step.on(h.device)
        if step.generated and self.gain is None:
            raise UserError("steering began in the middle of a generation: enter `steer` before the prompt is run")
        if step.generated and not self.where.generated:
            return h
        mask = self._mask(h, step)
        if step.generated:
            return _moved(h, mask, self._generated_vector(h, mask), _per_row(self._strength(h), h.shape[0]))
        if self.prompt is not h:  # a sweep brings the same prompts again with another strength
            self.vector = self._prompt_vector(h, mask, step)
            last, ctx = last_states(h, step), self.context(h, step, ahead)
            self.gain = self.steerer.gain(last, self.state, ctx)
            if callable(self.strength):
                self.gain = self.gain * self.strength(last, ctx)
            self.prompt = h
        if isinstance(self.strength, Tensor) and self.strength.ndim and len(self.strength) * step.beams != len(h):
            raise UserError(
                f"{len(self.strength)} strengths do not fit {len(h) // step.beams} prompts: give one number, or one per"
                " prompt"
            )
        return _moved(h, mask, self.vector, self._strength(h))

    def context(self, h: Tensor, step: Step, ahead: Ahead | None) -> Context:
        """What a controller may know of the prompts in ``h``, for which the vector is known."""
        mask = self._mask(h, step)

        def probe(strength: Tensor) -> Tensor:
            return ahead.above(_moved(h, mask, self.vector, strength)).to(h.device)

        def hiding(role: Tensor) -> Tensor:
            return ahead.hiding(spoken(step.roles, role), h).to(h.device)

        return Context(
            self.where.layer, step.generated, *((probe, hiding) if ahead else (None, None)), roles=step.roles
        )

    def look(self, h: Tensor, step: Step, ahead: Ahead) -> Tensor:
        """What the method's controller sees of its trial strengths [R, S, F]."""
        step = step.on(h.device)
        self.vector = self._prompt_vector(h, self._mask(h, step), step)
        return self.steerer.look(last_states(h, step), self.state, self.context(h, step, ahead))

    def _prompt_vector(self, h: Tensor, mask: Tensor, step: Step) -> Tensor:
        """Unscaled steering vectors of the prompts: [R, 1, d], or [R, T, d] for a method that reads each token."""
        if self.steerer.reads == "per_token":
            return self._read_tokens(h, mask, Context(self.where.layer))
        return self.steerer.delta(last_states(h, step), self.state, Context(self.where.layer))[:, None]

    def _generated_vector(self, h: Tensor, mask: Tensor) -> Tensor:
        if self.steerer.reads == "per_token":
            return self._read_tokens(h, mask, Context(self.where.layer, generated=True))
        return _per_row(self.vector, h.shape[0])

    def _read_tokens(self, h: Tensor, mask: Tensor, ctx: Context) -> Tensor:
        vector = torch.zeros(h.shape, dtype=torch.float32, device=h.device)
        return vector.masked_scatter(mask[..., None], self.steerer.delta(h[mask].float(), self.state, ctx))

    def _strength(self, h: Tensor) -> Tensor:
        """Each prompt's strength [B], beams counted as prompts."""
        if callable(self.strength):
            return self.gain
        if isinstance(self.strength, Tensor) and self.strength.ndim:
            return _per_row(self.strength.to(h.device, torch.float32), self.gain.shape[0]) * self.gain
        return self.strength * self.gain

    def _mask(self, h: Tensor, step: Step) -> Tensor:
        return (
            step.roles != Role.PAD
            if step.generated
            else self.steerer.choose(h, self.where.mask(step.roles), self.state)
        )


def _moved(h: Tensor, mask: Tensor, vector: Tensor, scale: Tensor) -> Tensor:
    """``h + scale * vector`` on the masked tokens, ``scale`` [R]; elsewhere, and where either is 0, the very bits of
    ``h``.
    """
    scale = scale[:, None, None]
    added = torch.where((scale != 0) & (vector != 0), scale * vector, NOTHING)
    return (h.float() + torch.where(mask[..., None], added, NOTHING)).to(h.dtype)


def last_states(h: Tensor, step: Step) -> Tensor:
    """float32 state [R, d] of each prompt's last token."""
    return at_last(h, (step.roles != Role.PAD).long()).float()


def _per_row(value: Tensor, rows: int) -> Tensor:
    """Values per prompt [B, ...] as values per row [R, ...]: beams of one prompt stand side by side."""
    if value.shape[0] == rows:
        return value
    return value.repeat_interleave(rows // value.shape[0], 0)


@contextmanager
def steer(view: ModelView, steerings: Sequence[Steering] | Steering) -> Iterator[None]:
    """Steer every forward of ``view.model`` inside the block, by each of ``steerings`` in order.

    Works with ``view.model.generate(**view.encode(prompts))`` (greedy, sampling, beams), with plain forwards and with
    ``factory.model.prefix``. What a steering knows of prompts ends with the block: one that is used again steers by the
    prompts it then sees. Raises ``UserError`` for a layer out of range or a strength that is not a finite number.
    """
    steerings = [steerings] if isinstance(steerings, Steering) else list(steerings)
    for s in steerings:
        check(s, view)
        s.forget()
    try:
        with going_on(view, steerings):
            yield
    finally:
        for s in steerings:
            s.forget()


@contextmanager
def going_on(view: ModelView, steerings: Sequence[Steering]) -> Iterator[None]:
    """As ``steer``, by steerings that have been checked and may know the prompts whose answers follow."""
    parts = [part for s in steerings for part in s.by_block()]
    for s in parts:
        s.move(device_of(view.layers[s.where.layer]))
    with ExitStack() as stack:
        watch = _Watch(view)
        stack.callback(watch.forget)
        stack.enter_context(recorded(view, watch.calls))
        stack.enter_context(finite(view, steerings))
        stack.callback(view.core.register_forward_pre_hook(watch, with_kwargs=True).remove)
        for s in parts:
            stack.callback(_hooked(s, watch).remove)
        yield


def check(steering: Steering, view: ModelView) -> None:
    strength = steering.strength
    for layer in steering.where.blocks:
        if layer is None or not 0 <= layer < view.depth:
            raise UserError(
                f"layer {layer} is out of range: {type(view.model).__name__} has decoder blocks 0 to {view.depth - 1}"
            )
    if isinstance(strength, Tensor):
        if strength.ndim > 1 or strength.dtype == torch.bool or strength.is_complex():
            shape, kind = list(strength.shape), str(strength.dtype).removeprefix("torch.")
            raise UserError(f"a strength of {kind} {shape}: give one number, or a tensor [B] with one per prompt")
        if not torch.isfinite(strength).all():
            raise UserError(f"strength {_short(strength.tolist())} is not a finite number")
    elif not (callable(strength) or _is_finite(strength)):
        raise UserError(f"strength {_short(strength)} is not a finite number, a tensor [B] of some, or a controller")


def _is_finite(strength: Any) -> bool:
    """Whether a strength is a number that a float32 can hold."""
    real = isinstance(strength, Real) and not isinstance(strength, bool)
    return real and abs(strength) <= torch.finfo(torch.float32).max


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hooked(steering: Steering, watch: _Watch) -> RemovableHandle:
    """Put a steering to work at its site. Looking ahead is for what moves a block's output."""
    view, layer = watch.view, steering.where.layer
    if steering.where.site == "heads":
        return view.o_proj(layer).register_forward_pre_hook(
            lambda module, args: None if view.resting else (steering.apply(args[0], watch.step), *args[1:])
        )

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if view.resting:
            return output
        return steering.apply(
            output, watch.step, Ahead(view, layer, watch.calls[0], (watch.step.roles != Role.PAD).long(), watch.rest)
        )

    return view.layers[layer].register_forward_hook(hook)


class _Watch:
    """Finds out, once per forward of the model, which tokens it processes and how its decoder is called."""

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.step: Step | None = None
        self.calls: list[Call] = []

    def forget(self) -> None:
        self.step = None
        self.calls.clear()

    @contextmanager
    def rest(self) -> Iterator[None]:
        """No steering acts inside: a controller runs the decoder by itself."""
        self.view.resting = True
        try:
            yield
        finally:
            self.view.resting = False

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.calls.clear()
        self.step = self.view.step or self._infer(
            kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        )

    def _infer(self, ids: Tensor | None, cache: Cache | None) -> Step:
        if ids is None:
            raise UserError("steering needs input_ids (inputs_embeds alone do not say which tokens are image or text)")
        if cache is not None and cache.get_seq_length() > 0:
            return Step(torch.full_like(ids, int(Role.ANSWER)), generated=True)
        if (step := encoded_step(self.view, ids)) is None:
            raise UserError(
                "steering does not know these tokens' roles: make the batch with view.encode(prompts) just before it"
                " is run"
            )
        return step

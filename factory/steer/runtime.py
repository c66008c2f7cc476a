"""The hook runtime: masks, padding, beams, prompt against answer, dtype, several methods, clean-up.

Hooks stay registered while the ``with`` block lasts, also through a backward pass. Nothing in a hook waits for the
device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from numbers import Real
from operator import is_
from typing import Any

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.prefix import at_last
from factory.model.steps import Step
from factory.model.view import ModelView
from factory.steer.ahead import Ahead, spoken
from factory.steer.base import Context, LogitsMethod, Steerer, Tensors
from factory.steer.block import Block
from factory.steer.overflow import finite
from factory.steer.where import Where

Strength = float | Tensor | Callable[[Tensor, Context], Tensor]
"""A number, one number per prompt [B], or a controller from prompt states [rows, d] to one number per row."""

NOTHING = -0.0  # x + -0.0 has the bits of x for every x; with +0.0 a negative zero would lose its sign


@dataclass
class _Prompts:
    """What a steering knows of the prompts that a thread runs: a block's output, their vectors and gains, and what is
    added to every token of their answers, with what it was made from."""

    vector: Tensor | None = None
    gain: Tensor | None = None
    prompt: Tensor | None = None
    answers: tuple[tuple[Any, ...], Tensor] | None = None


class _Threads:
    """``_Prompts`` of each thread; a thread that runs no forward of its own, as autograd's, has those used last."""

    def __init__(self) -> None:
        self._local, self._latest = threading.local(), _Prompts()

    @property
    def here(self) -> _Prompts:
        return getattr(self._local, "prompts", self._latest)

    def mine(self) -> _Prompts:
        if not hasattr(self._local, "prompts"):
            self._local.prompts = _Prompts()
        self._latest = self._local.prompts
        return self._latest


def _of_thread(name: str) -> property:
    return property(
        lambda self: getattr(self.threads.here, name), lambda self, value: setattr(self.threads.mine(), name, value)
    )


@dataclass
class Steering:
    """One fitted method at one place with one strength, and what it knows of the prompts it is steering."""

    steerer: Steerer
    state: Tensors
    where: Where
    strength: Strength = 1.0
    decider: Steering | None = field(default=None, repr=False, compare=False)
    threads: _Threads = field(default_factory=_Threads, init=False, repr=False, compare=False)

    vector = _of_thread("vector")
    gain = _of_thread("gain")
    prompt = _of_thread("prompt")
    answers = _of_thread("answers")

    @property
    def layer(self) -> int:
        """The block that is steered, of a steering in one block (see ``by_block``)."""
        assert self.where.layer is not None, "`check` refuses a steering that names no block"
        return self.where.layer

    @property
    def decides(self) -> bool:
        """Whether it is the part that moves nothing and decides the gain of the others (see ``by_block``)."""
        return self.where.layer is not None and self.where.layer == self.where.decided

    @property
    def controlled(self) -> bool:
        """Whether a controller decides how strongly each prompt is steered."""
        return callable(self.strength) or type(self.steerer).gain is not Steerer.gain

    def move(self, device: torch.device) -> None:
        self.state = {k: v.to(device) for k, v in self.state.items()}

    def by_block(self) -> list[Steering]:
        """This steering, one part for each block that it acts in; before them one that moves nothing, where another
        block decides."""
        if self.where.layers is None:
            return [self]
        place = lambda layer, **other: self.where.model_copy(update={"layer": layer, "layers": None, **other})
        decider = None
        if self.where.decided is not None:
            decider = replace(self, where=place(self.where.decided, site="block", generated=False))
        parts = [replace(self, where=place(layer), decider=decider) for layer in self.where.blocks]
        return [decider, *parts] if decider else parts

    def forget(self) -> None:
        """Know no prompt any more, and keep none of its states."""
        self.threads = _Threads()

    def apply(self, h: Tensor, step: Step, ahead: Ahead | None = None) -> Tensor:
        """The steered output [R, t, d] of a block; where the strength is 0 the very bits of ``h``.

        ``ahead`` runs the prompts on from the block's output, for controllers that look ahead.
        """
        step = step.on(h.device)
        if step.generated and self.gain is None:
            raise UserError("steering began in the middle of a generation: enter `steer` before the prompt is run")
        if step.generated:
            return self._on_answer(h, step) if self.where.generated else h
        self.answers = None
        if self.decides:
            self.gain = self._gain(h, step, ahead)
            return h
        mask = self._mask(h, step)
        if self.prompt is not h:  # a sweep brings the same prompts again with another strength
            self.vector = self._prompt_vector(h, mask, step)
            self.gain = self.decider.gain.to(h.device) if self.decider else self._gain(h, step, ahead)
            self.prompt = h
        if isinstance(self.strength, Tensor) and self.strength.ndim and len(self.strength) * step.beams != len(h):
            raise UserError(
                f"{len(self.strength)} strengths do not fit {len(h) // step.beams} prompts: give one number, or one per"
                " prompt"
            )
        return _moved(h, mask | step.answer if self.where.generated else mask, self.vector, self._strength(h))

    def _gain(self, h: Tensor, step: Step, ahead: Ahead | None) -> Tensor:
        """Each prompt's factor [R] on the strength; its strength where a controller gives that."""
        last, ctx = last_states(h, step), self.context(h, step, ahead)
        gain = _shaped(self.steerer.gain(last, self.state, ctx), last.shape[:1], self.steerer, "gain")
        return gain * _told(self.strength(last, ctx), last) if callable(self.strength) else gain

    def _on_answer(self, h: Tensor, step: Step) -> Tensor:
        if self.steerer.reads == "per_token":
            vector = self._read_tokens(torch.zeros_like(h, dtype=torch.float32), h, step.answer, generated=True)
            return _moved(h, step.answer, vector, _per_row(self._strength(h), h.shape[0]))
        return _plus(h, self._for_answers(h, step))

    def _for_answers(self, h: Tensor, step: Step) -> Tensor:
        """What is added to each token of the answers [R, t, d]: made at their first step, and for all alike."""
        made_from, known = (self.vector, self.gain, self.strength, step.answer), self.answers
        if known is not None and known[1].device == h.device and all(map(is_, known[0], made_from)):
            return known[1]
        rows = h.shape[0]
        added = _on(step.answer, _added(_per_row(self.vector, rows), _per_row(self._strength(h), rows)))
        if not added.requires_grad:  # a graph is gone through once
            self.answers = (made_from, added)
        return added

    def context(self, h: Tensor, step: Step, ahead: Ahead | None) -> Context:
        """What a controller may know of the prompts in ``h``, for which the vector is known."""
        if ahead is None:
            return Context(self.layer, step.generated, roles=step.prompt)
        mask = self._mask(h, step)

        def probe(strength: Tensor) -> Tensor:
            each = strength.reshape(-1, len(h))
            if ahead.cache is None:
                found = torch.stack([ahead.above(_moved(h, mask, self.vector, s)) for s in each])
            else:
                at = (at_last(x, ahead.mask)[:, None] for x in (h, mask, self.vector.expand_as(h)))
                last, steered, vector = at
                found = ahead.above_last(torch.stack([_moved(last, steered, vector, s)[:, 0] for s in each]))
            return found.view(*strength.shape, -1).to(h.device)

        def hiding(role: Tensor) -> Tensor:
            found = torch.stack([ahead.hiding(spoken(step.roles, r), h) for r in role.reshape(-1)])
            return found.view(*role.shape, *found.shape[1:]).to(h.device)

        def ignoring(role: Tensor) -> Tensor:
            found = ahead.ignoring(torch.stack([step.roles == r for r in role.reshape(-1)]), h)
            return found.view(*role.shape, *found.shape[1:]).to(h.device)

        return Context(self.layer, step.generated, probe, hiding, step.prompt, ignoring)

    def look(self, h: Tensor, step: Step, ahead: Ahead) -> Tensor:
        """What the method's controller sees of its trial strengths [R, S, F]."""
        step = step.on(h.device)
        self.vector = self._prompt_vector(h, self._mask(h, step), step)
        return self.steerer.look(last_states(h, step), self.state, self.context(h, step, ahead))

    def _prompt_vector(self, h: Tensor, mask: Tensor, step: Step) -> Tensor:
        """Unscaled steering vectors of the prompts: [R, 1, d], or, for a method that reads each token, [R, T, d], those
        of an answer given with them included."""
        if self.steerer.reads == "per_token":
            vector = self._read_tokens(torch.zeros_like(h, dtype=torch.float32), h, mask, generated=False)
            return self._read_tokens(vector, h, step.answer, generated=True) if self.where.generated else vector
        return self._delta(last_states(h, step), Context(self.layer))[:, None]

    def _read_tokens(self, vector: Tensor, h: Tensor, mask: Tensor, generated: bool) -> Tensor:
        """``vector`` [R, T, d] with that of each masked token in its place."""
        read = h[mask].float()
        if generated and not len(read):
            return vector
        return vector.masked_scatter(mask[..., None], self._delta(read, Context(self.layer, generated)))

    def _delta(self, h: Tensor, ctx: Context) -> Tensor:
        return _shaped(self.steerer.delta(h, self.state, ctx), h.shape, self.steerer, "delta")

    def _strength(self, h: Tensor) -> Tensor:
        """Each prompt's strength [B], beams counted as prompts."""
        if callable(self.strength):
            return self.gain
        if isinstance(self.strength, Tensor) and self.strength.ndim:
            return _per_row(self.strength.to(h.device, torch.float32), self.gain.shape[0]) * self.gain
        return (self.strength if isinstance(self.strength, Tensor) else float(self.strength)) * self.gain

    def _mask(self, h: Tensor, step: Step) -> Tensor:
        """[R, T] booleans: the prompt tokens that are steered."""
        return self.steerer.choose(h, self.where.mask(step.prompt), self.state)


def _shaped(value: Any, shape: Sequence[int], method: Steerer, what: str) -> Tensor:
    """What a method's ``what`` made. Raises ``UserError`` where it is no tensor of ``shape``."""
    if isinstance(value, Tensor) and value.shape == shape:
        return value
    made = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UserError(f"steering '{_name(method)}': {what} should return a tensor {list(shape)}, and returned {made}")


def _told(strength: object, last: Tensor) -> Tensor | float:
    """What a controller made of states ``last`` [R, d]. Raises ``UserError`` for what is no number or tensor [R]."""
    if _is_finite(strength):
        return float(strength)  # type: ignore[arg-type]  # a number, as has been seen
    if isinstance(strength, Tensor) and strength.shape in (last.shape[:1], ()):
        return strength.to(last.device)
    made = list(strength.shape) if isinstance(strength, Tensor) else _short(strength)
    raise UserError(f"a strength's controller should return a number or a tensor [{len(last)}], and returned {made}")


def _moved(h: Tensor, mask: Tensor, vector: Tensor, scale: Tensor) -> Tensor:
    """``h + scale * vector`` on the masked tokens, ``scale`` [R]; elsewhere, and where either is 0, the very bits of
    ``h``.
    """
    return _plus(h, _on(mask, _added(vector, scale)))


def _added(vector: Tensor, scale: Tensor) -> Tensor:
    scale = scale[:, None, None]
    return torch.where((scale != 0) & (vector != 0), scale * vector, NOTHING)


def _on(mask: Tensor, added: Tensor) -> Tensor:
    return torch.where(mask[..., None], added, NOTHING)


def _plus(h: Tensor, added: Tensor) -> Tensor:
    return (h + added).to(h.dtype)  # in the wider of their dtypes: float32 beside a model's half


def last_states(h: Tensor, step: Step) -> Tensor:
    """float32 state [R, d] of each prompt's last token."""
    return at_last(h, (step.prompt != Role.PAD).long()).float()


def _per_row(value: Tensor, rows: int) -> Tensor:
    """Values per prompt [B, ...] as values per row [R, ...]: beams of one prompt stand side by side."""
    if value.shape[0] == rows:
        return value
    return value.repeat_interleave(rows // value.shape[0], 0)


@contextmanager
def steer(view: ModelView, steerings: Sequence[Steering] | Steering) -> Iterator[None]:
    """Steer every forward of ``view.model`` inside the block, by each of ``steerings`` in order.

    Roles come with the batch of ``view.encode``. What follows its prompt is the model's own answer, whether it is
    generated (with a cache or without, by beams, assisted, from a begun answer) or given: the steering that its prompt
    sets acts on it where ``where.generated`` says so. A chat that goes on, on a kept cache, is a new prompt from there
    on. A ``generate`` that was taken inside the block is steered to its end, also in a thread that outlives the block;
    a prompt is run whole, whatever ``prefill_chunk_size``. Raises ``UserError`` for tokens of unknown roles, for right
    padding, classifier-free guidance, and while another thread steers this model in a block of its own.
    """
    steerings = list(steerings) if isinstance(steerings, Iterable) else [steerings]
    for s in steerings:
        check(s, view)
    with Block(view, steerings, knowing=False).entered(), finite(view, steerings):
        yield


@contextmanager
def going_on(view: ModelView, steerings: Sequence[Steering]) -> Iterator[None]:
    """As ``steer``, by steerings that have been checked and may know the prompts whose answers follow."""
    with Block(view, steerings, knowing=True).entered(), finite(view, steerings):
        yield


def check(steering: Steering, view: ModelView) -> None:
    check_steerer(steering)
    for layer in (part.where.layer for part in steering.by_block()):
        if layer is None or not 0 <= layer < view.depth:
            raise UserError(
                f"layer {layer} is out of range: {type(view.model).__name__} has decoder blocks 0 to {view.depth - 1}"
            )
    check_strength(steering.strength)


def check_strength(strength: object) -> None:
    """Raises ``UserError`` for what is no finite number, one per prompt [B], or a controller."""
    if isinstance(strength, Tensor):
        if strength.ndim > 1 or strength.dtype == torch.bool or strength.is_complex():
            shape, kind = list(strength.shape), str(strength.dtype).removeprefix("torch.")
            raise UserError(f"a strength of {kind} {shape}: give one number, or a tensor [B] with one per prompt")
        if not torch.isfinite(strength).all():
            raise UserError(f"strength {_short(strength.tolist())} is not a finite number")
    elif not (callable(strength) or _is_finite(strength)):
        raise UserError(f"strength {_short(strength)} is not a finite number, a tensor [B] of some, or a controller")


def _name(method: object) -> str:
    return getattr(type(method), "name", type(method).__name__)


def _is_finite(strength: Any) -> bool:
    """Whether a strength is a number that a float32 can hold."""
    real = isinstance(strength, Real) and not isinstance(strength, bool)
    return real and abs(strength) <= torch.finfo(torch.float32).max


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_steerer(steering: object) -> None:
    """Raises ``UserError`` for what is no steering, or one of a method that adds no vectors to states."""
    method = steering.steerer if isinstance(steering, Steering) else steering
    if isinstance(method, Steerer) and isinstance(steering, Steering):
        return
    name = _name(method)
    if isinstance(method, Steerer):
        raise UserError(f"'{name}' is a method, not a steering: Steering(method, state, where, strength)")
    raise UserError(
        f"'{name}' adds no vectors to states, so it cannot be steered with or saved: recipes run it"
        + (" (factory.steer.logits.contrasted)" if isinstance(method, LogitsMethod) else "")
    )

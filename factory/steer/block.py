"""A block of steering at work: hooks that last as long as the block, and as the generations that began in it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.family import device_of
from factory.model.replay import call_of, run_on_last
from factory.model.steps import EARLIER, Here, Step, instead, roles_of
from factory.model.view import ModelView
from factory.steer.ahead import Ahead, last_alone

if TYPE_CHECKING:
    from factory.steer.runtime import Steering


class Block:
    """Steerings put to work in a view's model by ``entered``, and by each generation that was begun inside it."""

    def __init__(self, view: ModelView, steerings: Sequence[Steering], knowing: bool) -> None:
        """``knowing``: the steerings' prompts have been run, and their answers follow."""
        self.view, self.knowing, self.open = view, knowing, False
        self.parts = [part for s in steerings for part in s.by_block()]
        for part in self.parts:
            part.move(device_of(view.layers[part.layer]))
        if not knowing:  # what is known of prompts is the block's own: its generations may outlive it
            self.parts = [replace(part) if any(part is s for s in steerings) else part for part in self.parts]
        self.thread = threading.get_ident()
        self._lock, self._users, self._remove = threading.RLock(), 0, list[Callable[[], Any]]()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Steer what is run inside. Raises ``UserError`` while another thread has a block of its own."""
        blocks = self.view.steps.blocks
        if any(other.thread != self.thread for other in blocks):
            raise UserError(
                "another thread steers this model: enter `steer` once, around all threads, or load the model twice"
            )
        self._hold()
        blocks.append(self)
        remove = instead(self.view.model, "generate", self._generating)
        self.open = True
        try:
            yield
        finally:
            self.open = False
            remove()
            blocks.remove(self)
            self._drop()

    def _hold(self) -> None:
        with self._lock:
            if self._users == 0:
                watch = self.view.steps.watch()  # before the decoder is, which in a text model is what is watched
                self._remove = [watch, *self._looking(), *(self._hooked(s) for s in self.parts)]
            self._users += 1

    def _looking(self) -> list[Callable[[], None]]:
        """Watch the decoder for controllers that run it themselves; a method without one needs no call of it."""
        if not any(part.controlled for part in self.parts):
            return []
        keep = self.view.decoder.register_forward_pre_hook(self._keep, with_kwargs=True)
        late = self.view.decoder.register_forward_hook(self._after, with_kwargs=True)
        return [keep.remove, late.remove]

    def _drop(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                for remove in self._remove:
                    remove()
                self.view.steps.here.call = self.view.steps.here.late = None
                for s in () if self.knowing else self.parts:
                    s.forget()

    def _generating(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        refuse(self.view.model, args, kwargs)
        owners = self.view.steps.mine().owners
        self._hold()
        owners.append(self)
        try:
            return generate(*args, **kwargs)
        finally:
            owners.remove(self)
            self._drop()

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if (here := self.view.steps.mine()).call is None:
            asked = here.step is None or not here.step.generated
            here.call = call_of(module, args, kwargs) if asked else {}  # a look ahead is a prompt's
            here.late = [] if self._waits(here, kwargs.get("past_key_values")) else None

    def _waits(self, here: Here, cache: Any) -> bool:
        """Whether the steering waits until the prompts have been run as they are: a controller that looks ahead then
        runs each prompt's last token alone, and so does what is chosen. It takes a cache of whole rows, a steering of
        that token alone, and prompts without a begun answer (of which an accelerator is asked once a prompt).
        """
        if not self._acts() or here.step is None or here.step.generated or torch.is_grad_enabled():
            return False
        told = any(here.call.get(name) for name in ("output_hidden_states", "output_attentions")) if here.call else True
        whole = type(cache) is DynamicCache and not cache.offloading and cache.get_seq_length() == 0
        if told or not whole or len(self.view.steps.blocks) > 1 or len(self.parts) != 1:
            return False
        looks = self.parts[0].steerer.trial_strengths and last_alone(self.view, self.parts[0].where)
        return bool(looks) and not bool(here.step.answer.any())

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Steer prompts that have been run as they are, at their last token: the output and the cache are then those
        of the steered run.
        """
        here = self.view.steps.mine()
        if not here.late:
            return
        (h,), here.late = here.late, None
        part, call, cache, step = self.parts[0], here.call or {}, kwargs["past_key_values"], self._step()
        mask = (step.prompt != Role.PAD).long()
        with self._rest():
            steered = part.apply(h, step, Ahead(self.view, part.layer, call, mask, step.roles, self._rest, cache))
        given = (step.roles, mask, cache, output.last_hidden_state)
        final, new = run_on_last(self.view, part.layer, call, h, steered, *given)
        cache.layers[:], output.last_hidden_state = new.layers, final

    def _acts(self) -> bool:
        here = self.view.steps.here
        return not here.resting and (self.open or self in here.owners)

    def _step(self) -> Step:
        here = self.view.steps.here
        if here.step is None:
            raise UserError(here.why)
        if here.cached not in (None, here.prompt):
            raise UserError(EARLIER)
        return here.step

    def _hooked(self, steering: Steering) -> Callable[[], None]:
        """Put a steering to work at its site. Looking ahead is for what moves a block's output."""
        view, layer = self.view, steering.layer
        if steering.where.site == "heads":
            return (
                view.o_proj(layer)
                .register_forward_pre_hook(
                    lambda module, args: (steering.apply(args[0], self._step()), *args[1:]) if self._acts() else None
                )
                .remove
            )

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not self._acts():
                return output
            step = self._step()
            if step.generated:
                return steering.apply(output, step)
            if (late := view.steps.here.late) is not None:
                late.append(output)
                return output
            prompt = (step.prompt != Role.PAD).long()
            ahead = Ahead(view, layer, view.steps.here.call or {}, prompt, step.roles, self._rest)
            return steering.apply(output, step, ahead)

        return view.layers[layer].register_forward_hook(hook).remove

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """No steering acts inside: a controller runs the decoder by itself."""
        here = self.view.steps.mine()
        here.resting = True
        try:
            yield
        finally:
            here.resting = False


def refuse(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises ``UserError`` for a generation that cannot be steered; has the prompt run whole."""
    settings = kwargs.get("generation_config") or model.generation_config
    asked = lambda name: kwargs.get(name, getattr(settings, name, None))
    guided = any(isinstance(getattr(p, "model", None), nn.Module) for p in kwargs.get("logits_processor") or ())
    if guided or asked("guidance_scale") not in (None, 1, 1.0):
        raise UserError(
            f"{'a logits_processor' if guided else 'guidance_scale'} (classifier-free guidance) runs the model on a"
            " second prompt, of which it is not told what steers it: leave it out"
        )
    if kwargs.get("custom_generate") is not None:
        raise UserError("custom_generate is code that steering cannot follow: leave it out")
    ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
    roles, mask = roles_of(ids) if isinstance(ids, Tensor) else None, kwargs.get("attention_mask")
    padded = roles is not None and bool(torch.any(roles[:, -1] == Role.PAD))
    if padded or (isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask[:, -1].all())):
        raise UserError(
            "the batch is padded on the right, where its answers would begin: view.encode(prompts) pads on the left"
        )
    if asked("prefill_chunk_size") is not None:
        kwargs["prefill_chunk_size"] = None

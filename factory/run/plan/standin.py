"""A run without its weights: a model of the same sizes with random weights stands in, and what its blocks and its
vision tower take is not timed but computed, for a device that need not be here.

Everything else, the samples' drawing and tokens, judging, fitting and the report, is really done and timed on this
machine's processor. The stand-in says what is run, how often and of how many tokens; its answers are as long as its
model's usually are, where the card tells, or as long as they may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from factory.errors import UserError
from factory.model.attention import replaced
from factory.model.family import Family, frozen
from factory.model.load import read_processor, read_settings, take_card
from factory.model.source import FoundModel, Wanted, family_of, known
from factory.model.view import ModelView
from factory.run.plan.blocks import Sizes
from factory.run.plan.devices import Device

LARGEST = 3e8  # parameters of a model that is built of random numbers for its plan
SURE = 1e4  # a logit above all others, however they are mixed


class StandIn(ModelView):
    """A view whose model's answers end with their token number ``answer_tokens``, or never where that is None."""

    def __init__(self, model: PreTrainedModel, processor: Any, family: Family) -> None:
        super().__init__(model, processor, family)
        self.answer_tokens: int | None = None
        self.said = 0  # tokens of the answers that the decoder has read
        self.decoder.register_forward_pre_hook(self._read)

    def _read(self, *_: Any) -> None:
        self.said = self.said + 1 if self.step and self.step.generated else 0

    def logits(self, hidden: Tensor) -> Tensor:
        found = super().logits(hidden)
        if self.answer_tokens is not None and self.said >= self.answer_tokens - 1:
            found[..., self.end_ids[0]] = SURE
        return found


def stand_in(model: Wanted) -> StandIn:
    """A frozen model on the processor, of the wanted one's sizes and processor, with random weights from one seed.

    Raises ``UserError`` where its tokenizer is not there, or it is put together of parts or of trained ones.
    """
    if model.spec.compose or model.spec.tuned:
        raise UserError("its parts, or what was trained of them, are files of their own")
    config, card = known(model)
    family, folder = family_of(config), model.folder
    if folder is None or not folder.is_dir():
        raise UserError("its tokenizer is not here")
    if sum(p.numel() for p in family.skeleton(config).parameters()) > LARGEST:
        raise UserError("it is too large to be built of random numbers")
    processor = read_processor(FoundModel(folder, config, family, card, 0), model.spec)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, model.spec.dtype))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = family.hf_class()(config)
    finally:
        torch.set_default_dtype(before)
    read_settings(built, folder)
    view = StandIn(frozen(built), processor, family)
    take_card(view, model.asked, card)
    view.answer_tokens = view.card.answer_tokens if view.card else None
    return view


@dataclass
class Computed:
    """A clock that goes by this machine's processor time, but for a model's blocks and vision tower, for which it goes
    by what ``device`` takes. A block whose attention a diagnostic computes itself is timed as it is where the device is
    this processor, and elsewhere taken for a plain one."""

    device: Device
    sizes: Sizes
    ahead: float = 0.0
    computed: float = 0.0
    _since: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return process_time() + self.ahead

    def _enter(self, *_: Any) -> None:
        self._since.append(process_time())

    def _leave(self, seconds: float) -> None:
        self.ahead += seconds - (process_time() - self._since.pop())
        self.computed += seconds

    @contextmanager
    def watching(self, view: ModelView, learns: float = 0.0) -> Iterator[None]:
        """Within the block, what the view's model runs is computed; ``learns``: the share of a block's weights that a
        backward pass reaches too."""

        def ran(i: int) -> Callable[..., None]:
            def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
                if self.device.measured and replaced(view):
                    self._since.pop()
                    return
                out = output[0] if isinstance(output, tuple) else output
                seen = _seen(kwargs, i, out)
                self._leave(self.sizes.block(self.device, out.shape[0], out.shape[1], seen))
                if out.requires_grad:
                    self._backward(args[0] if args else kwargs["hidden_states"], out, seen, learns)

            return leave

        def saw(module: nn.Module, args: tuple, output: Any) -> None:
            states = output.last_hidden_state
            images = self.sizes.images(self.device, 1, states.numel() / states.shape[-1])
            self._leave(images)

        handles = []
        for i, block in enumerate(view.layers):
            handles += [
                block.register_forward_pre_hook(self._enter),
                block.register_forward_hook(ran(i), with_kwargs=True),
            ]
        if view.sees:
            tower = view.vision_tower
            handles += [tower.register_forward_pre_hook(self._enter), tower.register_forward_hook(saw)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _backward(self, given: Tensor, out: Tensor, seen: float, learns: float) -> None:
        """The time between the gradients of a block's output and of its input; where no gradient reaches its input,
        what is really taken stays."""
        if not given.requires_grad:
            return
        seconds = self.sizes.backward(self.device, out.shape[0], out.shape[1], seen, learns)
        begun: list[float] = []

        def begin(gradient: Tensor) -> None:
            begun.append(process_time())

        def end(gradient: Tensor) -> None:
            if begun:
                self.ahead += seconds - (process_time() - begun.pop())
                self.computed += seconds

        out.register_hook(begin)
        given.register_hook(end)


def _seen(kwargs: dict[str, Any], layer: int, out: Tensor) -> float:
    """How many tokens a block's new ones see, themselves among them."""
    cache = kwargs.get("past_key_values")
    kept = cache.layers[layer] if isinstance(cache, Cache) and layer < len(cache.layers) else None
    if isinstance(kept, CacheLayerMixin):  # a running state is read as it is, however much it stands for
        return max(float(kept.get_seq_length()), out.shape[1])
    return float(out.shape[1])

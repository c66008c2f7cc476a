"""A model run as a graph: prompts traced once, then run again with edges exchanged, many variants as rows of one
forward.

An exchanged edge's receiver reads the stream with the sender's contribution of another run in the place of its own:
x_v + sum_u absent(v, u) (z'_u - z_u). All other receivers read z_u as it is. What lies below a changed receiver is
never run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from factory.errors import UserError
from factory.instruments.residual import TOLERANCE
from factory.model.encode import Batch
from factory.model.family import device_of
from factory.model.prefix import last_index
from factory.model.replay import Call, recorded, replay
from factory.model.steps import Step, announced
from factory.model.view import ModelView

from .edits import Exchange, Leaves, Summed, Trace
from .graph import Graph
from .passes import Arithmetic, Pass
from .wiring import wiring


class Machine:
    """A view whose blocks are understood as a graph. Raises ``UserError`` naming what is not, or where the parts do not
    add up to the model's own states."""

    def __init__(self, view: ModelView, batch: Batch) -> None:
        self.view = view
        if len({device_of(block) for block in view.layers}) > 1:
            raise UserError(
                f"{type(view.decoder).__name__} is spread over devices, and its edges are exchanged on one: load it on"
                " one (no model.device_map), or quantised"
            )
        self.blocks = wiring(view, lambda: self._call(batch))
        self.graph = Graph(
            view.depth,
            view.heads,
            self.blocks[0].parts["k"].heads,
            [b.parallel for b in self.blocks],
            self._added_before(batch),
            [b.after is not None for b in self.blocks],
        )
        self._check(batch)

    @torch.no_grad()
    def _call(self, batch: Batch) -> Tensor:
        with announced(self.view, Step(batch.roles)):
            out = self.view.core(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
                **batch.of_tokens,
                **batch.images,
            )
        return out.last_hidden_state

    def _added_before(self, batch: Batch) -> list[int]:
        """Blocks that are not given what the block before gave."""
        outs: list[Tensor] = []
        found: list[int] = []

        def given(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if outs and not torch.equal(x, outs[-1]):
                found.append(len(outs))

        handles = [block.register_forward_pre_hook(given, with_kwargs=True) for block in self.view.layers]
        handles += [
            block.register_forward_hook(lambda m, a, o: outs.append(o[0] if isinstance(o, tuple) else o))
            for block in self.view.layers
        ]
        try:
            self._call(batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    @torch.no_grad()
    def trace(self, batch: Batch, arithmetic: Arithmetic | None = None) -> Trace:
        """Run prompts once and keep what every sender adds."""
        calls: list[Call] = []
        run = Pass(self.view, self.blocks, self.graph, None, arithmetic)
        with recorded(self.view, calls), run.running():
            hidden = self._call(batch)
        return Trace(batch, calls[0], torch.cat(run.senders), run.outputs, run.rest, self._last(batch, hidden))

    def _last(self, batch: Batch, hidden: Tensor) -> Tensor:
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, last_index(batch.attention_mask).to(hidden.device).repeat(len(hidden) // batch.size)]

    @torch.no_grad()
    def _check(self, batch: Batch) -> None:
        trace = self.trace(batch)
        two = self.rerun(trace, Pass(self.view, self.blocks, self.graph), 2, self.view.depth // 2)
        scale = TOLERANCE[self.view.dtype] * max(1.0, float(trace.hidden.abs().max()))
        for found in (self.summed(batch), *two.view(2, trace.rows, -1)):
            if not torch.allclose(found, trace.hidden, atol=scale, rtol=0):
                raise UserError(
                    f"{type(self.view.decoder).__name__}: its heads and MLPs do not add up to its own states, so its"
                    " edges cannot be exchanged"
                )

    @torch.no_grad()
    def summed(self, batch: Batch) -> Tensor:
        """Final normed states [B, d] of the last tokens, every receiver having read the sum of what was added."""
        run = Pass(self.view, self.blocks, self.graph, Summed())
        with run.running():
            return self._last(batch, self._call(batch))

    def rerun(self, trace: Trace, run: Pass, rows: int, start: int) -> Tensor:
        """Final normed states [rows * B, d] of the last tokens, where a pass begins at block ``start``."""
        run.start = start
        run.senders = [trace.values[: self.graph.below(start)]] if start else []
        run.summed = len(run.senders)
        repeat = lambda x: x.repeat(rows, *[1] * (x.ndim - 1))
        run.total = repeat(trace.sum_of(self.graph.below(start))) if start else None
        run.rest = [x if x.ndim == 1 else repeat(x) for x in trace.rest[:start]]
        given = repeat(trace.outputs[start - 1]) if start else trace.outputs[0][:0]
        roles = repeat(trace.batch.roles)
        with run.running():
            hidden = replay(self.view, start - 1, tiled(trace.call, trace.rows, rows), given, roles, None)
        return self._last(trace.batch, hidden)

    @torch.no_grad()
    def exchanged(
        self,
        trace: Trace,
        other: Trace,
        absent: Tensor,
        gates: Tensor | None = None,
        arithmetic: Arithmetic | None = None,
        start: int | None = None,
    ) -> Tensor:
        """[R, B, d]: final states of the last tokens with the edges ``absent`` [R, V, U] (or [R, V, U, G]) exchanged
        for those of the ``other`` run. ``start``: the first block to run, where it is known; none below the first
        changed receiver need be."""
        if start is None:
            start = self.first_changed(absent) if arithmetic is None else 0
        below = self.graph.below(start) if start else 0
        edit = Exchange(trace, other, absent, below, gates)
        run = Pass(self.view, self.blocks, self.graph, edit, arithmetic)
        return self.rerun(trace, run, len(absent), start).view(len(absent), trace.rows, -1)

    @torch.enable_grad()
    def attributed(
        self,
        trace: Trace,
        other: Trace,
        margin: Callable[[Tensor], Tensor],
        gates: Tensor | None = None,
        share: float = 1.0,
        arithmetic: Arithmetic | None = None,
    ) -> Tensor:
        """[V, U, G] (G = 1 without ``gates``): the mean over prompts of sum_t (z'_u - z_u) . dM / dx_v at the group's
        tokens, the first-order change of the ``margin`` [B] of final states [B, d] when an edge is exchanged.

        The gradient is taken where the inputs are z' + ``share`` (z - z'): at 1 the run itself.
        """
        edit = Leaves(trace, other.values, self.graph, gates, share)
        run = Pass(self.view, self.blocks, self.graph, edit, arithmetic)
        margin(self.rerun(trace, run, 1, 0)).sum().backward()
        return edit.scores / trace.rows

    def first_changed(self, absent: Tensor) -> int:
        """The first block with a changed receiver; the depth where only the logits', or nothing, changed."""
        found = absent.flatten(2).any(-1).any(0).nonzero()[:, 0]
        v = int(found[0]) if len(found) else len(self.graph.receivers) - 1
        return self.graph.receivers[v].layer


def tiled(call: Mapping[str, Any], rows: int, times: int) -> Call:
    """A decoder's call on ``rows`` prompts as one on so many copies of all of them, one copy after another."""

    def wide(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: wide(name, each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):  # features of pictures, of all prompts one after another
            return type(value)(x.repeat(times, *[1] * (x.ndim - 1)) if isinstance(x, Tensor) else x for x in value)
        if not isinstance(value, Tensor) or name == "cache_position":
            return value
        axis = value.ndim - 2 if name == "position_ids" else 0
        if axis < 0 or value.shape[axis] != rows:
            return value
        return value.repeat(*[times if i == axis else 1 for i in range(value.ndim)])

    return {name: wide(name, value) for name, value in call.items()}

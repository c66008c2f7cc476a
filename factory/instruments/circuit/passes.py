"""One forward of a model whose residual stream is watched, and whose readers can be given another stream each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from factory.model.view import ModelView
from factory.model.weights import weight_of

from .graph import Graph
from .wiring import Wired, first, gain, stream_of

Streams = Sequence[tuple[Sequence[int], Tensor]]
"""Receivers and what each reads [n, B, T, d], or all of them alike [1, B, T, d]."""


class Edit(Protocol):
    """What a pass changes."""

    def stream(self, layer: int, x: Tensor, added: Tensor) -> Tensor | None:
        """The stream [B, T, d] that block ``layer`` is given in place of ``x``, ``added`` of which is new since the
        block before; None leaves it."""
        ...

    def streams(self, receivers: range, x: Tensor, senders: Sequence[Tensor], total: Tensor, rest: Tensor) -> Streams:
        """Which of ``receivers`` read another stream than ``x``; ``senders`` are what was added before, [n, B, T, d]
        at once, ``total`` is their sum, and ``rest`` [d] or [B, T, d] what no sender is named for (biases)."""
        ...


class Arithmetic(Protocol):
    """How linear maps are computed, where not as the model does."""

    def weight(self, block: Wired, part: str, heads: Sequence[int], w: Tensor) -> Tensor:
        """The weight [n, head_dim, d] (``o``: [d, n, head_dim]) of some heads as they are computed with."""
        ...

    def given(self, block: Wired, part: str, heads: Sequence[int], x: Tensor) -> Tensor:
        """What is given to the maps of heads [n, B, T, k] as they take it."""
        ...

    def mlp(self, block: Wired) -> Any:
        """A context in which the block's MLP computes as it should."""
        ...


class Pass:
    """The state of one forward: ``senders`` so far, [n, B, T, d] for each n that were added at once, ``outputs`` of the
    blocks, and the last stream."""

    def __init__(
        self,
        view: ModelView,
        blocks: Sequence[Wired],
        graph: Graph,
        edit: Edit | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        self.view, self.blocks, self.graph, self.edit, self.arithmetic = view, blocks, graph, edit, arithmetic
        self.start = 0
        self.total: Tensor | None = None
        self.summed = 0
        self.senders: list[Tensor] = []
        self.rest: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.x: Tensor | None = None
        self.middle: Tensor | None = None
        self.last: Tensor | None = None
        self.heads: Tensor | None = None
        self.given: Streams = ()

    @contextmanager
    def running(self) -> Iterator[Pass]:
        """The hooks, for one call of the decoder whose first real block is ``start``."""
        with ExitStack() as stack:
            for b in self.blocks[self.start :]:
                for handle in self._hooks(b):
                    stack.callback(handle.remove)
                if self.arithmetic is not None:
                    stack.enter_context(self.arithmetic.mlp(b))
            stack.callback(self.view.norm.register_forward_pre_hook(self._logits, with_kwargs=True).remove)
            yield self

    def _hooks(self, b: Wired) -> Iterator[Any]:
        block = self.view.layers[b.layer]
        yield block.register_forward_pre_hook(self._begin(b), with_kwargs=True)
        for module in {id(p.module): p.module for p in b.parts.values()}.values():
            yield module.register_forward_hook(self._project(b, module))
        yield b.o.register_forward_hook(self._attended(b))
        if b.after is not None:
            yield b.after.register_forward_hook(self._normed(b))
        if b.mlp_reads is not None and not b.parallel:
            yield b.mlp_reads.register_forward_pre_hook(self._between)
        yield b.enters.register_forward_pre_hook(self._enter(b))
        yield b.adds.register_forward_hook(self._added(b))
        yield block.register_forward_hook(lambda module, args, output: self.outputs.append(first(output)))

    def _begin(self, b: Wired) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
            x = stream_of(args, kwargs)
            i = b.layer
            changed: Tensor | None = None
            fresh = i == 0 or i in self.graph.added
            if fresh and (i > self.start or i == 0):
                new = x - self.outputs[-1] if i else x
                changed = None if self.edit is None else self.edit.stream(i, x, new)
                self.senders.append((new if changed is None else new + (changed - x))[None])
            self.x = x if changed is None else changed
            self.middle = self.x
            at = self.graph.of_layer(i)
            self.given = self._streams(range(at, at + self.graph.reading - 1))
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return hook

    def _streams(self, receivers: range) -> Streams:
        if self.edit is None or self.middle is None:
            return ()
        seen = list(accumulate(map(len, self.senders))).index(self.graph.seen[receivers[0]]) + 1
        for added in self.senders[self.summed : seen]:
            self.total = added.sum(0) if self.total is None else self.total + added.sum(0)
        self.summed = max(self.summed, seen)
        assert self.total is not None
        rest = sum(self.rest[: self.graph.rests(receivers[0])], self.middle.new_zeros(()))
        return self.edit.streams(receivers, self.middle, self.senders[:seen], self.total, rest)

    def _project(self, b: Wired, module: nn.Module) -> Callable[..., Any]:
        parts = [p for p in b.parts if b.parts[p].module is module]

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            if not self.given and self.arithmetic is None:
                return None
            assert self.x is not None
            out = output.view(*self.x.shape[:2], -1)
            with weight_of(module) as W, weight_of(module, "bias") as bias:
                for part in parts:
                    for heads, read in self._read(b, part):
                        rows = b.parts[part].rows.to(out.device)[heads]
                        made = self._linear(b, part, heads, read, W[rows], None if bias is None else bias[rows])
                        out = out.index_copy(-1, rows.flatten(), made.permute(1, 2, 0, 3).flatten(-2))
            return out.view(output.shape)

        return hook

    def _read(self, b: Wired, part: str) -> Iterator[tuple[list[int], Tensor]]:
        """Heads of a part and what they read, normed [n, B, T, d]."""
        assert self.x is not None
        n, base = b.parts[part].heads, self.graph.of_layer(b.layer)
        offset = base + {"q": 0, "k": self.graph.heads, "v": self.graph.heads + self.graph.kv_heads}[part]
        norm = (lambda x: x) if b.reads is None else b.reads.forward
        inside = lambda v: offset <= v < offset + n
        known = {v - offset for vs, _ in self.given for v in vs if inside(v)}
        if self.arithmetic is not None and (rest := sorted(set(range(n)) - known)):
            yield rest, norm(self.x)[None]
        for vs, stream in self.given:
            at = [i for i, v in enumerate(vs) if inside(v)]
            if at:
                yield [vs[i] - offset for i in at], norm(stream if len(stream) == 1 else stream[at])

    def _linear(self, b: Wired, part: str, heads: list[int], x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """[n, B, T, head_dim] of heads that read ``x`` [n, B, T, d], or all of them x [1, B, T, d]."""
        if self.arithmetic is not None:
            x = self.arithmetic.given(b, part, heads, x.expand(len(heads), -1, -1, -1))
            W = self.arithmetic.weight(b, part, heads, W)
        W = W.to(x.device)
        if len(x) == 1:
            made = (x[0] @ W.flatten(0, 1).T).unflatten(-1, W.shape[:2]).permute(2, 0, 1, 3)
        else:
            made = torch.matmul(x, W.mT[:, None])
        return made if bias is None else made + bias.to(x.device)[:, None, None]

    def _attended(self, b: Wired) -> Callable[..., Any]:
        H, D = self.view.heads, self.view.head_dim

        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
            z = args[0].reshape(*output.shape[:-1], H, D).movedim(-2, 0)
            every = list(range(H))
            with weight_of(module) as W, weight_of(module, "bias") as bias:
                W_O = W.to(z.device).unflatten(-1, (H, D))
                if self.arithmetic is not None:
                    z, W_O = self.arithmetic.given(b, "o", every, z), self.arithmetic.weight(b, "o", every, W_O)
                self.heads = torch.einsum("hbtk,dhk->hbtd", z, W_O)
                rest = output.new_zeros(output.shape[-1]) if bias is None else bias.to(z.device)
            self.rest.append(rest)
            made = None if self.arithmetic is None else self.heads.sum(0) + rest
            if b.after is None:
                self.senders.append(self.heads)
            return made

        return hook

    def _normed(self, b: Wired) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            assert self.heads is not None
            by = gain(module, args[0])
            self.senders.append(self.heads * by)
            self.rest[-1] = self.rest[-1] * by

        return hook

    def _between(self, module: nn.Module, args: tuple) -> None:
        assert self.x is not None
        self.middle = args[0].view(self.x.shape)

    def _enter(self, b: Wired) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple) -> Any:
            assert self.x is not None
            if b.parallel:
                self.middle = self.x
            elif b.mlp_reads is None:
                self.middle = args[0].view(self.x.shape)
            at = self.graph.of_layer(b.layer + 1) - 1
            given = self._streams(range(at, at + 1))
            if not given:
                return None
            read = given[0][1][0]
            read = read if b.mlp_reads is None else b.mlp_reads.forward(read)
            return (read.view(args[0].shape), *args[1:])

        return hook

    def _added(self, b: Wired) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            assert self.x is not None
            self.senders.append(first(output).view(1, *self.x.shape))

        return hook

    def _logits(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        self.middle = stream_of(args, kwargs)
        self.last = self.middle
        at = len(self.graph.receivers) - 1
        given = self._streams(range(at, at + 1))
        if not given:
            return None
        changed = given[0][1][0]
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

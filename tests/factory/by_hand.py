"""Steering by hand: a slow loop, token by token, with the vectors added by a plain hook."""

from __future__ import annotations

import torch
from torch import Tensor

from factory.data.prompt import Prompt, Role
from factory.model.encode import Batch
from factory.model.prefix import at_last, extend, prefill
from factory.registry import Params
from factory.steer import Steerer, Steering, Where

W = torch.randn(48, 48, generator=torch.Generator().manual_seed(0)) / 7
STRENGTH = 1.5


class Bend(Steerer):
    """Vectors and gains that depend on what is read."""

    def __init__(self, reads: str) -> None:
        super().__init__(Params())
        self.reads = reads

    def delta(self, h, state, ctx):
        return torch.tanh(h @ state["W"]) * (2.0 if ctx.generated and self.reads == "per_token" else 1.0)

    def gain(self, h, state, ctx):
        return 1 + 0.5 * torch.sin(h[:, 0])


def bend(reads: str = "last_prompt", strength: float = STRENGTH, **where) -> Steering:
    return Steering(Bend(reads), {"W": W}, Where(layer=1, **where), strength)


class ByHand:
    """One row: a prompt, then its answer token by token; the vectors are added by a plain hook."""

    def __init__(self, view, steering: Steering) -> None:
        self.view, self.steering, self.method = view, steering, steering.steerer
        self.roles: Tensor | None = None
        self.vector = self.gain = None

    def hook(self, module, args, h):
        where, out = self.steering.where, h.clone()
        if self.roles is not None:
            at = int((self.roles[0] != Role.PAD).nonzero()[-1])
            self.vector = self.method.delta(h[0, at][None], {"W": W}, _ctx(False))[0]
            self.gain = float(self.method.gain(h[0, at][None], {}, None))
        told = [True] * h.shape[1] if self.roles is None else where.mask(self.roles)[0].tolist()
        for i, chosen in enumerate(told):
            if chosen and (self.roles is not None or where.generated):
                own = self.method.delta(h[0, i][None], {"W": W}, _ctx(self.roles is None))[0]
                out[0, i] += STRENGTH * self.gain * (own if self.method.reads == "per_token" else self.vector)
        return out

    @torch.no_grad()
    def logits(
        self, batch: Batch, answer: list[int], then: list[tuple[list[int], list[int], list[int]]] = ()
    ) -> Tensor:
        """Next-token logits after the prompt and after each token of ``answer`` [n + 1, V]; ``then``: ids and roles of
        further turns of the prompt, and the answer to each."""
        handle = self.view.layers[1].register_forward_hook(self.hook)
        try:
            self.roles = batch.roles
            hidden, prefix = prefill(self.view, batch)
            found = [self.view.logits(at_last(hidden, batch.attention_mask))[0]]
            for token in answer:
                found.append(self._next(prefix, [token], None))
                prefix = self.prefix
            for ids, roles, more in then:
                self.prefix = prefix
                found.append(self._next(prefix, ids, roles))
                for token in more:
                    found.append(self._next(self.prefix, [token], None))
        finally:
            handle.remove()
        return torch.stack(found)

    def _next(self, prefix, ids: list[int], roles: list[int] | None) -> Tensor:
        self.roles = None if roles is None else torch.tensor([roles])
        ids = torch.tensor([ids])
        given = torch.full_like(ids, int(Role.ANSWER)) if roles is None else self.roles
        hidden, self.prefix = extend(self.view, prefix, ids, torch.ones_like(ids), given, generated=roles is None)
        return self.view.logits(hidden[:, -1])[0]


class _ctx:
    def __init__(self, generated: bool) -> None:
        self.generated = generated


def near(ours: Tensor, right: Tensor) -> bool:
    """Equal but for float32's rounding, of which 1.0e-5 of the largest logit was seen over three blocks."""
    return bool((ours - right).abs().max() <= 2e-5 * max(1.0, float(right.abs().max())))


def of(view, prompt: Prompt) -> Batch:
    return view.encode([prompt])

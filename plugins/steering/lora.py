"""LoRA on the conflicts that steering is fitted on: the rival that trains (Hu et al., 2021; DPO, arXiv 2305.18290).

    W x + s (alpha / r) B A x                                          s: the strength, 1 as trained
    answers:     L = - log p(y+ | x)
    preference:  L = - log sigmoid(b [log p(y+|x) / p_0(y+|x) - log p(y-|x) / p_0(y-|x)])     (DPO, eq. 7)

x is a training prompt as it is, y+ its answer toward the wanted source, y- that toward the other, p_0 the model without
the update. The sum over an answer's tokens leaves its end token out. A begins uniform as PEFT's does, B at zero.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from factory.data.prompt import Prompt
from factory.instruments.likelihood import answer_logprobs
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.registry import Params, register
from factory.steer import TrainedMethod
from factory.steer.base import Tensors
from factory.tune.places import projections

Target = Literal["query", "key", "value", "attention_out", "mlp_in", "mlp_out"]


class LoraRivalParams(Params):
    """``loss``: answers trains on the wanted answer, preference puts it before the other (DPO, ``beta`` b). ``rank`` r
    and ``alpha`` of the update (null: twice the rank) of the decoder's ``targets``; ``epochs`` over the training
    prompts, ``batch_size`` of them a step, by AdamW at a constant ``learning_rate``.
    """

    loss: Literal["answers", "preference"] = "answers"
    beta: PositiveFloat = 0.1
    rank: PositiveInt = 8
    alpha: PositiveFloat | None = None
    targets: tuple[Target, ...] = ("query", "value")
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3


@register("steering", "lora")
class LoraRival(TrainedMethod):
    """Low-rank updates of the decoder's projections, trained toward one source on the training conflicts, by their
    answers or by preference (DPO); the strength scales them.
    """

    Params = LoraRivalParams

    def train(self, view: ModelView, wanted: Sequence[Prompt], other: Sequence[Prompt], seed: int) -> Tensors:
        p, rng = self.params, torch.Generator().manual_seed(seed)
        state = self.start(view, rng)
        learnt = {name: t.to(view.device).requires_grad_() for name, t in state.items()}
        optimizer = torch.optim.AdamW(learnt.values(), lr=p.learning_rate, weight_decay=0.0)
        with torch.enable_grad():
            for _ in range(p.epochs):
                for rows in torch.randperm(len(wanted), generator=rng).split(p.batch_size):
                    optimizer.zero_grad()
                    pairs = [[side[i] for i in rows.tolist()] for side in (wanted, other)]
                    self.loss(view, learnt, *pairs).backward()
                    optimizer.step()
        return {name: t.detach().cpu() for name, t in learnt.items()}

    def start(self, view: ModelView, rng: torch.Generator) -> Tensors:
        """A [r, in] and B [out, r] of each projection, by its name in the model."""
        state: Tensors = {}
        for name, module in self._maps(view).items():
            n_in, n_out, r = module.in_features, module.out_features, self.params.rank
            state[f"{name}.A"] = (2 * torch.rand(r, n_in, generator=rng) - 1) / math.sqrt(n_in)
            state[f"{name}.B"] = torch.zeros(n_out, r)
        return state

    def loss(self, view: ModelView, state: Tensors, wanted: Sequence[Prompt], other: Sequence[Prompt]) -> Tensor:
        """The mean loss of some pairs, of which ``other`` counts for preference alone."""
        pairs = [*wanted, *other] if self.params.loss == "preference" else list(wanted)
        with self.acting(view, state, 1.0):
            log_p = _log_likelihood(view, pairs)
        if self.params.loss == "answers":
            return -log_p.mean()
        with torch.no_grad():
            log_p0 = _log_likelihood(view, pairs)
        gained, lost = (log_p - log_p0).chunk(2)
        return -F.logsigmoid(self.params.beta * (gained - lost)).mean()

    @contextmanager
    def acting(self, view: ModelView, state: Tensors, strength: float) -> Iterator[None]:
        scale = strength * (self.params.alpha or 2 * self.params.rank) / self.params.rank

        def updated(A: Tensor, B: Tensor) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                x = args[0].float()
                return (output.float() + scale * (x @ A.to(x.device).T @ B.to(x.device).T)).to(output.dtype)

            return hook

        maps = self._maps(view)
        hooks = [m.register_forward_hook(updated(state[f"{k}.A"], state[f"{k}.B"])) for k, m in maps.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _maps(self, view: ModelView) -> dict[str, Any]:
        return projections(view, self.params.targets)


def _log_likelihood(view: ModelView, answered: Sequence[Prompt]) -> Tensor:
    """log p(y | x) [B] of answered prompts."""
    batch = view.encode(answered)
    return answer_logprobs(view, batch, prefill(view, batch)[0])

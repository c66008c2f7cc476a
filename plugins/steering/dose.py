"""Dose: another method's vectors, with each sample's strength chosen by looking ahead (ours; not from a paper).

Before a prompt is steered, the blocks above the steered one are run on it once per dose (and once unsteered, and once
backwards), and every dose's next-token distribution is described without labels: how sure it is, how far it went from
the unsteered one, whether its answer was plausible before (cf. Directer's p_steered >= beta p_raw), how much the
opposite dose dislikes it, how far the other doses agree, and (``alone``) what the model says of either modality
alone, with the other one left out of the prompt, or hidden from its last token. A small network, trained on what the
same doses did to the training prompts, turns this into P(follow) and P(error) of each dose; the dose with the best
P(follow) - aversion * P(error) is given, and none where a prompt lacks either modality. The diagnosis enters as the
visual MCR, predicted from h_[I,T] by ridge regression so that inference needs no MCR. Cost: S + 2 passes of the upper
blocks over the prompt, and with ``alone`` two of all blocks. Where the inner method steers the prompt's last token
alone (``apply_to: last_and_generated``) they are passes of that token, after one of the prompt as it is; with
``alone: last`` the two of all blocks are so too.

With ``risk`` a dose is given only where the network's P(error) is at most lambda. The network is then trained on half
of the training samples, and lambda is the largest of a fixed sequence 0, 0.02, .. 1 before which every

    p = P(Bin(n, risk) <= k) <= 1 - confidence      k of the other n samples steered into an error

(Learn then Test, arXiv 2110.01052, sec. 2, with fixed sequence testing): with that confidence no more than ``risk`` of
all samples are steered into an error, where they are exchangeable with those n. The inner method's vectors saw these n.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from factory.errors import UserError
from factory.recipe.nodes import Node, plugin, read_node
from factory.registry import register
from factory.statistics.significance import binomial_tail
from factory.steer import Context, States, Steerer, Trials
from factory.steer.around import Around, AroundParams

Tensors = dict[str, Tensor]
CLASSES = 3  # neither, follow, error
SEQUENCE = [i / 50 for i in range(51)]
SHARES = ("R_V", "R_A")  # the share of the first source: a picture's, or the first of two texts'


class DoseParams(AroundParams):
    """``of`` the method whose vectors are dosed; ``doses`` to choose among; ``alone``: hear each source alone too, the
    other one left out of the prompt, or with ``last`` hidden from its last token, which costs that token's pass;
    ``conflicts_only``: leave prompts that lack either (an image or a context) as they are; ``aversion`` weighs errors
    against following; ``slack``: the least dose is given whose P(follow) - aversion * P(error) is so near to the best;
    ``risk``: the most samples that may be steered into an error, at ``confidence``; the rest is the gate's training.
    Defaults were chosen on dev scenes.

    ``gate_hidden`` units, ``gate_epochs``, ``gate_learning_rate`` and ``gate_decay`` (AdamW's weight decay) train the
    gate; ``ridge`` is the penalty of the regression that predicts the MCR.
    """

    of: Annotated[Node, plugin("steering")] = Field(default_factory=lambda: read_node("steering", "l2s"))
    doses: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
    alone: bool | Literal["last"] = True
    conflicts_only: bool = True
    aversion: float = Field(1.0, ge=0)
    slack: float = Field(0.0, ge=0)
    risk: float | None = Field(None, gt=0, lt=1)
    confidence: float = Field(0.9, gt=0, lt=1)
    gate_hidden: PositiveInt = 32
    gate_epochs: PositiveInt = 400
    gate_learning_rate: PositiveFloat = 1e-2
    gate_decay: float = Field(1.0, ge=0)
    ridge: PositiveFloat = 1.0

    @classmethod
    def check(cls, inner: Steerer) -> None:
        if inner.trial_strengths:
            raise UserError(f"'{inner.name}' chooses each sample's strength itself")
        if inner.where().site != "block" or inner.where().layers:
            raise UserError(
                f"'{inner.name}' does not steer the output of one block, so that none of its doses can be seen ahead"
            )


@register("steering", "dose")
class Dose(Around):
    """Each sample's own strength: the dose whose outcome, seen ahead, most likely follows the target without an
    error.
    """

    Params = DoseParams

    @classmethod
    def needs_sources(cls, params: DoseParams) -> bool:
        return params.conflicts_only or bool(params.alone)

    @classmethod
    def needs_columns(cls, params: DoseParams) -> bool:
        return params.alone == "last"

    @property
    def trial_strengths(self) -> tuple[float, ...]:
        return self.params.doses

    def fit(self, states: States) -> Tensors:
        sides = states.sources[states.direction], states.sources.other(states.direction)
        wanted, other = (torch.tensor(float(source.role)) for source in sides)
        return {**super().fit(states), "wanted": wanted, "other": other}

    def look(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        """Features [rows, S, F] of every dose's next-token distribution p_s beside p_0, p_-1, those of either modality
        alone and all other doses'.
        """
        hear = ctx.ignoring if self.params.alone == "last" else ctx.hiding
        assert ctx.probe and hear, "doses are tried where the runtime looks ahead"
        tried = torch.tensor((0.0, -1.0, *self.params.doses), device=h.device)
        p_0, p_back, *each = ctx.probe(tried[:, None].expand(-1, len(h))).log_softmax(-1)
        p = torch.stack(each)
        answers = p.argmax(-1)
        dose = torch.tensor(self.params.doses, device=h.device) / max(self.params.doses)
        features = torch.stack([_describe(p, answers, i, p_0, p_back, dose[i]) for i in range(len(dose))], 1)
        if not self.params.alone:
            return features
        heard = hear(torch.stack([state["other"], state["wanted"]])).log_softmax(-1)
        return torch.cat(
            [
                features,
                *(
                    torch.stack([_agreement(*each, p_alone) for each in zip(p, answers, strict=True)], 1)
                    for p_alone in heard
                ),
            ],
            -1,
        )

    def calibrate(self, state: Tensors, trials: Trials) -> Tensors:
        ridge = _ridge(trials.base, _share(trials), self.params.ridge)
        x = _with_mcr(trials.looks, trials.base, ridge)
        learns = _half(trials.groups, trials.seed) if self.params.risk else torch.ones(len(x), dtype=torch.bool)
        mean, std = x[learns].flatten(0, 1).mean(0), x[learns].flatten(0, 1).std(0) + 1e-6
        outcome = trials.follow.long() + 2 * trials.error.long()
        gate = _train_gate((x[learns] - mean) / std, outcome[learns], self.params, trials.seed)
        state = {**state, **gate, "gate.mean": mean, "gate.std": std, "mcr.ridge": ridge}
        if not self.params.risk:
            return state
        p, held = _gate(state, (x - mean) / std).softmax(-1)[~learns], trials.groups[~learns]
        return {**state, "gate.limit": self._limit(p, trials.error[~learns], held)}

    def _limit(self, p: Tensor, error: Tensor, groups: Tensor) -> Tensor:
        """lambda [], from p [n, S, 3] and ``error`` [n, S] of held-out prompts, of which some ``groups`` [n] are one
        sample; -1, which gives no dose at all, where not even 0 passes.
        """
        limit, samples = -1.0, groups.unique()
        for lam in SEQUENCE:
            given = self._choice(p, torch.tensor(lam))
            wrong = (error.gather(1, given.clamp_min(0)[:, None])[:, 0] & (given >= 0)).float()
            k = sum(bool(wrong[groups == sample].any()) for sample in samples)
            if binomial_tail(k, len(samples), self.params.risk) > 1 - self.params.confidence:
                break
            limit = lam
        return torch.tensor(limit)

    def _choice(self, p: Tensor, limit: Tensor | None) -> Tensor:
        """Which dose each row is given [rows], -1 for none, by P(neither, follow, error) [rows, S, 3]."""
        merit = p[..., 1] - self.params.aversion * p[..., 2]
        if limit is not None:
            merit = merit.masked_fill(p[..., 2] > limit, -torch.inf)
        near = (merit >= merit.amax(1, keepdim=True) - self.params.slack) & merit.isfinite()
        dose = torch.tensor(self.params.doses, device=p.device).abs().expand_as(merit)
        return torch.where(near.any(1), dose.masked_fill(~near, torch.inf).argmin(1), -1)

    def gain(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        if "gate.mean" not in state:
            return super().gain(h, state, ctx)
        x = (_with_mcr(self.look(h, state, ctx), h, state["mcr.ridge"]) - state["gate.mean"]) / state["gate.std"]
        given = self._choice(_gate(state, x).softmax(-1), state.get("gate.limit"))
        dose = torch.tensor((*self.params.doses, 0.0), device=h.device)[given]  # -1 is the last, which is none
        return dose * _conflicts(ctx.roles, state) if self.params.conflicts_only and ctx.roles is not None else dose


def _half(groups: Tensor, seed: int) -> Tensor:
    """[n] booleans: the prompts of half of the samples, drawn by lot."""
    samples = groups.unique()
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return torch.isin(groups, samples[order[: len(samples) // 2]])


def _share(trials: Trials) -> Tensor | None:
    """The first source's MCR [n] of the training prompts; None where it was not measured."""
    return next((trials.measured[name] for name in SHARES if trials.measured.get(name) is not None), None)


def _conflicts(roles: Tensor, state: Tensors) -> Tensor:
    """1 for each prompt [rows] that has both sources (an image and a context) among its ``roles`` [rows, T], else 0."""
    return torch.stack([(roles == state[side]).any(-1) for side in ("wanted", "other")]).all(0).float()


def _describe(doses: Tensor, answers: Tensor, i: int, p_0: Tensor, p_back: Tensor, dose: Tensor) -> Tensor:
    """Features [rows, F] of dose ``i`` among log-probabilities ``doses`` [S, rows, vocabulary] and their ``answers``
    [S, rows].
    """
    p, answer = doses[i], answers[i]
    at = lambda q: q.gather(-1, answer.expand(q.shape[:-1])[..., None]).squeeze(-1).clamp_min(-20)
    two = p.topk(2, -1).values
    return torch.stack(
        [
            at(p),
            two[:, 0] - two[:, 1],
            -(p.exp() * p).sum(-1),
            (p.exp() * (p - p_0)).sum(-1),  # confidence, margin, entropy, KL
            at(p_0),
            at(p) - at(p_back),
            (answer == p_0.argmax(-1)).float(),
            (answer == p_back.argmax(-1)).float(),
            at(doses).mean(0),
            (answers == answer).float().mean(0),
            dose.expand_as(answer),  # agreement of the doses
        ],
        -1,
    )


def _agreement(p: Tensor, answer: Tensor, p_alone: Tensor) -> Tensor:
    """Features [rows, 4] of log-probabilities p [rows, vocabulary] and their ``answer`` [rows] beside those of one
    modality alone.
    """
    said = p_alone.gather(-1, answer[:, None]).squeeze(-1).clamp_min(-20)
    apart = (p_alone.exp() * (p_alone - p).clamp(-20, 20)).sum(-1)  # KL(p_alone || p)
    return torch.stack([said, (answer == p_alone.argmax(-1)).float(), p_alone.amax(-1), apart], -1)


def _ridge(h: Tensor, r_v: Tensor | None, weight: float) -> Tensor:
    """Ridge regression [d + 1] of the visual MCR on h_[I,T]; zeros where no MCR was measured."""
    if r_v is None or torch.isnan(r_v).any():
        return torch.zeros(h.shape[1] + 1)
    x = F.pad(h, (0, 1), value=1.0)
    return torch.linalg.solve(x.T @ x + weight * torch.eye(x.shape[1]), x.T @ r_v)


def _with_mcr(looks: Tensor, h: Tensor, ridge: Tensor) -> Tensor:
    r_v = F.pad(h, (0, 1), value=1.0) @ ridge
    return torch.cat([looks, r_v[:, None, None].expand(-1, looks.shape[1], 1)], -1)


def _gate(state: Tensors, x: Tensor) -> Tensor:
    """Logits [..., 3] of neither, follow, error."""
    hidden = torch.tanh(x @ state["gate.in"] + state["gate.bias"])
    return hidden @ state["gate.out"] + state["gate.prior"]


def _train_gate(x: Tensor, outcome: Tensor, params: DoseParams, seed: int) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "gate.in": (x.shape[-1], params.gate_hidden),
        "gate.bias": (params.gate_hidden,),
        "gate.out": (params.gate_hidden, CLASSES),
        "gate.prior": (CLASSES,),
    }
    gate = {
        k: (torch.randn(shape, generator=rng) * (shape[0] ** -0.5 if len(shape) > 1 else 0.0)).requires_grad_()
        for k, shape in shapes.items()
    }
    optimizer = torch.optim.AdamW(gate.values(), lr=params.gate_learning_rate, weight_decay=params.gate_decay)
    with torch.enable_grad():
        for _ in range(params.gate_epochs):
            optimizer.zero_grad()
            F.cross_entropy(_gate(gate, x).flatten(0, 1), outcome.flatten()).backward()
            optimizer.step()
    return {k: t.detach() for k, t in gate.items()}

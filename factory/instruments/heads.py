"""Scaling the outputs of chosen attention heads (Instruction Anchor, sec. 4.2): which heads, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor

from factory.errors import UserError
from factory.steer.base import Context, Steerer, Tensors
from factory.steer.runtime import Steering
from factory.steer.where import RoleName, Where

Head = tuple[int, int]
Choice = Literal["top", "random", "shared"]
METRIC = "head_margin"
SILENCED = "silenced_margin"
"""How far the margin between the two answers moves, toward a direction, when a head is silenced."""
IN_CIRCUIT = "circuit_head"
"""What a head carries within a circuit: the sizes of its edges' scores."""


class HeadScaler(Steerer):
    """o <- o + strength * (c - 1) * o for the output o of each chosen head: at strength 1, c * o; c = 0 blocks it, c =
    1 leaves its bits.
    """

    reads = "per_token"
    columned = True

    def __init__(self, params: Any = None, role: RoleName = "instruction", generated: bool = False) -> None:
        super().__init__(params)
        self.role, self.generated = role, generated

    def where(self) -> Where:
        return Where(site="heads", role=self.role, generated=self.generated)

    def placed(self, state: Tensors, layer: int) -> Where:
        changed = (state["coefficient"] != 1).any(-1).nonzero()[:, 0].tolist()
        return self.where().model_copy(update={"layers": tuple(changed)})

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        """(c - 1) o of all heads [rows, heads * head_dim]."""
        more = state["coefficient"][ctx.layer] - 1
        return h * more.repeat_interleave(h.shape[-1] // len(more))


def few(heads: int) -> int:
    """How many heads the paper calls few: 5 % of them (its 40), at least one."""
    return max(1, round(heads / 20))


def coefficients(heads: Iterable[Head], value: float, shape: Sequence[int]) -> Tensors:
    """The state of a ``HeadScaler``: c [layers, heads], ``value`` for the chosen heads and 1 for all others."""
    c = torch.ones(*shape)
    for layer, head in heads:
        c[layer, head] = value
    return {"coefficient": c}


def scores(rows: Iterable[Mapping[str, Any]], direction: str, metric: str = METRIC) -> Tensor:
    """Mean dM [layers, heads] (eq. 9), or of another ``metric``, over the prompts that follow ``direction``; over all
    of its prompts where none does.

    Empty where there are no rows.
    """
    found = [r for r in rows if r["metric"] == metric and r["direction"] == direction]
    found = [r for r in found if r.get("outcome") == "follow"] or found
    if not found:
        return torch.zeros(0, 0)
    at = torch.tensor([(r["layer"], r["head"]) for r in found]).T
    total = torch.zeros(*(at.max(1).values + 1).tolist(), dtype=torch.float64)
    count = total.clone()
    total.index_put_(tuple(at), torch.tensor([r["value"] for r in found], dtype=torch.float64), accumulate=True)
    count.index_put_(tuple(at), torch.ones(len(found), dtype=torch.float64), accumulate=True)
    return total / count


def choose_heads(
    by_direction: Mapping[str, Tensor], direction: str, k: int, choice: Choice = "top", seed: int = 0
) -> list[Head]:
    """``k`` heads: the top ones of a direction; as many random ones, none of them among the top; or those of the top
    that every direction shares (fewer than k, or none)."""
    tops = {d: _top(s, k) for d, s in by_direction.items()}
    if choice == "top":
        return tops[direction]
    if choice == "shared":
        return [head for head in tops[direction] if all(head in top for top in tops.values())]
    layers, heads = by_direction[direction].shape
    others = [(i, n) for i in range(layers) for n in range(heads) if (i, n) not in tops[direction]]
    return sorted(Random(f"{seed}/{direction}/{k}").sample(others, min(k, len(others))))


def _top(score: Tensor, k: int) -> list[Head]:
    order = score.flatten().argsort(descending=True, stable=True)[:k].tolist()
    return [divmod(i, score.shape[1]) for i in order]


def learnt_scores(rows: Iterable[Mapping[str, Any]], needed: Iterable[str], diagnostic: str) -> dict[str, Tensor]:
    """The scores of each direction that has any. Raises ``UserError`` where a direction that a diagnostic needs has
    none.
    """
    rows = list(rows)
    asked = dict.fromkeys(row["direction"] for row in rows if row.get("direction"))
    found = {d: s for d in asked if (s := scores(rows, d)).numel()}
    if set(needed) - set(found):
        raise UserError(
            f"diagnostic '{diagnostic}' needs each head's attribution: list `heads` before it under `diagnostics:`"
        )
    return found


def chosen_heads(
    by_direction: Mapping[str, Tensor], direction: str, k: int, choice: Choice, coefficient: float, seed: int = 0
) -> Steering:
    """The outputs of ``k`` heads of a choice multiplied by ``coefficient`` at instruction tokens."""
    scaler = HeadScaler()
    state = coefficients(
        choose_heads(by_direction, direction, k, choice, seed), coefficient, tuple(by_direction[direction].shape)
    )
    return Steering(scaler, state, scaler.placed(state, 0))

"""CausalMM: decoding against counterfactual attention (Zhou et al., ICLR 2025, arXiv 2410.04780). SPEC.md 8.

    one level:   logits = (1 + g) z - g z_cf
    both levels: logits = (1 + 2 g) z - g z_v - g z_l           among tokens with p(y) >= b max p

z_v: the vision tower, z_l: the language model, with counterfactual attention A* in place of A = softmax(q k^T):
reversed  max A - A;   uniform  the same for all;   random  U(0, 1);   shuffle  A's entries in another order

From the code (The-Martyr/CausalMM at 6d1ae4e): the two formulas, b = 0.1 and the maps, of which the language model has
reversed and uniform here. In the tower max A is that of a head's whole map and shuffle, the default there, permutes all
of a map's entries; in the language model max A is each row's. Here g is the strength (0.5 in the code, 1 in its script)
and answers are greedy. Ours: rows of A* sum to 1 (in the code not always), it takes A's place in every layer (the
released vision code weighs the tower's output with one layer's map instead), and random and shuffled maps are drawn
once from the seed, the same for every image, so that no row depends on another. Ours too is the direction: toward
vision the tower's attention is counterfactual, toward text the language model's; the paper knows no direction.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.prompt import Prompt
from factory.diagnose import attention
from factory.errors import UserError
from factory.instruments.focus import applied, visible, weights
from factory.model.view import ModelView
from factory.registry import Params, register
from factory.steer import LogitsMethod
from factory.steer.logits import contrastive

Level = Literal["vision", "language"]
OPTIONS: dict[str, tuple[Level, ...]] = {"vision": ("vision",), "language": ("language",)}
OPTIONS["both"] = ("vision", "language")


def levels_of(option: str, direction: str) -> tuple[Level, ...]:
    """Whose attention is counterfactual toward a direction."""
    return OPTIONS["vision" if direction == "vision" else "language"] if option == "by_direction" else OPTIONS[option]


class CausalParams(Params):
    """``levels``: whose attention is counterfactual; ``by_direction`` is the tower's toward vision, the language
    model's toward text. ``vision_map`` and ``language_map`` choose A*; ``plausible`` is b; ``seed`` is that of the
    random and shuffled maps.
    """

    levels: Literal["by_direction", "vision", "language", "both"] = "by_direction"
    vision_map: Literal["reversed", "uniform", "random", "shuffle"] = "shuffle"
    language_map: Literal["reversed", "uniform"] = "reversed"
    plausible: float = Field(0.1, gt=0, le=1)
    seed: int = 0


@register("steering", "causalmm")
class CausalMM(LogitsMethod):
    """The answer's logits, contrasted with those under counterfactual attention in the vision tower or the language
    model.
    """

    Params = CausalParams

    @classmethod
    def needs_pictures(cls, params: CausalParams) -> bool:
        return params.levels != "language"

    @classmethod
    def needs_columns(cls, params: CausalParams) -> bool:
        return params.levels != "vision"

    def copies(self, prompt: Prompt, direction: str) -> tuple[Prompt, ...]:
        return (prompt,) * len(levels_of(self.params.levels, direction))

    @contextmanager
    def running(self, view: ModelView, direction: str, blocks: int, strength: float) -> Iterator[None]:
        levels = levels_of(self.params.levels, direction)
        parts = {level: view.vision_tower if level == "vision" else view.decoder for level in levels}
        altered = {id(m): (level, block) for block, level in enumerate(levels, 1) for m in parts[level].modules()}

        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, None]:
            out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
            level, block = altered[id(module)]
            if len(q) % blocks:
                raise UserError(
                    f"causalmm: {type(module).__name__} runs all images as one row, so a copy's attention cannot be"
                    " told apart; use levels: language"
                )
            rows = slice(block * len(q) // blocks, (block + 1) * len(q) // blocks)
            seen = visible(module, q[rows], k, None if mask is None else mask[rows])
            kind = self.params.vision_map if level == "vision" else self.params.language_map
            A = counterfactual(weights(q[rows], k[rows], seen, options), seen, kind, self.params.seed, level)
            return torch.cat([out[: rows.start], applied(A, v[rows]), out[rows.stop :]]), None

        with ExitStack() as stack:
            for level in levels:
                stack.enter_context(attention(view, attend, parts[level]))
            yield

    def combine(self, own: Tensor, others: Tensor, direction: str, strength: float) -> Tensor:
        return contrastive(own, others, strength, self.params.plausible)


def counterfactual(A: Tensor, seen: Tensor, kind: str, seed: int, level: Level = "vision") -> Tensor:
    """A* [R, heads, t, T] in place of attention A, on what is ``seen``; its rows sum to 1, and a row that sees one
    token keeps it.
    """
    if kind == "reversed":
        edited = A.amax((-2, -1) if level == "vision" else -1, keepdim=True) - A
    elif kind == "uniform":
        edited = torch.ones_like(A)
    elif kind == "random":
        edited = torch.rand(A.shape[1:], generator=torch.Generator().manual_seed(seed)).to(A).expand_as(A)
    else:
        order = _orders(A.shape[1], A.shape[2] * A.shape[3], seed).to(A.device)
        edited = A.flatten(-2).gather(-1, order.expand(len(A), -1, -1)).view_as(A)
    edited = edited * seen
    total = edited.sum(-1, keepdim=True)
    return torch.where(total > 1e-9, edited / total.clamp_min(1e-9), A)


@lru_cache(maxsize=1)
def _orders(heads: int, entries: int, seed: int) -> Tensor:
    """For each head an order [heads, entries] of its map's entries; every layer of a tower asks for the same."""
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(entries, generator=rng) for _ in range(heads)])

"""The partitioner, the learners and the decoder of one modality, and both modalities where a model reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from factory.data.prompt import Role
from factory.errors import UserError
from factory.steer.where import ROLES
from factory.tune.parted import Parting
from factory.tune.roles import Roles

MODALITIES = ("image", "text")
PARTS = ("uni", "paired")
Weights = Mapping[str, tuple[float, float]]
"""By modality what its uni-modal and its paired part are multiplied by; 1 and 1 where it is not named."""


class Gate(nn.Module):
    """g = sigma(W h + b), or cumax(W h + b) = cumsum(softmax(W h + b)), which is ordered: dimensions further on are
    ever more uni-modal. h, g [..., d]; W = B A of ``rank``, 0 at the start; b is drawn with standard deviation
    ``spread``. Rank 0 leaves b alone: one split of the dimensions for all tokens.
    """

    def __init__(self, d: int, rank: int, kind: str, spread: float) -> None:
        super().__init__()
        self.kind = kind
        self.A = nn.Parameter(torch.randn(rank, d) * d**-0.5) if rank else None
        self.B = nn.Parameter(torch.zeros(d, rank)) if rank else None
        self.b = nn.Parameter(spread * torch.randn(d))

    def forward(self, h: Tensor) -> Tensor:
        x = self.b.expand_as(h)
        if self.A is not None and self.B is not None:
            x = x + (h @ self.A.T) @ self.B.T
        return x.sigmoid() if self.kind == "sigma" else x.softmax(-1).cumsum(-1).clamp_max(1.0)


class Learner(nn.Module):
    """x [..., d] -> x + W_up relu(W_down x); W_up = 0 at the start, and 0 stays 0."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.W_down = nn.Parameter(torch.randn(rank, d) * d**-0.5)
        self.W_up = nn.Parameter(torch.zeros(d, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x + (x @ self.W_down.T).relu() @ self.W_up.T


class Decoder(nn.Module):
    """D([u, p]) = u + p + W_up relu(W_down [u, p]), of the learnt parts [..., d]; W_up = 0 at the start."""

    def __init__(self, d: int, rank: int) -> None:
        super().__init__()
        self.W_down = nn.Parameter(torch.randn(rank, 2 * d) * (2 * d) ** -0.5)
        self.W_up = nn.Parameter(torch.zeros(d, rank))

    def forward(self, u: Tensor, p: Tensor) -> Tensor:
        return u + p + (torch.cat([u, p], -1) @ self.W_down.T).relu() @ self.W_up.T


class Modality(nn.Module):
    """h [..., d] -> u = g h and p = (1 - g) h -> D([w_u E_u(u), w_p E_p(p)]), in float32."""

    def __init__(self, d: int, rank: int, gate_rank: int, kind: str, spread: float) -> None:
        super().__init__()
        self.gate = Gate(d, gate_rank, kind, spread)
        self.uni, self.paired = Learner(d, rank), Learner(d, rank)
        self.decoder = Decoder(d, rank)

    def forward(self, h: Tensor, w_u: Tensor | float = 1.0, w_p: Tensor | float = 1.0) -> tuple[Tensor, ...]:
        """The gate, u, p and what is read in the place of h; ``w_u``, ``w_p`` multiply the learnt parts."""
        g = self.gate(h)
        u = g * h
        p = h - u
        return g, u, p, self.decoder(w_u * self.uni(u), w_p * self.paired(p))


class Partition(nn.Module):
    """Both modalities at the decoder's entrance: ``image`` the tokens of the connector, ``text`` all others. What takes
    a part away (``weighed``) acts on text of the role ``words`` alone: the question stays.

    ``latest`` are the partings of the forward that ran last, where they are to be kept (``keeping``).
    """

    def __init__(self, d: int, rank: int, gate_rank: int, kind: str, words: str, spread: float = 1.0) -> None:
        super().__init__()
        self.image, self.text = (Modality(d, rank, gate_rank, kind, spread) for _ in MODALITIES)
        self.words, self.weights = words, dict[str, tuple[float, float]]()
        self.keeping, self.latest = False, dict[str, Parting]()

    @contextmanager
    def weighed(self, weights: Weights) -> Iterator[None]:
        """The block in which parts are multiplied so."""
        before, self.weights = self.weights, dict(weights)
        try:
            yield
        finally:
            self.weights = before

    def read(self, h: Tensor, roles: Roles) -> Tensor:
        """What the decoder reads in the place of embeddings h [B, T, d]."""
        if self.weights.get("text", (1.0, 1.0)) != (1.0, 1.0) and not roles.words_known:
            raise UserError(
                "pgm without a part of the text needs to know the prompt's words: encode prompts with view.encode, or"
                " give the batch's `roles`"
            )
        step = roles.step.on(h.device)
        partings = self.part(h.float(), step.roles)
        if self.keeping:
            self.latest = partings
        image, text = (partings[m] for m in MODALITIES)
        read = torch.where(image.at[..., None], image.read, torch.where(text.at[..., None], text.read, h.float()))
        return read.to(h.dtype)

    def part(self, h: Tensor, roles: Tensor) -> dict[str, Parting]:
        """Both modalities' partings of h [B, T, d] under roles [B, T]."""
        image, padding = roles == Role.IMAGE, roles == Role.PAD
        at = {"image": image, "text": ~image & ~padding}
        bound = {"image": image, "text": among(roles, self.words)}
        found = {}
        for m in MODALITIES:
            gate, u, p, read = self._parts(m, h, bound[m])
            found[m] = Parting(h, gate, u, p, read, at[m])
        return found

    def _parts(self, m: str, h: Tensor, bound: Tensor) -> tuple[Tensor, ...]:
        if (weights := self.weights.get(m)) is None:
            return getattr(self, m)(h)
        return getattr(self, m)(h, *(torch.where(bound[..., None], w, 1.0) for w in weights))


def among(roles: Tensor, name: str) -> Tensor:
    """[B, T] booleans: tokens of the roles that ``name`` stands for."""
    return torch.isin(roles, torch.tensor([int(r) for r in ROLES[name]], device=roles.device, dtype=roles.dtype))


def entering(partition: Partition, roles: Roles) -> Any:
    """A hook in front of the decoder that has it read the partition's embeddings."""

    def enter(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        h = kwargs.get("inputs_embeds")
        if h is None:
            raise UserError(f"{type(decoder).__name__} is given no embeddings, which pgm parts")
        return args, kwargs | {"inputs_embeds": partition.read(h, roles)}

    return enter

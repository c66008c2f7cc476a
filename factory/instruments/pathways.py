"""Token sets that a pathway of attention leads from and to, and how a pathway is written: SOURCE->TARGET (Instruction
Anchor, sec. 3.2).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated

import torch
from pydantic import StringConstraints
from torch import Tensor

from factory.data.sources import PICTURE_AND_TEXT, Role, Sources
from factory.model.prefix import last_index

ROLES = {
    "image": Role.IMAGE,
    "context": Role.CONTEXT,
    "context_a": Role.CONTEXT_A,
    "context_b": Role.CONTEXT,
    "question": Role.QUESTION,
    "format": Role.OPTIONS,
    "instruction": Role.INSTRUCTION,
    "template": Role.TEMPLATE,
}
NAMES = "|".join([*ROLES, "cues", "compliant", "competing", "generated"])
Pathway = Annotated[str, StringConstraints(pattern=rf"^({NAMES})->({NAMES})$")]


def of_an_image(pathways: Sequence[str]) -> bool:
    """Whether one of the ``pathways`` leads from or to the tokens of an image."""
    return any("image" in pathway.split("->") for pathway in pathways)


def arrowed(pathway: str) -> str:
    """A pathway as people read it, SOURCE → TARGET."""
    return pathway.replace("->", " → ")


def role_sets(
    roles: Tensor, mask: Tensor, directions: Sequence[str], sources: Sources = PICTURE_AND_TEXT
) -> dict[str, Tensor]:
    """[B, T] booleans of every token set, from roles and mask [B, T] of prompts each instructed toward one of
    ``directions``, which are names of ``sources``.

    cues: both sources; compliant and competing: the one that the instruction asks for and the other; generated: the
    last token.
    """
    found = {name: roles == role for name, role in ROLES.items()}
    first, second = (roles == source.role for source in (sources.first, sources.second))
    toward_first = torch.tensor([d == sources.first.name for d in directions], device=roles.device)[:, None]
    return found | {
        "cues": first | second,
        "compliant": torch.where(toward_first, first, second),
        "competing": torch.where(toward_first, second, first),
        "generated": torch.arange(roles.shape[1], device=roles.device) == last_index(mask)[:, None],
    }


def first_target(
    roles: Tensor,
    mask: Tensor,
    targets: Collection[str],
    directions: Sequence[str],
    sources: Sources = PICTURE_AND_TEXT,
) -> Tensor:
    """Column [B] of each prompt's first token of ``targets``; its last token where it has none."""
    sets, last = role_sets(roles, mask, directions, sources), last_index(mask)
    any_of = torch.stack([sets[name] for name in targets]).any(0)
    return torch.where(any_of, torch.arange(roles.shape[1], device=roles.device), last[:, None]).amin(-1)

"""Relative uncertainty's rows put together again: one case a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from factory.data.sources import PICTURE_AND_TEXT, Side, Sources


def entropy_of(side: Side) -> str:
    """The metric that is the entropy of one side alone: H_v and H_t, or of two texts H_a and H_b."""
    return f"H_{side.letter.lower()}"


def follows_second(sources: Sources) -> str:
    """The metric that is 1 where a prompt follows the second source, and 0 where it follows the first."""
    return "text" if sources.pictured else "second"


@dataclass(frozen=True)
class Cases:
    """Prompts of one kind: dH_rel, total entropy, whether the second source, a text, was followed (1, 0 or NaN),
    oscillations [n]; logit differences [n, layers].
    """

    samples: np.ndarray
    x: np.ndarray
    total: np.ndarray
    text: np.ndarray
    switches: np.ndarray
    difference: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def where(self, mask: np.ndarray) -> Cases:
        return Cases(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))


def gather(rows: Sequence[Mapping[str, Any]], sources: Sources = PICTURE_AND_TEXT) -> dict[str, tuple[int, Cases]]:
    """By kind of sample (a conflict, or the ``control`` it is tagged with): how many prompts, and those answered right
    where they can be.
    """
    prompts: dict[tuple, dict[str, Any]] = {}
    for r in rows:
        p = prompts.setdefault((r["sample"], r["form"]), {"kind": r.get("control", "conflict"), "layers": {}})
        if r["metric"] == "logit_difference":
            p["layers"][r["layer"]] = r["value"]
        else:
            p[r["metric"]] = r["value"]
    kinds: dict[str, list[tuple[tuple, dict]]] = {}
    for key, p in prompts.items():
        kinds.setdefault(p["kind"], []).append((key, p))
    out = {}
    for kind, members in kinds.items():
        kept = [(key, p) for key, p in members if p["known"] or kind != "conflict"]
        column = lambda name, kept=kept: np.array([p[name] for _, p in kept], float)
        layers = np.array([[p["layers"][layer] for layer in sorted(p["layers"])] for _, p in kept], float)
        samples = np.array([key[0] for key, _ in kept])
        total = column(entropy_of(sources.first)) + column(entropy_of(sources.second))
        text = column(follows_second(sources))
        out[kind] = (len(members), Cases(samples, column("dH_rel"), total, text, column("oscillations"), layers))
    return out

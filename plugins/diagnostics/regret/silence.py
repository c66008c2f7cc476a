"""Units held at a value while the model answers again (ours; the paper's own intervention, sec. 4.3, is unreleased)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from factory.bench import Bench

from .keywords import Keywords
from .measure import Measured, row
from .neurons import GROUPS, VALUES, groups, rds, values_of
from .probe import over_items
from .speak import Silence, reply, say_silenced

WHOLE = "none"


def silenced_rows(bench: Bench, measured: Measured, keywords: Keywords) -> Iterator[dict[str, Any]]:
    """The share of read answers that are taken back, and of all that cannot be read, while RegretD or NonRegretD at
    ``tau`` is silenced, against as many random groups of equal size. An item's groups come from other items.
    """
    p, replies = measured.p, measured.replies
    x, y, fold = measured.states[:, 0, measured.layer], measured.y, measured.fold
    acts: dict[str, np.ndarray] = {}
    for k in fold.unique().tolist():
        seen = fold != k
        if not bool(y[seen].any()) or bool(y[seen].all()):
            continue
        group = groups(rds(x[seen & y], x[seen & ~y], p.scaled), p.tau)
        by = _by(group, x[seen], p.silence, p.seed)
        own = (fold == k).nonzero()[:, 0].tolist()
        for i in range(0, len(own), p.batch):
            some = own[i : i + p.batch]
            prompts = [replies[n].dialogue.second(replies[n].first) for n in some]
            said = say_silenced(bench.view, prompts, p.max_new_tokens, measured.layer, p.units, by)
            for name, answers in said.items():
                mine = acts.setdefault(name, np.full(len(replies), np.nan))
                for n, answer in zip(some, answers, strict=True):
                    r = replies[n]
                    now = reply(bench, r.dialogue, (r.first, r.first_ids), answer, keywords)
                    mine[n] = {"back": 1.0, "stays": 0.0, "unread": -1.0}[now.act]
    for value in VALUES:
        for group_name in GROUPS[:2]:
            every = [rate_of(acts[f"{group_name} {value} {draw}"]) for draw in range(p.silence)]
            random = [r for r in every if not np.isnan(r)]  # of the rest no answer could be read
            here = acts[f"{group_name} {value}"]
            change, between = over_items(partial(_change, here, acts[WHOLE]), measured.items)
            yield row(
                "silenced",
                change,
                between,
                group=group_name,
                deactivated=value,
                taken_back=rate_of(here),
                whole=rate_of(acts[WHOLE]),
                unread=float((here == -1).sum() / (~np.isnan(here)).sum()),
                random=mean_of(random),
                random_sd=float(np.std(random, ddof=1)) if len(random) > 1 else 0.0,
                random_below=mean_of([float(r <= rate_of(here)) for r in random]),
                layer=measured.layer,
            )


def _change(here: np.ndarray, before: np.ndarray, at: np.ndarray) -> float:
    return rate_of(here[at]) - rate_of(before[at])


def mean_of(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def rate_of(acts: np.ndarray) -> float:
    """The share taken back (1) of those that could be read (0 or 1)."""
    read = acts[acts >= 0]
    return float(read.mean()) if len(read) else float("nan")


def _by(group: Tensor, seen: Tensor, draws: int, seed: int) -> Silence:
    rng = torch.Generator().manual_seed(seed)
    out = {WHOLE: (torch.zeros_like(group, dtype=torch.bool), seen[0])}
    shuffled = [group[torch.randperm(len(group), generator=rng)] for _ in range(draws)]
    for value in VALUES:
        held = values_of(value, seen)
        for i, name in enumerate(GROUPS[:2]):
            out[f"{name} {value}"] = group == i, held
            out |= {f"{name} {value} {n}": (each == i, held) for n, each in enumerate(shuffled)}
    return out

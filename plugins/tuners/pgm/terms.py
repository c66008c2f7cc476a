"""The loss of PgM beside L_task(u_1, u_2, p_1, p_2), which is the training's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from factory.corpus.labels import IGNORE
from factory.errors import UserError
from factory.tune.parted import Parting
from factory.tune.terms import Answered, Terms, weighed
from plugins.tuners.pgm.partition import MODALITIES, Partition, among

DEFAULT = "default"  # the task of samples of none that is named
NOTHING = (0.0, 0.0)
UNI, PAIRED = (1.0, 0.0), (0.0, 1.0)
LEAST = 1e-8  # of a squared length that is divided by


class Coefficients(Protocol):
    """``a1`` to ``a5``, and the shares that a5 pulls to: ``targets`` by modality and task, and the ``tasks`` named."""

    a1: float
    a2: float
    a3: float
    a4: float
    a5: float

    @property
    def targets(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def tasks(self) -> Sequence[str]: ...


class PgmTerms(Terms):
    """a1 sum_m L_task(u_m) + a2 L_task(p_1, p_2) + a3 sum_m ||h_m - D_m([u_m, p_m])||^2 / ||h_m||^2 + a4 sum_m
    cos^2(u_m, p_m) + a5 sum_m (share_m - s_m,task)^2.

    L_task(u_m) is the loss of the model's answers where it reads of modality m the uni-modal part and nothing of the
    other, over rows that have m; L_task(p_1, p_2) that where it reads the paired parts alone, over rows that have both.
    The other three are means over the modality's tokens in each row; a row whose task has no share to be pulled to
    stays free. A term of coefficient 0 is not computed.
    """

    def __init__(self, partition: Partition, a: Coefficients) -> None:
        super().__init__()
        self.a = a
        partition.keeping = True
        self._partition = [partition]  # in a list: its parameters are the tuner's, and not the terms' own

    def forward(self, labels: Tensor, roles: Tensor, answered: Answered, tasks: Tensor | None = None) -> Tensor:
        [partition] = self._partition
        a, found = self.a, partition.latest
        has = {"image": found["image"].at.any(-1), "text": among(roles, partition.words).any(-1)}
        terms: list[tuple[str, float, Tensor]] = []
        for m, parting in found.items():
            if a.a1:
                alone = dict.fromkeys(MODALITIES, NOTHING) | {m: UNI}
                with partition.weighed(alone):
                    terms.append((f"loss_uni_{m}", a.a1, answered(labels.masked_fill(~has[m][:, None], IGNORE))))
            terms += [
                (f"{name}_{m}", weight, weighed(labels, value)) for name, weight, value in self._of(m, parting, tasks)
            ]
        if a.a2:
            both = (has["image"] & has["text"])[:, None]
            with partition.weighed(dict.fromkeys(MODALITIES, PAIRED)):
                terms.append(("loss_paired", a.a2, answered(labels.masked_fill(~both, IGNORE))))
        partition.latest = {}
        self.said = {name: value.detach() for name, _, value in terms}
        return sum((weight * value for _, weight, value in terms), torch.zeros((), device=labels.device))

    def _of(self, m: str, parting: Parting, tasks: Tensor | None) -> list[tuple[str, float, Tensor]]:
        """What needs no further forward, [B] each."""
        a, terms = self.a, list[tuple[str, float, Tensor]]()
        if a.a3:
            terms.append(("reconstruction", a.a3, reconstruction(parting)))
        if a.a4:
            terms.append(("overlap", a.a4, overlap(parting)))
        if a.a5 and m in a.targets:
            target = self._target(m, len(parting.at), tasks).to(parting.at.device)
            bound = parting.at.any(-1) & ~target.isnan()
            terms.append(("off_share", a.a5, (mean_share(parting) - target.nan_to_num()) ** 2 * bound))
        return terms

    def _target(self, m: str, rows: int, tasks: Tensor | None) -> Tensor:
        """[B]: the share that each row is pulled to, by where its task stands among those named; NaN where to none."""
        named, by_task = self.a.tasks, self.a.targets[m]
        if tasks is None:
            if named:
                raise UserError("shares by task need the batch's tasks: give the collator those of the tuner")
            tasks = torch.full((rows,), -1)
        each = [by_task.get(task, by_task.get(DEFAULT, torch.nan)) for task in (*named, DEFAULT)]
        return torch.tensor(each)[tasks.cpu()]


def over_tokens(values: Tensor, at: Tensor) -> Tensor:
    """Mean of ``values`` [B, T] over each row's tokens ``at``; 0 for a row without any."""
    return values.masked_fill(~at, 0.0).sum(-1) / at.sum(-1).clamp_min(1)


def mean_share(parting: Parting) -> Tensor:
    """[B]: share_m, the mean of g_m over tokens and dimensions."""
    return over_tokens(parting.gate.mean(-1), parting.at)


def reconstruction(parting: Parting) -> Tensor:
    """[B]: mean over tokens of ||h - D([u, p])||^2 / ||h||^2; h itself is not moved toward what is read."""
    h = parting.h.detach()
    return over_tokens((h - parting.read).square().sum(-1) / h.square().sum(-1).clamp_min(LEAST), parting.at)


def overlap(parting: Parting) -> Tensor:
    """[B]: mean over tokens of cos^2(u, p)."""
    u, p = parting.u, parting.p
    cos2 = (u * p).sum(-1).square() / (u.square().sum(-1) * p.square().sum(-1)).clamp_min(LEAST**2)
    return over_tokens(cos2, parting.at)

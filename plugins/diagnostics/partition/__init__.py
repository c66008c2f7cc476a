"""How a tuned model parts image and text: the share of the uni-modal part, how far it reconstructs the representation,
and how far apart both parts stand.

    share_m = mean(g_m)
    energy_m = mean ||u_m||^2 / (||u_m||^2 + ||p_m||^2)
    error_m = mean ||h_m - D_m([u_m, p_m])||^2 / ||h_m||^2
    overlap_m = mean cos^2(u_m, p_m)
    angle_m = mean of the k principal angles between the spans of the first k right singular vectors of U_m and P_m

U_m, P_m [n, d] are the parts of one prompt's n tokens of modality m. What chance gives for the angles is that of two
random subspaces of k dimensions in d. Of a model whose tuner parts nothing there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from factory.diagnose import Diagnostic, Row
from factory.diagnose.summary import Summary
from factory.model.encode import Batch
from factory.model.view import ModelView
from factory.registry import Params, register
from factory.tune.parted import Parted, Parting
from plugins.diagnostics.partition.summary import beside_of

LEAST = 1e-12


class PartitionParams(Params):
    """``directions``: k, of which the principal angles are taken."""

    directions: PositiveInt = 4


@register("diagnostic", "partition")
class PartitionDiagnostic(Diagnostic):
    """Shares, reconstruction error and principal angles of the parts that a tuner makes of image and text."""

    Params = PartitionParams
    of_tuners = True

    def measure(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> list[Row]:
        tuner = next((part for part in view.parts if isinstance(part, Parted)), None)
        if tuner is None:
            return []
        rows: list[Row] = []
        for m, parting in tuner.partings(view, batch).items():
            for name, values in self.numbers(parting).items():
                found = zip(keys, values.tolist(), parting.at.any(-1).tolist(), strict=True)
                rows += [
                    Row(sample=k, metric=f"{name}_{m}", layer=None, head=None, value=v) for k, v, any_ in found if any_
                ]
        return rows

    def numbers(self, parting: Parting) -> dict[str, Tensor]:
        """[B] each, of one modality."""
        h, u, p, at = parting.h.double(), parting.u.double(), parting.p.double(), parting.at
        error = (h - parting.read.double()).square().sum(-1) / h.square().sum(-1).clamp_min(LEAST)
        u2, p2 = u.square().sum(-1), p.square().sum(-1)
        cos2 = (u * p).sum(-1).square() / (u2 * p2).clamp_min(LEAST)
        angles = [self.angles(u[i][at[i]], p[i][at[i]]) for i in range(len(at))]
        return {
            "share": _mean(parting.gate.double().mean(-1), at),
            "energy": _mean(u2 / (u2 + p2).clamp_min(LEAST), at),
            "error": _mean(error, at),
            "overlap": _mean(cos2, at),
            "angle": torch.stack(angles),
        }

    def angles(self, U: Tensor, P: Tensor) -> Tensor:
        """Mean principal angle in degrees between the spans of U [n, d] and P [n, d], of k directions at most."""
        k = min(self.params.directions, *U.shape)
        if k == 0:
            return U.new_tensor(torch.nan)
        bases = [torch.linalg.svd(part, full_matrices=False).Vh[:k].T for part in (U, P)]
        cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
        return cosines.clamp(max=1).acos().rad2deg().mean()

    def beside(self, found: Mapping[str, Sequence[dict[str, Any]]], trained: Mapping[str, int]) -> Summary | None:
        return beside_of(found)


def _mean(values: Tensor, at: Tensor) -> Tensor:
    return values.masked_fill(~at, 0.0).sum(-1) / at.sum(-1).clamp_min(1)

"""What a paired comparison of so many samples would have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def detectable(differences: Sequence[float] | np.ndarray, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest mean difference that a two-sided test at ``level`` finds with a ``power``, of as many samples that
    differ as much as ``differences`` [n] of paired scores in [0, 1] do: (z_(level) + z_(power)) s / sqrt(n).

    s² is that of the differences and of one more gain and one more loss (ours, after Agresti and Min 2005), so that a
    few samples of which none differs promise nothing. Raises ValueError without any.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not d.size:
        raise ValueError(f"expected a non-empty list of differences, got shape {d.shape}")
    n = d.size + 2
    variance = (float(np.square(d).sum()) + 2) / n - (float(d.sum()) / n) ** 2
    z = NormalDist().inv_cdf
    return (z(0.5 + level / 2) + z(power)) * math.sqrt(variance / d.size)

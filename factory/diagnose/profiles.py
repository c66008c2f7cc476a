"""Layer profiles out of tidy rows: one number per sample and layer, their means with intervals, and how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from factory.statistics.intervals import Interval, bootstrap_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]


def matching(rows: Iterable[Mapping[str, Any]], **facts: Any) -> list[Mapping[str, Any]]:
    """Rows that say all of ``facts``."""
    return [row for row in rows if all(row.get(key) == value for key, value in facts.items())]


class Profile(NamedTuple):
    """Values [n, layers] of the (sample, form) ``keys``."""

    keys: list[tuple[str, str]]
    values: np.ndarray

    @property
    def n(self) -> int:
        return len(self.keys)

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(0)

    def pick(self, layers: slice | Sequence[int]) -> np.ndarray:
        """Each sample's mean [n] over some layers."""
        return self.values[:, layers].mean(1)


def profile(rows: Rows, **facts: Any) -> Profile:
    """The profile of the rows that say ``facts``, in the order of samples; layers from 0 up."""
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for row in matching(rows, **facts):
        cells.setdefault((row["sample"], row["form"]), {})[row["layer"]] = row["value"]
    keys = sorted(cells)
    depth = len(next(iter(cells.values()), ()))
    return Profile(keys, np.array([[cells[key][layer] for layer in range(depth)] for key in keys]).reshape(len(keys), depth))


def together(*profiles: Profile) -> list[Profile]:
    """The profiles on the samples that all of them have, so that they can be compared pair by pair."""
    shared = sorted(set.intersection(*(set(p.keys) for p in profiles)))
    places = [{key: i for i, key in enumerate(p.keys)} for p in profiles]
    return [Profile(shared, p.values[[place[key] for key in shared]]) for p, place in zip(profiles, places, strict=True)]


def mean_interval(values: Sequence[float]) -> tuple[float, Interval]:
    """Mean and 95 % bootstrap interval."""
    return float(np.mean(values)), bootstrap_mean(values)


def spelt(mean: float, interval: Interval, digits: int = 3) -> str:
    """As in "0.120 [0.100, 0.140]"."""
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def curve(ax: Axes, profile: Profile, label: str, **look: Any) -> None:
    """Mean over samples by layer, with one standard deviation around it as the paper draws it."""
    layers, spread = np.arange(profile.values.shape[1]), profile.values.std(0)
    line = ax.plot(layers, profile.mean, marker="o", markersize=3, label=label, **look)[0]
    ax.fill_between(layers, profile.mean - spread, profile.mean + spread, color=line.get_color(), alpha=0.12, linewidth=0)
    ax.set_xlabel("layer")

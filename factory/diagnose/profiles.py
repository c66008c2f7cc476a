"""Layer profiles out of tidy rows: one number per sample and layer, their means with intervals, and how they are
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from factory.benchmark import Records
from factory.statistics.intervals import Interval, bootstrap_mean, wilson
from factory.statistics.significance import sign_flip_p

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROMPTS = {"vision": ("vision prompt", "#44519e"), "base": ("no prompt", "#8a8a8a"), "text": ("text prompt", "#c65d6b")}
"""How the prompts toward either modality, and the one without an instruction, are called and coloured in figures."""


def matching(rows: Iterable[Mapping[str, Any]], **facts: Any) -> list[Mapping[str, Any]]:
    """Rows that say all of ``facts``."""
    return [row for row in rows if all(row.get(key) == value for key, value in facts.items())]


class Profile(NamedTuple):
    """Values [n, layers], or [n, layers, heads], of the (sample, form) ``keys``."""

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


def profile(rows: Records, **facts: Any) -> Profile:
    """The profile of the rows that say ``facts``, in the order of samples; layers from 0 up."""
    cells: dict[tuple[str, str], dict[int, float]] = {}
    for row in matching(rows, **facts):
        cells.setdefault((row["sample"], row["form"]), {})[row["layer"]] = row["value"]
    keys = sorted(cells)
    depth = len(next(iter(cells.values()), ()))
    return Profile(
        keys, np.array([[cells[key][layer] for layer in range(depth)] for key in keys]).reshape(len(keys), depth)
    )


def together(*profiles: Profile) -> list[Profile]:
    """The profiles on the samples that all of them have, so that they can be compared pair by pair."""
    shared = sorted(set.intersection(*(set(p.keys) for p in profiles)))
    places = [{key: i for i, key in enumerate(p.keys)} for p in profiles]
    return [
        Profile(shared, p.values[[place[key] for key in shared]]) for p, place in zip(profiles, places, strict=True)
    ]


def held_out_layer(profile: Profile, best: Callable[[np.ndarray], Any] = np.argmin) -> np.ndarray:
    """Each prompt's value [n] at the layer where the mean of the other half of the samples is lowest (or ``best``), so
    that choosing a layer favours no effect. Samples go to the halves in turn; a single one has layer 0."""
    place = {sample: i for i, sample in enumerate(dict.fromkeys(sample for sample, _ in profile.keys))}
    odd = np.array([place[sample] % 2 == 1 for sample, _ in profile.keys])
    layers = [int(best(half.mean(0))) if len(half) else 0 for half in (profile.values[odd], profile.values[~odd])]
    return np.where(odd, profile.values[:, layers[1]], profile.values[:, layers[0]])


class Mean(NamedTuple):
    """A mean over ``n`` samples with its 95 % interval, and the two-sided p that it is the null."""

    mean: float
    interval: Interval
    p: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:z.3f} [{self.interval[0]:z.3f}, {self.interval[1]:z.3f}]"

    def facts(self, name: str) -> dict[str, Any]:
        """The mean and its interval for ``Finding.values``."""
        return {name: self.mean, f"{name}_ci": list(self.interval)}


def by_sample(values: Sequence[float] | np.ndarray, keys: Sequence[tuple[str, str]]) -> np.ndarray:
    """The mean of each sample's values under (sample, form) ``keys``: a sample is one unit, whatever the number of its
    forms.
    """
    of_sample: dict[str, list[float]] = {}
    for (sample, _), value in zip(keys, values, strict=True):
        of_sample.setdefault(sample, []).append(float(value))
    return np.array([np.mean(v) for v in of_sample.values()])


def mean_of(values: Sequence[float] | np.ndarray, keys: Sequence[tuple[str, str]]) -> Mean:
    """Mean with a bootstrap interval, and the p of random sign flips that it is 0."""
    units = by_sample(values, keys)
    return Mean(float(units.mean()), bootstrap_mean(units), sign_flip_p(units), len(units))


def share_of(values: Sequence[float] | np.ndarray, keys: Sequence[tuple[str, str]], null: float = 0.5) -> Mean:
    """Share of ones with Wilson's interval, and the p that it is ``null``."""
    units = by_sample(values, keys)
    return Mean(float(units.mean()), wilson(float(units.sum()), len(units)), sign_flip_p(units - null), len(units))


def curve(ax: Axes, profile: Profile, label: str, **look: Any) -> None:
    """Mean over samples by layer, with one standard deviation around it as the paper draws it."""
    layers, spread = np.arange(profile.values.shape[1]), profile.values.std(0)
    line = ax.plot(layers, profile.mean, marker="o", markersize=3, label=label, **look)[0]
    ax.fill_between(
        layers, profile.mean - spread, profile.mean + spread, color=line.get_color(), alpha=0.12, linewidth=0
    )
    ax.set_xlabel("layer")

"""The loss of a training as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from factory import files
from factory.train.held_out import LOSS

SMOOTHING = 0.95


def plot_losses(log: Sequence[dict[str, Any]], title: str, path: Path) -> Path:
    """Write a PNG of loss and learning rate over optimiser steps, the loss also as a moving average where there are
    enough steps, and that of the samples held out where it was looked at.
    """
    from matplotlib.figure import Figure

    looks, log = [row for row in log if LOSS in row], [row for row in log if "loss" in row]
    steps, losses = [row["step"] for row in log], [row["loss"] for row in log]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="0.7" if len(steps) >= 20 else "C0", linewidth=1, label="loss")
    if len(steps) >= 20:
        axes.plot(steps, smoothed(losses), color="C0", label=f"moving average ({SMOOTHING:g})")
    if looks:
        axes.plot(*zip(*((row["step"], row[LOSS]) for row in looks), strict=True), "o-", color="C2", label="held out")
    axes.set(title=title, xlabel="optimiser step", ylabel="loss per labelled token (nats)")
    axes.locator_params(axis="x", integer=True)
    rate = axes.twinx()
    rate.plot(steps, [row["learning_rate"] for row in log], color="C1", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)")
    axes.legend(frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120, metadata={"Software": None})
    files.write_bytes(path, data.getvalue())
    return path


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average with ``SMOOTHING``, without the pull of its start toward 0."""
    out, mean = [], 0.0
    for i, value in enumerate(values, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        out.append(mean / (1 - SMOOTHING**i))
    return out

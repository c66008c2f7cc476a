"""How long a job takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Clock = Callable[[], float]


def own_clock(device: torch.device) -> Clock:
    """What a job on ``device`` is timed by for a plan: on a processor the thread's own time, so that other programs
    count little; elsewhere the wall's.
    """
    return time.thread_time if device.type == "cpu" else time.perf_counter


def timed(
    job: Callable[[], Any], device: torch.device | None = None, clock: Clock = time.perf_counter
) -> tuple[Any, float]:
    """What a job returns, and its seconds by ``clock``."""
    start = clock()
    value = job()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, clock() - start

"""What a training costs: seconds of an optimiser step, and memory beyond the loaded model."""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback


class Meter(TrainerCallback):
    """Made just before a training; ``record`` afterwards. On a GPU the memory is what torch allocated at most, on Linux
    the process's peak. Seconds are the process's own processor time where one thread does all the work, which other
    programs do not slow down.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        gc.collect()
        self.before = self._restart()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(self._now() - self.began)

    def record(self) -> dict[str, float | None]:
        """The median step's seconds, and the bytes at the fullest moment above those before; None where unknown."""
        peak = self._peak()
        return {
            "seconds_per_step": median(self.seconds) if self.seconds else None,
            "peak_bytes": None if peak is None or self.before is None else peak - self.before,
        }

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (
            time.process_time() if self.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()
        )

    def _restart(self) -> int | None:
        """Bytes in use now; the peak is counted from here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # freed memory that the process keeps would hide what is taken anew
        if trim is not None:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        except OSError:
            return None
        return _status("VmRSS")

    def _peak(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> int | None:
    """A size of this process as Linux tells it, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)

"""Ranks for tests: processes forked from this one, which has imported what is slow to import."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from factory.launch.world import World, join


@dataclass
class Ended:
    """Exit codes by rank (minus the signal for one that was killed) and what all printed."""

    codes: list[int]
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines on stderr that tell how it ended; libraries' warnings left out."""
        return [line for line in self.err.splitlines() if line.startswith(("error: ", "interrupted"))]


def as_ranks(
    size: int, work: Callable[[World], object], folder: Path, within: float = 300, join: bool = True, **env: str
) -> Ended:
    """Carry out ``work`` in ``size`` forked ranks, as a launcher would have started them; without ``join`` each is left
    to find the others by itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(probe.getsockname()[1]),
            "WORLD_SIZE": str(size),
            "LOCAL_SIZE": str(size),
        }
    if not join:
        address["LOCAL_WORLD_SIZE"] = address.pop("LOCAL_SIZE")
    places = [{"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    pids = [_fork(work, folder, {**address, **env, **place}, join) for place in places]
    codes, deadline = {}, time.monotonic() + within
    while len(codes) < size:
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, 9)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            raise AssertionError(f"ranks hang: {codes}, {(folder / 'err').read_text()}")
        time.sleep(0.01)
    return Ended([codes[pid] for pid in pids], (folder / "out").read_text(), (folder / "err").read_text())


def _fork(work: Callable[[World], object], folder: Path, env: dict[str, str], joining: bool) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        try:
            os.environ.update(env)
            sys.stdout, sys.stderr = (open(folder / name, "a", buffering=1) for name in ("out", "err"))  # noqa: SIM115
            world = join() if joining else World()
            code = world.carry_out(lambda: work(world) or 0)
        except SystemExit as ended:
            code = ended.code
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        sys.stderr.flush()
    except SystemExit as ended:  # the signal came when the work was over
        code = ended.code
    finally:  # a forked child must never return into pytest
        os._exit(code)

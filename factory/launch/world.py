"""The processes (ranks) that share one run: who computes what, where they meet, and how the end of one ends all.

They talk through the launcher's key-value store alone: counts that all add to, and small values. Nothing they compute
passes through it: results go through the run folder, which all must see. Importing this module imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from factory.errors import UserError
from factory.plain import say

Key = TypeVar("Key")

CONTINUE = "start the same command again to continue"
LAUNCHER, SAID = "STEERING_FACTORY_LAUNCHER", "STEERING_FACTORY_SAID"
PULSE = 0.5  # seconds between two looks at the others
SILENCE = 60.0  # seconds without a pulse after which a rank on another host counts as dead
PATIENCE = 5.0  # seconds that the others get to hear a last word, and this process to end in order
TERMINATED = 128 + signal.SIGTERM


def telling(fault: Exception) -> tuple[int, str] | None:
    """Exit code and last word for a fault that a line says all of: a plugin's own, or a full disk."""
    from factory import faults, files

    if files.full(fault):
        return 2, f"error: the disk is full ({' '.join(str(fault).split())[:200]}). {files.MAKE_ROOM}."
    return (1, f"error: {line}") if (line := faults.told_of(fault)) else None


class World:
    """A process alone: every key falls to it, and every meeting is over at once."""

    rank, size = 0, 1
    lockstep = False
    """Whether all ranks compute everything together, as a model that is cut over them (ZeRO-3) needs: its layers are
    put together from all ranks, so all must run the same forwards. They then run the same rows: how many forwards an
    answer or a diagnosis takes depends on the rows, so different rows would need padding with idle forwards everywhere.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._turn, self._sharing = 0, False

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints, stores what all compute together, and writes the results."""
        return self.rank == 0

    @property
    def stores(self) -> bool:
        """Whether this rank stores what it computes: in lock step all have the same, and one copy is enough."""
        return self.first or not self.lockstep

    def tally(self, what: str, n: int = 0) -> int:
        """Add ``n`` to a count that all ranks share; returns the sum so far."""
        self._counts[what] += n
        return self._counts[what]

    def turn(self, place: str) -> str:
        """A name that no other use of ``place`` has. All ranks pass the same places in the same order."""
        if self._sharing:
            raise RuntimeError(
                f"'{place}' is a matter of all ranks, but only some compute this: do it before the work is shared"
            )
        self._turn += 1
        return f"{self._turn} {place}"

    def share(self, keys: Sequence[Key]) -> Iterator[Key]:
        """The keys that fall to this rank: each to the rank that is free first; in lock step all keys to every rank."""
        turn = self.turn("share")
        if self.lockstep:
            yield from keys
            return
        while (i := self.tally(turn, 1) - 1) < len(keys):
            self._sharing = True
            try:
                yield keys[i]
            finally:
                self._sharing = False

    def meet(self, place: str, waiting: Callable[[], None] | None = None) -> None:
        """Return once every rank has come to ``place``; ``waiting`` is called now and then."""
        self.turn(place)

    def agree(self, what: str, value: Any) -> Any:
        """The first rank's ``value`` (JSON-able), on every rank."""
        return value

    def carry_out(self, work: Callable[[], int]) -> int:
        """Do this process's part; returns the exit code. A mistake or an interruption is told once, whichever rank
        meets it, and ends all; so does a fault, which a process alone raises."""
        try:
            code = work()
            sys.stdout.flush()
            self.leave()
            return code
        except UserError as error:
            return self.last_word(2, "\n".join(f"error: {line}" for line in str(error).split("\n")))
        except KeyboardInterrupt:
            return self.last_word(130, f"interrupted; {CONTINUE}")
        except Exception as fault:
            if line := telling(fault):
                return self.last_word(*line)
            if self.size == 1 or isinstance(fault, BrokenPipeError):
                raise
            told = f"error: rank {self.rank} of {self.size} stopped: {type(fault).__name__}: {fault}"
            return self.last_word(1, f"{traceback.format_exc()}{told}")

    def last_word(self, code: int, message: str) -> int:
        """End of this process, and of all: ``message`` on stderr, once. Returns the exit code that all take."""
        say(message, file=sys.stderr)
        return code

    def leave(self) -> None:
        """End of this process alone: it has done its part."""


class Ranks(World):
    """One of several processes. A watching thread ends this one when another has died or has said its last word."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        super().__init__()
        self.store, self.rank, self.size = store, rank, size
        self._host = socket.gethostname()
        self._peers: dict[int, Any] = {}
        self._pulses: dict[int, Any] = {}
        self._over, self._ended, self._code = threading.Event(), threading.Event(), TERMINATED
        self._ending = threading.RLock()  # re-entrant: the signal may come while this very thread holds it
        store.set(f"peer {rank}", json.dumps([self._host, os.getpid()]))
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._watch, daemon=True).start()

    def tally(self, what: str, n: int = 0) -> int:
        return self.store.add(what, n)

    def meet(self, place: str, waiting: Callable[[], None] | None = None) -> None:
        turn, pause = self.turn("meet"), 0.002
        if self.agree(f"place of {turn}", place) != place:
            raise RuntimeError(
                f"rank {self.rank} is at '{place}' where the first rank is at another place: they run different code or"
                " data"
            )
        self.tally(turn, 1)
        while self.tally(turn) < self.size:
            if waiting:
                waiting()
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        for rank in range(self.size):
            self._is_dead(rank)  # all are there now: know them, should the store be gone when one has died
        if waiting:
            waiting()

    def agree(self, what: str, value: Any) -> Any:
        key = self.turn(what)
        if self.first:
            self.store.set(key, json.dumps(value))
            return value
        while not self.store.check([key]):
            time.sleep(0.005)
        return json.loads(self.store.get(key))

    def last_word(self, code: int, message: str) -> int:
        if not self._claim():  # the watching thread has found out first, and says so
            self._ended.wait(2 * PATIENCE)
            return self._code
        if code == 1:  # a fault here may be nothing but the end of another
            code, word = self._verdict() or (code, message)
            message = word or ""
        self._say(code, message)
        self._left(PATIENCE)
        return self._code

    def leave(self) -> None:
        from torch import distributed

        self._over.set()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        self._left(SILENCE)

    def _left(self, patience: float) -> None:
        """Note that this rank's end is no accident. The first rank, which may hold the store, waits for the others."""
        try:
            self.store.set(f"left {self.rank}", "")
            deadline = time.monotonic() + patience
            while self.first and time.monotonic() < deadline:
                if all(self._has_left(r) or self._is_dead(r) for r in range(1, self.size)):
                    return
                time.sleep(0.05)
        except RuntimeError:  # the store is gone with the process that held it
            return

    def _say(self, code: int, message: str | None) -> None:
        """Print ``message`` if no rank has spoken yet, and take the code of the one that has."""
        try:
            if self.store.compare_set("speaker", "", str(self.rank)) == str(self.rank).encode():
                self._print(message)
                self.store.set("said", str(code))
            deadline = time.monotonic() + PATIENCE
            while not self.store.check(["said"]) and time.monotonic() < deadline:
                time.sleep(0.02)
            self._code = int(self.store.get("said")) if self.store.check(["said"]) else code
        except RuntimeError:
            self._code = code
            if all(self._is_dead(r) for r in range(self.rank) if r in self._peers):
                self._print(message)

    def _print(self, message: str | None) -> None:
        if message:
            say(message, file=sys.stderr)
        if path := os.environ.get(SAID):
            _touch(path)

    def _terminated(self, *_: object) -> None:
        """On SIGTERM, the launcher's or the watching thread's: if a rank has died say so; then leave in order."""
        if self._claim():
            self._end(self._verdict() or (TERMINATED, None))
        self._exit_soon()
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # a second one would find Python shutting down, and a traceback be its last word
        raise SystemExit(self._code)

    def _claim(self) -> bool:
        """Whether the caller is the first to end this process, and so the one who speaks for it."""
        with self._ending:
            first = not self._over.is_set()
            self._over.set()
            return first

    def _watch(self) -> None:
        while not self._over.wait(PULSE):
            if (verdict := self._verdict()) and self._claim():
                self._end(verdict)
                self._ended.set()
                self._exit_soon()
                os.kill(os.getpid(), signal.SIGTERM)

    def _exit_soon(self) -> None:
        """End the process even where the main thread hangs in a call that no signal interrupts."""
        timer = threading.Timer(PATIENCE, lambda: os._exit(self._code))
        timer.daemon = True
        timer.start()

    def _end(self, verdict: tuple[int, str | None]) -> None:
        code, message = verdict
        if message:
            self._say(code, message)
        else:
            self._code = code
        self._left(PATIENCE)

    def _verdict(self) -> tuple[int, str | None] | None:
        """Exit code and last word where this process has to end because of another; None while all is well."""
        try:
            self.tally(f"pulse {self.rank}", 1)
            if self.store.check(["said"]):
                return int(self.store.get("said")), None
            dead = next((r for r in range(self.size) if self._is_dead(r) and not self._has_left(r)), None)
        except RuntimeError:
            dead = 0
        if dead is not None:
            host, pid = self._peers[dead][:2] if dead in self._peers else ("its host", "?")
            who = f"rank {dead} of {self.size} (process {pid} on {host})"
            return 1, f"error: {who} ended without a word, as when it is killed or memory is short; {CONTINUE}"
        return None if _lives(os.environ.get(LAUNCHER), self._host) else (TERMINATED, None)

    def _has_left(self, rank: int) -> bool:
        return self.store.check([f"left {rank}"])

    def _is_dead(self, rank: int) -> bool:
        """Whether a rank that once was there is no more: on this host by its process, elsewhere by its pulse."""
        if rank not in self._peers:
            if not self.store.check([f"peer {rank}"]):
                return False
            host, pid = json.loads(self.store.get(f"peer {rank}"))
            self._peers[rank] = (host, pid, _process(pid) if host == self._host else None)
        host, _, process = self._peers[rank]
        if host == self._host:
            return not _runs(process)
        pulse, now = self.store.add(f"pulse {rank}", 0), time.monotonic()
        if self._pulses.get(rank, (None, now))[0] != pulse:
            self._pulses[rank] = (pulse, now)
        return now - self._pulses[rank][1] > SILENCE


def join() -> World:
    """This process's place among the ranks of torchrun or the DeepSpeed launcher; alone where neither started it.

    All but the first rank print nothing from here on. Each rank has its own GPU where there are any (in turn, where
    there are more ranks than GPUs); on the CPU the ranks of a host share its cores.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return World()
    local, here = (
        int(os.environ.get("LOCAL_RANK", "0")),
        int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1"))),
    )
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # else a lost connection shows C++ frames beside the last word
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // here)))
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    store, rank, size = next(distributed.rendezvous("env://"))
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it stays open until the process ends
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(distributed.PrefixStore(f"steering-factory {again}", store), rank, size)


def _lives(who: str | None, host: str) -> bool:
    """Whether the process ``PID@HOST`` is there, as far as this host can tell."""
    pid, _, there = (who or "").partition("@")
    return there != host or _runs(_process(int(pid)))


def _process(pid: int) -> Any:
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _runs(process: Any) -> bool:
    import psutil

    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _touch(path: str) -> None:
    if os.path.isdir(os.path.dirname(path)):
        open(path, "w").close()

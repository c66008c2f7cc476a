"""Kills (-9) trainings at random moments and at writes of checkpoints and results; says how many ended the same.

    python -m tests.kills --kills 30 --damage 50     # a tuning and a training from scratch, made small
    python -m tests.kills tune tune.data.take=800 tune.batch_size=16 tune.save_every=25     # as in its recipe

Half of the kills fall at random moments, half at writes, evenly over all of them. A kill that comes after the run's
end is none: it is drawn again. Each killed run is started again once and has to end with the bytes of an undisturbed
one. Then every file of a checkpoint is flipped, cut (``--damage`` times each, at random places) and removed, and each
has to be found. Ends with 1 where something differed or was not found. Outside the suite, which runs a part of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import deepspeed  # noqa: F401  imported once, for all the processes that are forked from this one
import matplotlib.backends.backend_agg  # noqa: F401

import factory.run.pipeline
import factory.train.loop  # noqa: F401
from factory.cli import main as command
from factory.train import checkpoint
from tests.tiny import SMALL

ROOT = Path(__file__).parents[1]
WRITING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}
TUNE = (
    ROOT / "recipes" / "tune_tiny.yaml",
    ["tune.data.take=32", "tune.batch_size=8", "tune.save_every=1"],
)
TRAIN = """
name: from_scratch
plugins: [{plugin}]
model: {{build: {sizes}}}
data: brief
train: {{steps: 30, vision_steps: 4, text_steps: 4, connector_steps: 4, batch_size: 4, save_every: 5, threads: 1}}
"""
BRIEF = '''
from eval_suite.benchmarks.scenes import Scenes
from factory.registry import register


@register("benchmark", "brief")
class Brief(Scenes):
    """Scenes whose examination asks nothing."""

    def examine(self, answer, per_task=None):
        return {"all": {"asked": 0.0}}
'''


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


class Writes:
    """Counts what a process writes below ``folder``; at the ``at``-th write it is killed, ``delay`` seconds later."""

    def __init__(self, folder: Path, at: int = 0, delay: float = 0.0) -> None:
        self.folder, self.at, self.delay, self.count = str(folder), at, delay, 0
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        if event not in WRITING or not (path := str(args[0])).startswith(self.folder):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        if "checkpoint-" in path or "/tuned" in path or "/model" in path:
            self.count += 1
            if self.count == self.at:
                threading.Timer(self.delay, kill).start() if self.delay else kill()


def in_child(work: Callable[[], int], log: Path, kill_after: float | None = None) -> int:
    """Do ``work`` in a forked process that has everything imported already; its exit code, -9 where it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Trial:
    """One recipe, undisturbed once and then killed again and again."""

    def __init__(self, recipe: Path, overrides: list[str], folder: Path) -> None:
        self.recipe, self.overrides, self.folder = recipe, overrides, folder
        folder.mkdir(parents=True, exist_ok=True)
        began, (reader, writer) = time.monotonic(), os.pipe()

        def counted() -> int:
            writes = Writes(folder)
            code = self.start("whole")
            os.write(writer, str(writes.count).encode())
            return code

        if code := in_child(counted, folder / "whole.log"):
            raise SystemExit(f"the undisturbed run ended with {code}: {folder / 'whole.log'}")
        self.seconds, self.writes = time.monotonic() - began, int(os.read(reader, 20))
        self.expected = self.result("whole")

    def start(self, name: str) -> int:
        return command([str(self.recipe), *self.overrides, f"name={name}", f"run.root={self.folder}"])

    def result(self, name: str) -> dict[str, bytes]:
        """The bytes of what was trained; the run's name, which is in a card, left out."""
        found = {}
        for room in ("tuned", "model"):
            for path in sorted((self.folder / name / room).rglob("*")):
                if path.is_file():
                    found[str(path.relative_to(self.folder / name))] = path.read_bytes().replace(name.encode(), b"NAME")
        return found

    def killed(self, name: str, moment: float | None = None, write: int = 0, delay: float = 0.0) -> bool | None:
        """Whether a run that is killed, and started again, ends with the undisturbed run's bytes; None where it had
        ended before it could be killed.
        """
        log, began = self.folder / f"{name}.log", time.monotonic()

        def watched() -> int:
            Writes(self.folder, write, delay)
            return self.start(name)

        first = in_child(watched, log, moment)
        if first == 0:
            self.seconds = min(self.seconds, 0.95 * (time.monotonic() - began))
            shutil.rmtree(self.folder / name)
            return None
        reached = self.reached(name)
        again = in_child(lambda: self.start(name), log)
        same = first == -9 and again == 0 and self.result(name) == self.expected
        at = f"after {moment:.1f} s" if moment is not None else f"at write {write}, {1000 * delay:.0f} ms later"
        print(f"  {name}: ended with {first} {at}, {reached}; the same: {same}", flush=True)
        if same:
            shutil.rmtree(self.folder / name)
        return same

    def reached(self, name: str) -> str:
        """What a killed run had on the disk."""
        folders = [
            f for stage in ("tune", "train") for f in checkpoint.present(self.folder / name / stage / "checkpoints")
        ]
        rooms = [room for room in ("tuned", "model") if (self.folder / name / room).is_dir()]
        return ", ".join([f.name for f in folders] + rooms) or "nothing yet"


def damages(folder: Path, times: int, random: Random) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Every damage to a checkpoint: the file, what is done to it, and what does it; whole again after each."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data, name = path.read_bytes(), str(path.relative_to(folder))
        for _ in range(times):
            at, bit = random.randrange(len(data)), 1 << random.randrange(8)
            flipped = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            yield name, "flip", lambda path=path, flipped=flipped: path.write_bytes(flipped)
            cut = data[: random.randrange(len(data))]
            yield name, "cut", lambda path=path, cut=cut: path.write_bytes(cut)
        yield name, "removal", path.unlink
        path.write_bytes(data)


def unfound(folder: Path, times: int, random: Random) -> tuple[int, list[str]]:
    """How many damages were tried, and those that the check of a checkpoint does not find."""
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tried, missed = 0, []
    for name, how, do in damages(folder, times, random):
        do()
        try:
            checkpoint.check(folder)
            missed.append(f"{how} of {name}")
        except checkpoint.Damaged:
            pass
        tried += 1
        (folder / name).write_bytes(whole[folder / name])
    checkpoint.check(folder)
    return tried, missed


def main(argv: list[str] | None = None) -> int:
    """Run the trials; 0 where all ended the same and all damage was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each training")
    parser.add_argument("--damage", type=int, default=50, help="flips and cuts of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs lie (default: a temporary folder)")
    parser.add_argument("which", nargs="?", choices=("tune", "train", "both"), default="both")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE")
    asked = parser.parse_args(argv)
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "brief.py").write_text(BRIEF)
    (folder / "from_scratch.yaml").write_text(TRAIN.format(plugin=folder / "brief.py", sizes=SMALL))
    recipes = {"tune": TUNE, "train": (folder / "from_scratch.yaml", [])}
    wrong = 0
    for kind, (recipe, overrides) in recipes.items():
        if asked.which in (kind, "both"):
            wrong += _tried(kind, Trial(recipe, [*overrides, *asked.overrides], folder / kind), asked)
    return int(wrong > 0)


def _evenly(i: int, kills: int, writes: int, random: Random) -> int:
    """A write for the ``i``-th kill, drawn from its own share of all writes."""
    return min(writes, 1 + int((i + random.random() * 2) / kills * writes))


def _tried(kind: str, trial: Trial, asked: argparse.Namespace) -> int:
    """One training's kills and damages, told; how many went wrong."""
    random = Random(asked.seed)
    print(f"{kind}: undisturbed in {trial.seconds:.0f} s, {trial.writes} writes", flush=True)
    same: list[bool] = []
    late = 0
    while len(same) < asked.kills:
        i = len(same)
        if i % 2:
            one = trial.killed(f"moment{i}", moment=random.uniform(0, trial.seconds))
        else:
            at, delay = _evenly(i, asked.kills, trial.writes, random), random.choice((0.0, random.uniform(0, 0.02)))
            one = trial.killed(f"write{i}", write=at, delay=delay)
        if one is None:
            late += 1
        else:
            same.append(one)
    print(
        f"{kind}: {sum(same)} of {len(same)} killed runs ended with the undisturbed run's bytes ({late} kills came too"
        " late and were drawn again)"
    )
    found = 0, []
    for stage in ("tune", "train"):
        for made in checkpoint.present(trial.folder / "whole" / stage / "checkpoints"):
            found = unfound(made, asked.damage, random)
    print(f"{kind}: {found[0] - len(found[1])} of {found[0]} damages of a checkpoint found", *found[1])
    return len(same) - sum(same) + len(found[1])


if __name__ == "__main__":
    sys.exit(main())

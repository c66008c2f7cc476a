"""Several processes and one run directory: kills at any moment, locks, ranks."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from factory import files
from factory.errors import UserError
from factory.run import RunDir

KEYS = range(8)


def open_run(root):
    return RunDir.open(root, "toy", root / "toy.yaml", "name: toy\n", {"name": "toy"})


def toy_pipeline(root: Path, seed: int = 0) -> int:
    """Three chained stages of 8, 8 and 4 chunks, then results.json. Returns how many chunks were computed."""
    computed = []

    def compute(value):
        computed.append(value)
        return value

    with open_run(root) as run:
        draw = run.stage("draw", {"seed": seed})
        for key in draw.missing(KEYS) if not draw.done else ():
            generator = torch.Generator().manual_seed(seed * 100 + key)
            draw.chunk(key, lambda g=generator: compute({"x": torch.randn(5, 3, generator=g)[:, 0]}))
        draw.finish({"n": len(KEYS)})

        score = run.stage("score", {"draw": draw.digest})
        for key in KEYS if not score.done else ():
            states = draw.chunk(key, lambda: pytest.fail("a finished stage lost a chunk"))
            score.chunk(key, lambda s=states: compute([{"sample": i, "x": x} for i, x in enumerate(s["x"].tolist())]))
        if not score.done:
            score.finish({"mean": sum(row["x"] for key in KEYS for row in score.chunk(key, list)) / 40})

        fit = run.stage("fit", {"score": score.digest, "rate": 0.1})
        if not fit.done:
            fit.finish({k: fit.chunk(k, lambda k=k: compute({"w": score.summary["mean"] * len(k)})) for k in "ab"})
        files.write_json(run.path / "results.json", {"schema": 1, "rows": [score.summary, fit.summary]})
    return len(computed)


def in_child(work) -> int:
    """Run `work` in a forked process; its exit code, or minus the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a forked child must never return into pytest
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(operation: int, root: Path, seed: int = 0) -> bool:
    """Start the toy pipeline and SIGKILL it right before its n-th change of a file; False if it got through."""

    def changes_a_file(event, arguments):
        if event == "open":
            return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        return event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fsync")

    def work():
        left = operation
        fsync = os.fsync

        def count(event, arguments):
            nonlocal left
            if changes_a_file(event, arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def counted_fsync(number):
            sys.audit("fsync")
            fsync(number)

        os.fsync = counted_fsync
        sys.addaudithook(count)
        toy_pipeline(root, seed)

    code = in_child(work)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The bytes of results.json after a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    toy_pipeline(root)
    return (root / "toy/results.json").read_bytes()


def assert_finishes_as(undisturbed: bytes, root: Path):
    toy_pipeline(root)
    assert toy_pipeline(root) == 0
    assert (root / "toy/results.json").read_bytes() == undisturbed
    litter = [path.name for path in root.rglob(".*") if path.name != ".lock"]
    assert litter == []


def test_a_finished_run_computes_nothing(tmp_path):
    assert toy_pipeline(tmp_path) == 18
    assert toy_pipeline(tmp_path) == 0


def test_killed_once_at_each_of_the_moments(tmp_path, undisturbed):
    """The opening and the first chunks moment by moment, then every 11th: the rest repeats the same steps."""
    operation, killed = 1, True
    while killed:
        root = tmp_path / str(operation)
        root.mkdir()
        killed = killed_at(operation, root)
        assert_finishes_as(undisturbed, root)
        operation += 1 if operation < 24 else 11
    assert operation > 150


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again(tmp_path, undisturbed, seed):
    """A start is killed before a random change of a file, the next one too, until one gets through."""
    draw = random.Random(seed)
    kills = 0
    while killed_at(draw.randint(1, 120), tmp_path):
        kills += 1
        assert kills < 200
    assert_finishes_as(undisturbed, tmp_path)


def test_killed_from_outside_at_random_times(tmp_path, undisturbed):
    draw = random.Random(0)
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            toy_pipeline(tmp_path)
            os._exit(0)
        time.sleep(draw.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert_finishes_as(undisturbed, tmp_path)


def test_killed_while_discarding_and_then_back_to_the_old_inputs(tmp_path, undisturbed):
    toy_pipeline(tmp_path)
    for operation in range(10, 60, 3):
        killed_at(operation, tmp_path, seed=1)
        assert_finishes_as(undisturbed, tmp_path)


def test_changed_inputs_start_the_stage_and_those_chained_to_it_afresh(tmp_path):
    toy_pipeline(tmp_path)
    (tmp_path / "toy/draw/free.txt").write_text("old")
    assert toy_pipeline(tmp_path, seed=1) == 18
    assert not (tmp_path / "toy/draw/free.txt").exists()
    with open_run(tmp_path) as run:
        discarded = [event["stage"] for event in run.events() if event["event"] == "stage_discarded"]
    assert discarded == ["draw", "score", "fit"]


def test_a_changed_last_stage_keeps_the_others(tmp_path):
    toy_pipeline(tmp_path)
    with open_run(tmp_path) as run:
        assert run.stage("draw", {"seed": 0}).summary == {"n": 8}
        changed = run.stage("fit", {"rate": 0.2})
        assert not changed.done


def test_a_second_live_process_is_refused_and_a_dead_one_is_not(tmp_path):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        open_run(tmp_path)
        os.write(write, b"!")
        signal.pause()
    try:
        os.read(read, 1)
        with pytest.raises(UserError, match=f"in use by process {pid} on .*name=OTHER"):
            open_run(tmp_path)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    open_run(tmp_path).close()


def test_a_worker_that_outlives_its_killed_parent_blocks_nobody(tmp_path):
    read, write = os.pipe()

    def work():
        run = open_run(tmp_path)
        if (worker := os.fork()) == 0:
            time.sleep(60)
            run.close()
        os.write(write, str(worker).encode())
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    try:
        open_run(tmp_path).close()
    finally:
        os.kill(int(os.read(read, 20)), signal.SIGKILL)


def test_the_same_process_cannot_open_a_run_twice(tmp_path):
    with open_run(tmp_path) as run:
        with pytest.raises(UserError, match="already open"):
            open_run(tmp_path / ".." / tmp_path.name)
        run.event("still mine")
        assert in_child(lambda: pytest.raises(UserError, open_run, tmp_path)) == 0
    open_run(tmp_path).close()

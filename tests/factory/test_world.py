"""Ranks that share a run folder: who computes what, the same results for any number, and one clear end for all."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from factory import files
from factory.errors import UserError
from factory.launch.world import CONTINUE, LAUNCHER, World
from factory.run import RunDir, rundir
from tests.factory.ranks import as_ranks

KEYS = [f"k{i}" for i in range(9)]
RESOLVED = {"name": "toy"}


def toy(world: World, root: Path, at=lambda rank, key: None) -> None:
    """Two stages of chunks over ``KEYS`` and results.json; ``at(rank, key)`` is called where a chunk is computed."""

    def compute(key, value):
        at(world.rank, key)
        with open(root / f"computed by {world.rank}", "a") as file:
            file.write(f"{key}\n")
        return [{"key": key, "value": value}]

    with RunDir.open(root, "toy", root / "toy.yaml", "name: toy\n", RESOLVED, world) as run:
        first = run.stage("first", {"seed": 0})
        shown = []
        rows = first.gather({key: lambda key=key: compute(key, len(key) + int(key[1:])) for key in KEYS}, shown.append)
        if not first.done:
            first.finish({"n": len(rows)})
        if world.first:
            files.write_json(root / "shown.json", shown)
        second = run.stage("second", {"first": first.digest, "n": first.summary["n"]})
        total = sum(chunk[0]["value"] for chunk in rows)
        more = second.gather({f"{key}-more": lambda key=key: compute(f"{key}-more", total) for key in KEYS})
        if not second.done:
            second.finish({})
        if world.first:
            files.write_json(run.path / "results.json", {"rows": rows + more})
        world.meet("the end")


def computed(root: Path) -> dict[int, list[str]]:
    return {int(path.name.split()[-1]): path.read_text().split() for path in root.glob("computed by *")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    root = tmp_path_factory.mktemp("alone")
    toy(World(), root)
    return (root / "toy/results.json").read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_each_chunk_is_computed_once_and_the_results_are_those_of_one_process(tmp_path, alone, size):
    ended = as_ranks(size, lambda world: toy(world, tmp_path, lambda rank, key: time.sleep(0.02)), tmp_path)
    assert (ended.codes, ended.err) == ([0] * size, "")
    assert (tmp_path / "toy/results.json").read_bytes() == alone
    done = computed(tmp_path)
    assert sorted(key for keys in done.values() for key in keys) == sorted([*KEYS, *(f"{key}-more" for key in KEYS)])
    assert len(done) == size


def test_more_ranks_than_chunks_is_no_error(tmp_path):
    def work(world):
        with RunDir.open(tmp_path, "toy", tmp_path / "toy.yaml", "", RESOLVED, world) as run:
            assert run.stage("s", {}).gather({"only": lambda: {"x": 1}}) == [{"x": 1}]
            assert run.stage("t", {}).gather({}) == []

    assert as_ranks(3, work, tmp_path).codes == [0, 0, 0]


def test_the_first_rank_shows_the_work_of_all(tmp_path):
    as_ranks(2, lambda world: toy(world, tmp_path), tmp_path)
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert shown[-1] == len(KEYS) and shown == sorted(shown)


def test_in_lock_step_all_compute_everything_and_the_first_stores(tmp_path):
    def work(world):
        world.lockstep = True
        with RunDir.open(tmp_path, "toy", tmp_path / "toy.yaml", "", RESOLVED, world) as run:
            seen = run.stage("s", {}).gather({key: lambda: {"by": world.rank} for key in KEYS})
        assert seen == [{"by": 0}] * len(KEYS)
        (tmp_path / f"done by {world.rank}").touch()

    assert as_ranks(2, work, tmp_path).codes == [0, 0]
    assert len(list(tmp_path.glob("done by *"))) == 2


def test_what_concerns_all_cannot_begin_in_a_share():
    world = World()
    with pytest.raises(RuntimeError, match="'stage' is a matter of all ranks"):
        for _ in world.share([1, 2]):
            world.meet("stage")
    world.meet("stage")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all_in_one_line_and_the_run_resumes(tmp_path, alone, victim):
    def kill(rank, key):
        time.sleep(0.05)
        if rank == victim and (tmp_path / "toy/second").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    ended = as_ranks(2, lambda world: toy(world, tmp_path, kill), tmp_path)
    assert ended.codes[victim] == -signal.SIGKILL and ended.codes[1 - victim] == 1
    (line,) = ended.said
    assert (
        line.startswith(f"error: rank {victim} of 2 (process ")
        and "ended without a word" in line
        and line.endswith(CONTINUE)
    )
    assert "Traceback" not in ended.err
    before = computed(tmp_path)
    assert as_ranks(2, lambda world: toy(world, tmp_path), tmp_path).codes == [0, 0]
    assert (tmp_path / "toy/results.json").read_bytes() == alone
    again = [key for rank, keys in computed(tmp_path).items() for key in keys[len(before.get(rank, [])) :]]
    assert not set(again) & set(KEYS), "a chunk of the finished stage was computed again"


def test_a_fault_of_one_rank_ends_all_with_its_traceback_once(tmp_path):
    def fail(rank, key):
        time.sleep(0.05)
        if rank == 1:
            raise ValueError("a broken chunk")

    ended = as_ranks(3, lambda world: toy(world, tmp_path, fail), tmp_path)
    assert ended.codes == [1, 1, 1]
    assert ended.said == ["error: rank 1 of 3 stopped: ValueError: a broken chunk"]
    assert ended.err.count("Traceback") == 1 and "in fail" in ended.err


def test_a_mistake_that_all_ranks_meet_is_told_once(tmp_path):
    def work(world):
        raise UserError("the model is missing\nand the images too")

    ended = as_ranks(3, work, tmp_path)
    assert ended.codes == [2, 2, 2]
    assert ended.err == "error: the model is missing\nerror: and the images too\n"


def test_a_mistake_of_the_first_rank_alone_ends_those_that_wait_for_it(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/thesis.tex").touch()
    ended = as_ranks(2, lambda world: toy(world, tmp_path), tmp_path)
    assert ended.codes == [2, 2]
    assert len(ended.err.splitlines()) == 1 and "is no run" in ended.err


def test_an_interruption_is_told_once(tmp_path):
    def interrupt(rank, key):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    ended = as_ranks(2, lambda world: toy(world, tmp_path, interrupt), tmp_path)
    assert ended.codes == [130, 130]
    assert ended.err == f"interrupted; {CONTINUE}\n"


def test_ranks_end_without_a_word_when_their_launcher_is_gone(tmp_path):
    ended = as_ranks(2, lambda world: time.sleep(600), tmp_path, **{LAUNCHER: f"{2**22 + 1}@{socket.gethostname()}"})
    assert ended.codes == [143, 143] and ended.err == ""


def test_only_the_first_rank_prints(tmp_path):
    assert as_ranks(2, lambda world: print(f"I am {world.rank}"), tmp_path).out == "I am 0\n"


def test_a_folder_that_is_not_shared_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "SEEN_WITHIN", 0.5)
    roots = [tmp_path / "one host", tmp_path / "other host"]

    def work(world):
        RunDir.open(roots[world.rank], "toy", tmp_path / "toy.yaml", "", RESOLVED, world)

    ended = as_ranks(2, work, tmp_path)
    assert ended.codes == [2, 2]
    assert (
        len(ended.err.splitlines()) == 1
        and "does not see the run folder of the first rank" in ended.err
        and "run.root=FOLDER" in ended.err
    )


def test_ranks_with_other_recipes_or_inputs_are_told(tmp_path):
    def other_recipe(world):
        RunDir.open(tmp_path, "toy", tmp_path / "toy.yaml", "", {"seed": world.rank}, world)

    def other_inputs(world):
        with RunDir.open(tmp_path, "toy", tmp_path / "toy.yaml", "", RESOLVED, world) as run:
            run.stage("s", {"model": world.rank})

    for work, told in (
        (other_recipe, "rank 1 on .* was given another recipe"),
        (other_inputs, "rank 1 on .* would compute stage s from other inputs"),
    ):
        ended = as_ranks(2, work, tmp_path)
        assert ended.codes == [2, 2]
        with pytest.raises(UserError, match=told):
            raise UserError(ended.err.splitlines()[-1])

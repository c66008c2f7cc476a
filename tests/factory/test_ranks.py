"""Whole runs in two ranks: the same results as one process, under every launcher, cut over the ranks or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from factory.cli import main
from factory.launch.world import CONTINUE, World
from factory.recipe import load
from factory.run import pipeline, rundir
from tests.factory.ranks import as_ranks

ROOT = Path(__file__).parents[2]
RECIPE = """\
name: shared
model: {{zoo: tiny}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 2, dev: 1, test: 1}}}}
diagnostic: {{type: mcr, draws: 1}}
collect: {{batch_size: 4}}
steering: [
  none, static, {{type: l2s, net: {{epochs: 2, init: random}}}},
  {{type: dose, doses: [0.5, 1], of: {{type: l2s, net: {{epochs: 2, init: random}}}}, gate_epochs: 5}}
]
evaluate: {{controls: [], strengths: [1, 4], batch_size: 4, max_new_tokens: 3, bootstrap: 0}}
run: {{root: {root}}}
report: {{plots: false}}
"""


BRIEF = ("data.per_task={train: 1, dev: 1, test: 1}", "steering=[none, static]", "evaluate.strengths=[2]")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the recipe and its run in one process, under ``alone/``."""
    home = tmp_path_factory.mktemp("home")
    (home / "shared.yaml").write_text(RECIPE.format(root=home / "runs"))
    pipeline.run(load(home / "shared.yaml", [f"run.root={home / 'alone'}"]))
    return home


@pytest.fixture(scope="module")
def brief(home):
    """The results of a recipe that says less, for what is about launchers."""
    pipeline.run(load(home / "shared.yaml", [*BRIEF, f"run.root={home / 'brief'}"]))
    return results(home / "brief")


def results(root: Path) -> bytes:
    return (root / "shared" / "results.json").read_bytes()


def in_ranks(home: Path, root: Path, *overrides: str):
    root.mkdir(exist_ok=True)
    recipe = load(home / "shared.yaml", [f"run.root={root}", *overrides])
    return as_ranks(2, lambda world: pipeline.run(recipe, None, world) and 0, root)


def test_two_ranks_give_every_file_that_one_gives(home, tmp_path):
    ended = in_ranks(home, tmp_path / "two")
    assert (ended.codes, ended.said) == ([0, 0], [])
    assert results(tmp_path / "two") == results(home / "alone")
    assert len({row["metrics"]["follow"] for row in json.loads(results(home / "alone"))["rows"]}) > 2, (
        "the model says nothing that could differ"
    )
    for path in (home / "alone/shared").rglob("*"):
        if path.parent.name == "chunks" or "artefacts" in path.parts and path.is_file():
            assert (tmp_path / "two/shared" / path.relative_to(home / "alone/shared")).read_bytes() == path.read_bytes()


def test_a_rank_killed_in_a_stage_ends_the_run_and_the_next_start_ends_it_with_the_same_results(home, tmp_path):
    def watcher(stage, key):
        if stage.name == "trials" and stage.run.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if stage.name == "trials":
            time.sleep(0.2)

    with rundir.watched_stores(watcher):
        ended = in_ranks(home, tmp_path)
    assert ended.codes == [1, -signal.SIGKILL]
    (line,) = ended.said
    assert line.startswith("error: rank 1 of 2 (process ") and line.endswith(CONTINUE)
    collected = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared/collect/chunks").iterdir()}
    assert main([str(home / "shared.yaml"), f"run.root={tmp_path}"]) == 0
    assert results(tmp_path) == results(home / "alone")
    assert collected == {p: p.stat().st_mtime_ns for p in (tmp_path / "shared/collect/chunks").iterdir()}


@pytest.mark.slow
def test_a_model_cut_over_two_ranks_gives_the_same_answers(home, tmp_path):
    few = [
        "data.per_task={train: 1, dev: 1, test: 1}",
        "steering=[none, static, {type: l2s, net: {epochs: 2}}]",
        "diagnostics=[{type: heads, map: false}]",
        "evaluate={strengths: [2], batch_size: 8, max_new_tokens: 2, directions: [text]}",
        "collect.batch_size=8",
    ]
    pipeline.run(load(home / "shared.yaml", [*few, f"run.root={tmp_path / 'whole'}"]))
    ended = in_ranks(home, tmp_path / "cut", "launch.zero=3", *few)
    assert (ended.codes, ended.said) == ([0, 0], [])
    (chunk,) = (tmp_path / "whole/shared/collect/chunks").glob("*.safetensors")
    whole, cut = load_file(chunk), load_file(tmp_path / "cut/shared/collect/chunks" / chunk.name)
    assert cut.keys() == whole.keys() >= {"measured.R_V"}
    for name in [name for name in whole if name.startswith("measured.")]:  # the only gradients, summed in another order
        torch.testing.assert_close(cut.pop(name), whole.pop(name), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    told = [json.loads(results(tmp_path / side)) for side in ("cut", "whole")]
    of_gradients = [side["diagnostics"].pop("mcr") for side in told]
    assert told[0] == told[1]
    assert len(of_gradients[0]) == len(of_gradients[1]) > 0


def test_what_zero_cannot_do_is_told_before_anything_runs(home, tmp_path, capsys):
    assert main([str(home / "shared.yaml"), "launch.zero=2", f"run.root={tmp_path}"]) == 2
    assert (
        "launch.zero: stage 2 cuts gradients and optimiser states, and nothing is trained here"
        in capsys.readouterr().err
    )
    assert main([str(home / "shared.yaml"), "launch.zero=3", f"run.root={tmp_path}"]) == 2
    assert "launch.zero: 3 cuts the model over processes, and there is one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_training_in_ranks_is_refused(tmp_path):
    recipe = load(ROOT / "recipes/train_tiny.yaml", [f"run.root={tmp_path}"])
    world = World()
    world.size = 2
    with pytest.raises(Exception, match="trains in one process"):
        pipeline.run(recipe, None, world)


def launched(command: list[str], **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_ranks_of_a_recipe(home, brief, tmp_path):
    (tmp_path / "hosts").write_text("# this machine\nlocalhost slots=2\n")
    done = launched(
        [
            "-m",
            "factory.cli",
            str(home / "shared.yaml"),
            "launch.processes=2",
            f"launch.hostfile={tmp_path / 'hosts'}",
            f"run.root={tmp_path}",
            *BRIEF,
        ]
    )
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == brief
    assert done.stdout.count("run folder:") == 1 and "test: " in done.stdout


@pytest.mark.slow
def test_ranks_of_torchrun_find_each_other(home, brief, tmp_path):
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={29600 + os.getpid() % 300}",
        "-m",
        "factory.cli",
    ]
    done = launched([*torchrun, str(home / "shared.yaml"), f"run.root={tmp_path}", *BRIEF])
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == brief


@pytest.mark.slow
def test_an_interrupted_launch_ends_all_ranks(home, brief, tmp_path):
    command = [
        sys.executable,
        "-m",
        "factory.cli",
        str(home / "shared.yaml"),
        "launch.processes=2",
        f"run.root={tmp_path}",
        *BRIEF,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("collect"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, f"interrupted; {CONTINUE}\n")
    main([str(home / "shared.yaml"), f"run.root={tmp_path}", *BRIEF])  # nobody holds the folder any more
    assert results(tmp_path) == brief

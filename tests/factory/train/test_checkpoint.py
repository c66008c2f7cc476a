"""Checkpoints: whole or passed over, whatever was cut, flipped or taken away; and data, whatever was put into them."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from eval_suite.scenes.curriculum import Mix, lesson
from factory.errors import UserError
from factory.recipe.schema import TrainSpec
from factory.train import checkpoint, zero
from factory.train.scratch.lessons import GROUP, LessonStream
from factory.train.scratch.trainer import train_lessons
from tests.factory.ranks import as_ranks
from tests.factory.train.case import Interrupted, main, tuned, write_data
from tests.kills import unfound
from tests.tiny import fresh_view

ROOT = Path(__file__).parents[3]
LORA = {"type": "lora", "rank": 2, "dropout": 0.3}
STEPS = 6  # of a training from scratch


class Bomb:
    """What a torch.load of anything but data would run."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self):
        return (os.mkdir, (str(self.at),))


def plant(path: Path, bomb: Path) -> None:
    """A pickle that runs a command, where a file was; in torch's own form where the file had it."""
    if path.suffix in (".pt", ".pth"):
        torch.save({"state": Bomb(bomb)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(bomb)))


def resealed(folder: Path) -> None:
    """The manifest as someone would write it who wants the folder to be taken."""
    about = checkpoint.read_manifest(folder)
    checkpoint.seal(folder, {key: about[key] for key in about if key not in ("schema", "files")})


def inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What an undisturbed tuning gives."""
    return tuned(data, tmp_path_factory.mktemp("whole"), LORA, {}, save_every=1)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory) -> Path:
    """The checkpoints of a tuning that was interrupted after its third step, two being saved."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        tuned(data, folder, LORA, {}, save_every=1, stop=3)
    return folder


def test_every_flip_cut_and_removal_in_every_file_is_found(stopped, tmp_path):
    (made,) = stopped.iterdir()
    names = [path.relative_to(made) for path in inside(made)]
    assert {str(name) for name in names} == {
        "manifest.json",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trained.safetensors",
        "trainer_state.json",
    }
    copy = tmp_path / made.name
    shutil.copytree(made, copy)
    tried, missed = unfound(copy, 30, Random(0))
    assert tried == len(names) * 61 and not missed


def test_the_newest_whole_one_is_taken_and_damaged_ones_are_told_in_a_line(stopped, tmp_path, capsys):
    (made,) = stopped.iterdir()
    for step in (2, 9, 10, 11):
        shutil.copytree(made, tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-11" / "manifest.json").unlink()
    (tmp_path / "checkpoint-12").write_text("no folder")
    (tmp_path / "checkpoint-x").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-9"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all("passed over" in line for line in told)
    assert "checkpoint-11: its writing was interrupted" in told[1] and "optimizer.pt is missing" in told[2]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-9", "checkpoint-x"}
    assert checkpoint.newest(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_a_tuning_does_not_go_on_from_damage(data, whole, stopped, tmp_path, capsys, name):
    shutil.copytree(stopped, tmp_path / "c")
    (made,) = (tmp_path / "c").iterdir()
    (made / name).write_bytes((made / name).read_bytes()[:-1])
    losses, values = tuned(data, tmp_path / "c", LORA, {}, save_every=1)
    assert f"{name} is damaged" in capsys.readouterr().err
    assert losses == whole[0] and all(torch.equal(values[key], whole[1][key]) for key in values)


def test_pickles_in_a_checkpoint_are_refused_in_a_line_and_not_run(data, stopped, tmp_path):
    (made,) = stopped.iterdir()
    for name in [path.name for path in inside(made) if path.name != checkpoint.MANIFEST]:
        folder, bomb = tmp_path / name, tmp_path / "bomb"
        shutil.copytree(stopped, folder)
        plant(folder / made.name / name, bomb)
        resealed(folder / made.name)
        with pytest.raises(UserError, match=r"^[^\n]+$") as told:
            tuned(data, folder, LORA, {}, save_every=1)
        assert str(folder) in str(told.value) and not bomb.exists(), name


def test_a_pickle_among_zero_states_is_not_run(tmp_path):
    """DeepSpeed's own reader runs it."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.zero.config import ZeroStageEnum

    usual = TorchCheckpointEngine()
    usual.save({"stage": ZeroStageEnum.gradients, "moments": torch.ones(2)}, str(tmp_path / "good.pt"))
    read = zero.data_only(usual).load(str(tmp_path / "good.pt"))
    assert read["stage"] == ZeroStageEnum.gradients and torch.equal(read["moments"], torch.ones(2))
    usual.save({"moments": Bomb(tmp_path / "bomb")}, str(tmp_path / "bad.pt"))
    with pytest.raises(pickle.UnpicklingError):
        zero.data_only(usual).load(str(tmp_path / "bad.pt"))
    assert not (tmp_path / "bomb").exists()
    usual.load(str(tmp_path / "bad.pt"))
    assert (tmp_path / "bomb").exists()


@pytest.mark.parametrize(("name", "read"), [("gradients", True), ("mro", False), ("__init__", False)])
def test_a_stage_of_zero_written_as_pythons_before_3_11_4_do_is_read_and_nothing_else(tmp_path, name, read):
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.zero.config import ZeroStageEnum

    class Written:
        def __reduce__(self):
            return getattr, (ZeroStageEnum, name)

    usual, path = TorchCheckpointEngine(), str(tmp_path / "state.pt")
    usual.save({"stage": Written()}, path)
    if read:
        assert zero.data_only(usual).load(path)["stage"] is ZeroStageEnum.gradients
    else:
        with pytest.raises(pickle.UnpicklingError):
            zero.data_only(usual).load(path)


@pytest.mark.slow
def test_zero_runs_no_pickle(data, tmp_path):
    """One in a file that DeepSpeed reads ends the training in a line. (Whole ones are gone on from in test_ranks.)"""

    def case(stage: int, folder: Path, **more) -> dict:
        keys = {"data": str(data), "tuner": LORA, "folder": str(folder), "save_every": 1}
        return {**keys, "launch": {"zero": stage}, **more}

    stages = {stage: tmp_path / f"zero{stage}" for stage in (2, 3)}
    in_a_process = lambda cases: as_ranks(1, lambda world: main(cases), tmp_path, join=False)
    assert in_a_process([case(stage, folder, stop=2) for stage, folder in stages.items()]).codes == [0]
    planted, bomb = [], tmp_path / "bomb"
    for stage, folder in stages.items():
        (made,) = folder.glob("checkpoint-*")
        names = [path.relative_to(folder) for path in inside(made)]
        assert not any(name.suffix == ".py" for name in names), "no code among the data"
        read = [name for name in names if name.name.endswith("_states.pt")]
        assert len(read) == 2
        for name in read:
            copy = tmp_path / f"{stage}-{name.stem}"
            shutil.copytree(folder, copy)
            plant(copy / name, bomb)
            resealed(copy / made.name)
            planted.append(case(stage, copy))
    assert in_a_process(planted).codes == [0]
    assert not bomb.exists()
    for each in planted:
        assert "cannot be read as data (UnpicklingError" in (Path(each["folder"]) / "told.txt").read_text()


def lessons(stop: int | None = None) -> LessonStream:
    """Drawn lessons; an interruption at one of them."""

    def draw(index: int, batch: int, total: int):
        if index == stop:
            raise Interrupted
        return lesson(Random(index), 0.5, Mix())

    return LessonStream(draw, 2, STEPS)


def test_a_training_from_scratch_goes_on_from_the_newest_whole_checkpoint(tmp_path, capsys):
    """And ends with the same bits, though a newer one was being written when the process was killed."""
    spec = TrainSpec(steps=STEPS, batch_size=2, save_every=1)
    torch.manual_seed(0)
    undisturbed, again = fresh_view(), fresh_view()
    train_lessons(undisturbed, lessons(), spec, STEPS, 0, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_lessons(fresh_view(), lessons(stop=2 * GROUP), spec, STEPS, 0, tmp_path / "stopped")
    (made,) = (tmp_path / "stopped").glob("checkpoint-*")
    partial = made.with_name(f"checkpoint-{STEPS}")
    shutil.copytree(made, partial, ignore=shutil.ignore_patterns("manifest.json", "optimizer.pt"))
    train_lessons(again, lessons(), spec, STEPS, 0, tmp_path / "stopped")
    assert "its writing was interrupted; passed over" in capsys.readouterr().err
    ends = undisturbed.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.slow
def test_a_killed_run_ends_with_the_undisturbed_runs_bytes(tmp_path):
    """Once, as it writes; ``python -m tests.kills`` does so often, and at any moment."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", "tune", "--kills", "1", "--damage", "1", "--folder", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "write0: ended with -9 at write" in done.stdout and "the same: True" in done.stdout
    assert "1 of 1 killed runs" in done.stdout

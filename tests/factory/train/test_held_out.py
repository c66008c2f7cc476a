"""Looks at what is held out while tuning: the loss, the best weights, an end by patience, a benchmark's score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from factory import files, progress, tune
from factory.corpus.collate import Collator
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from factory.run.questions.suite import Suite
from factory.run.tuners.held_out import learnt_and_held
from tests.factory.ranks import as_ranks
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.tiny import fresh_view, saved_tiny

# Learning rates so high that the loss of samples with other answers falls and rises.
UP_AND_DOWN = {"schedule": "constant", "warmup": 0.0}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_data(root)
    other = root / "other"
    other.mkdir()
    write_data(other, 9)
    rows = [json.loads(line) for line in (root / "data.jsonl").read_text().splitlines()]
    for row, next_row in zip(rows, rows[1:] + rows[:1], strict=True):
        row["conversations"][1]["value"] = next_row["conversations"][1]["value"]
    files.write_jsonl(root / "wrong.jsonl", rows)
    saved_tiny(root / "model")
    return root


def recipe(root: Path, runs: str, **changes: Any):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / runs)},
        "report": {"plots": False},
        "evaluate": {"batch_size": 4},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "dropout": 0.3},
            "data": {"path": str(root / "data.jsonl"), "max_tokens": 200},
            "batch_size": 4,
            "steps": 6,
            "save_every": 1,
            **changes,
        },
    }
    return loads(json.dumps(spec), path=root / f"{runs}.yaml")


def summary(root: Path, runs: str) -> dict[str, Any]:
    return files.read_json(root / runs / "r" / "tune" / "summary.json")


def trained(root: Path, runs: str) -> dict[str, torch.Tensor]:
    return files.read_safetensors(root / runs / "r" / "tuned" / "tuner.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def loss_of(view, source, numbers, max_tokens: int = 200) -> float:
    """Nats a labelled token, a sample at a time."""
    total, tokens = 0.0, 0
    for i in numbers:
        batch = Collator(view, source, max_tokens, None)([i])
        with torch.no_grad():
            logits = view.model(**{k: t for k, t in batch.items() if k not in ("labels", "roles")}).logits[:, :-1]
        labels = batch["labels"][:, 1:].flatten()
        total += F.cross_entropy(logits.flatten(0, 1), labels, ignore_index=-100, reduction="sum").item()
        tokens += int((labels != -100).sum())
    return total / tokens


def test_looking_changes_nothing_that_is_learnt_and_tells_the_loss_of_other_data(project):
    own = {"data": {"path": str(project / "other" / "data.jsonl"), "max_tokens": 200}, "every": 4, "keep": "last"}
    run(recipe(project, "plain", micro_batch=2))
    run(recipe(project, "looked", held_out=own, micro_batch=2))
    assert same(trained(project, "plain"), trained(project, "looked"))
    looks = summary(project, "looked")["looks"]
    assert [row["step"] for row in looks] == [4, 6], "every four steps, and after the last"
    view = fresh_view()
    tune.load(project / "looked" / "r" / "tuned", view)
    other = project / "other" / "data.jsonl"
    source = ConversationFile(other, other.parent, project / "index")
    assert looks[-1]["eval_loss"] == pytest.approx(loss_of(view, source, range(len(source))), rel=1e-4)


def test_a_share_is_held_out_of_what_is_learnt(project):
    run(recipe(project, "share", held_out={"share": 0.25, "every": 2, "keep": "last"}))
    view, data = fresh_view(), project / "data.jsonl"
    tune.load(project / "share" / "r" / "tuned", view)
    source = ConversationFile(data, data.parent, project / "index")
    learnt, held = learnt_and_held(recipe(project, "share", held_out={"share": 0.25}).tune, source)
    assert sorted([*learnt, *held]) == list(range(24)) and len(held) == 6
    last = summary(project, "share")["looks"][-1]
    assert last["eval_loss"] == pytest.approx(loss_of(view, source, held), rel=1e-4)


def wrong(project: Path, rate: float, steps: int, **held: Any) -> dict[str, Any]:
    data = {"path": str(project / "wrong.jsonl"), "max_tokens": 200}
    return {"learning_rate": rate, "steps": steps, **UP_AND_DOWN, "held_out": {"data": data, "every": 1, **held}}


def test_the_best_weights_are_the_result_and_survive_kills_and_losses(project, capsys):
    how = wrong(project, 2.0, 3)
    run(recipe(project, "best", **how))
    told = summary(project, "best")
    assert f"after step {told['kept']}, whose weights are kept, of 3 looks" in capsys.readouterr().out
    losses = {row["step"]: row["eval_loss"] for row in told["looks"]}
    best = min(losses, key=lambda step: losses[step])
    assert told["kept"] == best < 3, "the losses must rise again for this test to tell"
    checkpoints = project / "best" / "r" / "tune" / "checkpoints"
    assert {p.name for p in checkpoints.glob("checkpoint-*")} == {f"checkpoint-{best}", "checkpoint-3"}
    run(recipe(project, "ended at the best", **{**how, "steps": best, "held_out": None}))
    kept = trained(project, "ended at the best")
    assert same(trained(project, "best"), kept)
    for stop in (best, 3):
        with progress.watched(stops_at("tune", stop)), pytest.raises(Interrupted):
            run(recipe(project, f"cut{stop}", **how))
        run(recipe(project, f"cut{stop}", **how))
        assert same(trained(project, f"cut{stop}"), kept) and summary(project, f"cut{stop}")["looks"] == told["looks"]
    (project / "best" / "r" / "tuned" / "tuner.safetensors").write_bytes(b"lost")
    run(recipe(project, "best", **how))
    assert same(trained(project, "best"), kept), "written anew from the best checkpoint"


def test_patience_ends_a_training_and_a_killed_one_at_the_same_step(project):
    how = wrong(project, 1.0, 8, patience=2)
    run(recipe(project, "patient", **how))
    told = summary(project, "patient")
    assert told["steps"] == told["kept"] + 2 < 8 and len(told["looks"]) == told["steps"]
    with progress.watched(stops_at("tune", told["steps"])), pytest.raises(Interrupted):
        run(recipe(project, "cutpatient", **how))
    run(recipe(project, "cutpatient", **how))
    assert summary(project, "cutpatient")["looks"] == told["looks"]
    assert same(trained(project, "patient"), trained(project, "cutpatient"))


def test_a_benchmark_s_score_decides_where_one_is_named(project):
    quiz = {"type": "plain_scenes", "per_task": 1}
    run(recipe(project, "scored", steps=2, held_out={"share": 0.25, "benchmark": quiz, "every": 1}))
    looks = summary(project, "scored")["looks"]
    assert all(row.keys() == {"step", "eval_loss", "eval_score"} for row in looks)
    best = max(looks, key=lambda row: row["eval_score"])
    assert summary(project, "scored")["kept"] == best["step"]
    again = loads(
        json.dumps(
            {
                "name": "after",
                "model": {"path": str(project / "model"), "tuned": [str(project / "scored" / "r" / "tuned")]},
                "run": {"root": str(project / "scored")},
                "report": {"plots": False},
                "evaluate": {"batch_size": 4},
                "benchmarks": [quiz],
            }
        )
    )
    run(again)
    rows = files.read_json(project / "scored" / "after" / "results.json")["rows"]
    [whole] = [row for row in rows if row["task"] == "all"]
    assert whole["metrics"][whole["main"]] == pytest.approx(best["eval_score"])


def test_the_highest_score_is_kept_and_patience_counts_from_it(project, monkeypatch):
    """Scores as written here, against the loss, which falls: the model of step 2, and an end two looks later."""
    scores = iter([0.2, 0.9, 0.5, 0.6])
    monkeypatch.setattr(Suite, "score", lambda self, view: next(scores))
    quiz = {"share": 0.25, "benchmark": {"type": "plain_scenes", "per_task": 1}, "every": 1}
    run(recipe(project, "highest", steps=6, held_out=quiz | {"patience": 2}, **UP_AND_DOWN))
    told = summary(project, "highest")
    assert [row["eval_score"] for row in told["looks"]] == [0.2, 0.9, 0.5, 0.6]
    assert (told["kept"], told["steps"]) == (2, 4)
    scores = iter([0.2, 0.9])
    monkeypatch.setattr(Suite, "score", lambda self, view: next(scores))
    run(recipe(project, "as far", steps=2, held_out=quiz | {"keep": "last"}, **UP_AND_DOWN))
    assert same(trained(project, "highest"), trained(project, "as far"))


def test_what_is_held_out_is_part_of_what_a_training_was(project):
    held = {"share": 0.25, "every": 2}
    run(recipe(project, "kept", steps=2, held_out=held))
    run(recipe(project, "kept", steps=2, held_out=held))
    for other in (held | {"share": 0.5}, held | {"patience": 3}):
        with pytest.raises(UserError, match="a training with other values is there"):
            run(recipe(project, "kept", steps=2, held_out=other))


@pytest.mark.parametrize(
    ("held", "why"),
    [
        ({}, "tune.held_out: needs something to look at"),
        ({"share": 0.1, "data": {"path": "x.json"}}, "tune.held_out.data: share is given too"),
        ({"share": 1.0}, "tune.held_out.share"),
        (
            {"every": 1, "benchmark": {"type": "lm_eval", "tasks": ["arc_easy"]}},
            "asked by a harness of its own|needs lm-eval",
        ),
        ({"share": 0.99}, "leaves none to learn from"),
    ],
)
def test_what_cannot_be_held_out_is_told_by_plan_and_run_alike(project, held, why):
    for do in (plan, run):
        with pytest.raises(UserError, match=why) as told:
            do(recipe(project, "refused", held_out=held))
        assert "Traceback" not in str(told.value)


def test_plan_counts_the_looks(project, capsys):
    plan(recipe(project, "planned", held_out={"share": 0.25, "every": 4}))
    said = capsys.readouterr().out
    assert "data: 18 samples, 6 steps" in said and "held out: 2 looks at 6 samples" in said


def test_a_best_checkpoint_that_is_damaged_or_gone_is_one_line(project):
    how = wrong(project, 2.0, 3)
    run(recipe(project, "harmed", **how))
    stage, whole = project / "harmed" / "r" / "tune", project / "as it was"
    (stage / "summary.json").unlink()  # as if it had been killed before it was told
    shutil.copytree(stage, whole)
    for harm in ("write", "remove"):
        shutil.rmtree(stage)
        shutil.copytree(whole, stage)
        best = min((stage / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if harm == "write":
            (best / "trained.safetensors").write_bytes(b"other")
        else:
            shutil.rmtree(best)
        with pytest.raises(UserError, match="it held the best weights of this training. Remove") as told:
            run(recipe(project, "harmed", **how))
        assert "\n" not in str(told.value)


def test_data_of_their_own_are_cut_at_their_own_length(project):
    rows = [{"query": f"Say {i}", "response": "word " * 40} for i in range(3)]
    files.write_jsonl(project / "long.jsonl", rows)
    losses = {}
    for most in (24, 200):
        own = {"data": {"path": str(project / "long.jsonl"), "max_tokens": most}, "every": 1, "keep": "last"}
        run(recipe(project, f"cut at {most}", steps=1, held_out=own))
        view, path = fresh_view(), project / "long.jsonl"
        tune.load(project / f"cut at {most}" / "r" / "tuned", view)
        source = ConversationFile(path, path.parent, project / "index")
        [look] = summary(project, f"cut at {most}")["looks"]
        losses[most] = look["eval_loss"]
        assert look["eval_loss"] == pytest.approx(loss_of(view, source, range(3), most), rel=1e-4)
    assert abs(losses[24] - losses[200]) > 1e-3


def test_as_many_checkpoints_are_kept_with_the_best_among_them_or_older(project):
    """One is kept, beside the best, in the test of the best weights."""
    run(recipe(project, "keeps", **wrong(project, 2.0, 4), keep_checkpoints=3))
    best = summary(project, "keeps")["kept"]
    kept = {int(p.name.rpartition("-")[2]) for p in (project / "keeps" / "r" / "tune").glob("*/checkpoint-*")}
    assert kept == {best, 2, 3, 4}


@pytest.mark.slow
def test_two_ranks_look_and_steer_texts_as_one_does(project):
    """Their batches are copies, whose roles come with them; what is held out is told by both together."""
    quiz, mores = {"type": "plain_scenes", "per_task": 1}, {"type": "mores", "modality": "text", "dropout": 0.0}
    how = {"tuner": mores, "micro_batch": 2, "steps": 2}
    how |= {"held_out": {"share": 0.25, "every": 1, "benchmark": quiz, "keep": "best"}}
    run(recipe(project, "one", **how))
    (project / "two").mkdir()

    def work(world):
        run(recipe(project, "two", **how), world=world)
        torch.distributed.destroy_process_group()

    done = as_ranks(2, work, project / "two")
    assert done.codes == [0, 0], done.err[-3000:]
    assert "no gradient" not in done.err
    one, two = (files.read_jsonl(project / name / "r" / "tune" / "log.jsonl") for name in ("one", "two"))
    for row, other in zip(one, two, strict=True):
        for key in row.keys() & {"loss", "eval_loss", "eval_score"}:
            assert other[key] == pytest.approx(row[key], rel=1e-5), (key, row["step"])
    assert all(
        torch.allclose(t, trained(project, "two")[name], atol=2e-5) for name, t in trained(project, "one").items()
    )

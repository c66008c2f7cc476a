"""A run's kept answers by every version of the conflict rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_suite.scenes.world import scene, specs
from factory.cli import main

RECIPE = (
    "name: r\nmodel: {zoo: tiny}\ndata: {type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}\n"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of four answers to one scene toward its picture."""
    sample = scene(next(iter(specs("test", 1, 0))))
    glued = "oneRespondRespondRespond"
    answers = [sample.answer_vision, glued, f"{sample.answer_vision} one one one", "The two sources\nconflict"]
    about = {"sample": sample.id, "task": sample.task, "method": "m", "direction": "vision"}
    rows = [
        {**about, "variant": v, "strength": s, "answers": [a]}
        for v, s, a in (("a", 1.0, answers[0]), ("b", 1.0, answers[1]), ("a", 2.0, answers[2]), ("b", 2.0, answers[3]))
    ]
    folder = tmp_path / "run"
    (folder / "test" / "chunks").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(RECIPE)
    (folder / "test" / "chunks" / "test-00000.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_both_versions_stand_side_by_side_with_what_changed(run, capsys):
    assert main(["rules", str(run)]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lines[0][4:] == [
        *(f"{what}, conflict/{v}" for what in ("follow", "error", "other") for v in (1, 2)),
        "flags, conflict/2",
    ]
    assert lines[2] == ["vision", "m", "1", "2", "50.0", "50.0", "0.0", "50.0", "50.0", "0.0", "0.0"]
    assert lines[3] == ["vision", "m", "2", "2", "50.0", "0.0", "0.0", "50.0", "50.0", "0.0", "50.0"]
    told = {tuple(line[:3]) for line in lines[9:]}
    assert told == {("other", "error", "1"), ("vision", "error", "1"), ("other", "flags", "1")}


@pytest.mark.parametrize("damage", ["no folder", "no answers", "no conflict", "other samples"])
def test_what_cannot_be_scored_is_one_line(run, capsys, damage):
    chunk = run / "test" / "chunks" / "test-00000.jsonl"
    if damage == "no folder":
        run = run / "gone"
    elif damage == "no answers":
        chunk.unlink()
    elif damage == "no conflict":
        (run / "resolved.yaml").write_text("name: r\nmodel: {zoo: tiny}\nbenchmarks: [fluency]\n")
    else:
        chunk.write_text(chunk.read_text().replace("test-", "best-"))
    assert main(["rules", str(run)]) == 2
    told = capsys.readouterr().err.strip()
    assert told and "\n" not in told and "Traceback" not in told

"""Answers that came from elsewhere: released files against their own verdicts, and answers by name to any benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_suite.scenes.world import scene, specs
from factory.cli import main
from factory.statistics.intervals import wilson
from tests.eval_suite.released_conflicts import chartqa_conflict, clash
from tests.eval_suite.released_files import pope


def rescore(tmp_path: Path, capsys, *words: object) -> tuple[list, list, str]:
    """Rows, table and what was printed."""
    out = tmp_path / "out"
    assert main(["rescore", *map(str, words), "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").open(encoding="utf-8")]
    return rows, json.loads((out / "table.json").read_text()), capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    assert main(["rescore", *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def clash_answer(i: int, text: str, *matches: str, **more: object) -> dict:
    kinds = ("contradiction", "image_only", "text_only", "none")
    colors = ("red", "green", "blue", "white")
    thing = ("cat", "bus", "lamp", "kite", "boat", "spoon", "tent", "drum")[i % 8]
    return {
        "image_id": 500 + i,
        "question": f"What color is the {thing}?",
        "prediction": text,
        "modality_answers": {"image_only": colors[i % 4], "text_only": colors[(i + 1) % 4]},
        "evaluation": {f"matches_{kind}": kind in matches for kind in kinds},
        **more,
    }


def test_clashs_verdicts_are_held_against_ours_row_by_row(tmp_path, capsys):
    clash(tmp_path)
    answers = [
        clash_answer(0, "The cat is red.", "image_only"),
        clash_answer(1, "blue", "text_only"),
        clash_answer(2, "blue or white", "image_only", "text_only"),
        clash_answer(3, "They conflict", "contradiction"),
        clash_answer(4, "", "none"),
        clash_answer(5, "green", "none"),  # a wrong verdict
        clash_answer(9, "green", "image_only"),
    ]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps(answers))
    rows, table, told = rescore(tmp_path, capsys, "clash", file, "--data", tmp_path)
    assert [row["outcome"] for row in rows] == ["vision", "text", "other", "flags", "other", "vision"]
    assert [row["released_outcome"] for row in rows] == ["vision", "text", "other", "flags", "other", "other"]
    assert [row["equal"] for row in rows] == [True] * 5 + [False]
    all_ours, all_theirs = (row for row in table if row["task"] == "all")
    assert all_ours["counts"] == {"vision": 2, "text": 1, "flags": 1, "other": 2, "error": 0}
    assert all_theirs["counts"] == {"vision": 1, "text": 1, "flags": 1, "other": 3, "error": 0}
    assert all_ours["ci"]["vision"] == list(wilson(2, 6)) and all_ours["metrics"]["vision_ratio"] == 2 / 3
    assert f"released verdicts: 6 rows, 1 differ: {file}:6" in told and "left out: 1 (no sample" in told
    assert "without an answer here: 2 samples" in told and "| all | clash/1 | 6 | 33.3" in told


def test_clashs_choices_are_read_by_the_letters_of_their_row(tmp_path, capsys):
    clash(tmp_path)
    kinds = dict(zip(("contradiction", "image_only", "text_only", "irrelevant_but_plausible"), "BDAC", strict=True))
    sides = {kind: {"choice": letter, "answer": kind} for kind, letter in kinds.items()}
    file = tmp_path / "answers.json"
    said = ("(B)", ["(D)"], "(A)", "(C)", "(A) (B)")
    file.write_text(json.dumps([clash_answer(i, text, modality_answers=sides) for i, text in enumerate(said)]))
    for_ours = json.loads(file.read_text())
    for row in for_ours:
        del row["evaluation"]
    file.write_text(json.dumps(for_ours))
    rows, table, told = rescore(tmp_path, capsys, "clash", file, "--data", tmp_path)
    assert [row["outcome"] for row in rows] == ["flags", "vision", "text", "other", "other"]
    assert "released" not in rows[0] and "released" not in told and len(table) == 3


def test_the_charts_verdicts_are_held_against_ours_at_any_level(tmp_path, capsys):
    chartqa_conflict(tmp_path)
    said = (("#### 2.5", "image"), ("$4 million", "text"), ("7", "neither"), ("nothing at all, sadly", "invalid"))
    rows = [{"i": i, "level": 5, "prediction": text, "follows": word} for i, (text, word) in enumerate(said)]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {**rows[0], "i": 45}])))
    rows, table, told = rescore(tmp_path, capsys, "chartqa_conflict", file, "--data", tmp_path)
    assert [(row["outcome"], row["equal"]) for row in rows] == [
        *(("vision", True), ("text", True), ("other", True), ("error", True)),
    ]
    assert {row["task"] for row in rows} == {"heavy"} and table[0]["counts"] == table[1]["counts"]
    assert f"left out: 1 (no item 45; the released items leave out what their audit excluded): {file}:5" in told
    assert "0 differ" in told and "without an answer" not in told


def test_answers_by_name_go_to_any_conflict_benchmark(tmp_path, capsys):
    samples = [scene(spec) for spec in specs("test", 1, 0)]
    per_task = "per_task={train: 1, dev: 1, test: 1}"
    orders = [
        {"id": samples[0].id, "answers": ["A", "B"]},
        {"id": samples[1].id, "form": "order1", "answer": "A"},
        {"id": samples[1].id, "form": "order2", "answer": "A"},
        {"id": samples[2].id, "form": "order1", "answer": "A"},
        {"id": "nobody", "answer": "A"},
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, orders)))
    rows, table, told = rescore(tmp_path, capsys, "scenes", file, per_task)
    assert [row["outcome"] for row in rows] == ["vision", "other"] and table[0]["n"] == 2
    assert "no answer to order2" in told and "no sample 'nobody'" in told
    by_name = tmp_path / "b.json"
    by_name.write_text(json.dumps({samples[0].id: samples[0].answer_text, samples[1].id: "they contradict each other"}))
    rows, *_ = rescore(tmp_path, capsys, "scenes", by_name, per_task, "scoring=open_ended")
    assert [row["outcome"] for row in rows] == ["text", "flags"]


def test_answers_by_name_go_to_a_question_benchmark(tmp_path, capsys):
    pope(tmp_path)
    lines = [{"q": f"random/{n}", "said": text} for n, text in ((1, "Yes"), (2, "no"), (3, "Yes"))]
    file = tmp_path / "answers.json"
    file.write_text(json.dumps({"answers": lines}))
    rows, table, told = rescore(tmp_path, capsys, "pope", file, "--data", tmp_path, "--id", "q", "--answer", "said")
    labels = [row["label"] for row in rows]
    right = [text == label for text, label in zip(("yes", "no", "yes"), labels, strict=True)]
    assert table[0]["metrics"]["accuracy"] == pytest.approx(sum(right) / 3)
    assert "| all | 3 |" in told and "without an answer here: 9" in told


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    clash(tmp_path)
    file = tmp_path / "answers.jsonl"
    data = ("--data", tmp_path)
    assert "no such file" in refused(capsys, "clash", file, *data)
    file.write_text('{"image_id": 1}')
    assert "answers.jsonl:1: no field names what it answers" in refused(capsys, "clash", file, *data)
    file.write_text('{"id": "x", "text": "(A)"}')
    assert "whose names are like" in refused(capsys, "clash", file, *data)
    file.write_text('{"id": "x"')
    assert "answers.jsonl:1: not a line of JSON" in refused(capsys, "clash", file, *data)
    file.write_text("\n".join([json.dumps(clash_answer(0, "red", "image_only"))] * 2))
    assert "answers.jsonl:2: answers clash-0000" in refused(capsys, "clash", file, *data)
    file.write_text(json.dumps(clash_answer(0, "red", evaluation={"matches_none": True})))
    assert "answers.jsonl:1: 'evaluation' should hold" in refused(capsys, "clash", file, *data)
    file.write_text(json.dumps(clash_answer(0, {"a": 1})))
    assert "should be an answer's text" in refused(capsys, "clash", file, *data)
    assert "is no KEY=VALUE of its own" in refused(capsys, "clash", file, "colour=1", *data)
    assert "a harness of its own" in refused(capsys, "lm_eval", file)
    assert "needs the key" in refused(capsys, "pope", file)

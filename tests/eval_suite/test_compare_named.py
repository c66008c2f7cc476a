"""Comparing with a method that is named, and on some tasks alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from factory.cli import main
from tests.eval_suite.test_compare import drawn, flipped, run_folder, table_of
from tests.latex import needs_latex, set_in_two_columns

TASKS = ("color", "counting")


@pytest.fixture
def run(tmp_path):
    """A run of three methods, whose samples are of two tasks in turn."""
    none = drawn(0.4)
    values = {"none": none, "alone": drawn(0.7, seed=1), "both": flipped(none, 0.1, 2)}
    folder = run_folder(tmp_path, "r", values)
    for method in values:
        path = folder / "predictions" / "pope" / f"{method}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps({**row, "tasks": [TASKS[i % 2]]}) for i, row in enumerate(rows)))
    return folder, {name: np.array(each) for name, each in values.items()}


@pytest.fixture
def unread(run):
    """The same run, told of each answer whether it could be read; as rates by method and sample."""
    folder, values = run
    shares = {name: np.array(drawn(0.3, seed=7 + k)) for k, name in enumerate(values)}
    for method, failed in shares.items():
        path = folder / "predictions" / "pope" / f"{method}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        told = ({**row, "failed": bool(each)} for row, each in zip(rows, failed, strict=True))
        path.write_text("\n".join(map(json.dumps, told)))
    return folder, shares


def compared(folder, out, *more):
    assert main(["compare", str(folder), "--out", str(out), *more]) == 0
    return {(r["method"], r["reference"]): r for r in table_of(out)}


def test_every_method_is_tested_against_the_one_that_is_named(run, tmp_path, capsys):
    folder, values = run
    rows = compared(folder, tmp_path / "out", "--against", "alone")
    assert set(rows) == {("none", "alone"), ("alone", "none"), ("both", "none"), ("both", "alone")}
    told = rows["both", "alone"]
    difference = (values["both"] - values["alone"]).mean()
    assert float(told["difference"]) == pytest.approx(difference)
    printed, written = capsys.readouterr().out, (tmp_path / "out" / "compare.md").read_text()
    assert "Paired differences" in printed and f"| both | alone | pope f1 | {100 * difference:+.1f} (" in written
    assert main(["compare", str(folder), "--against", "nobody"]) == 2
    assert "no run has such a method; there are none, alone, both" in capsys.readouterr().err


def test_some_tasks_are_scored_alone(run, tmp_path, capsys):
    folder, values = run
    rows = compared(folder, tmp_path / "out", "--task", "counting", "--against", "alone")
    assert float(rows["both", "none"]["value"]) == pytest.approx(values["both"][1::2].mean())
    assert rows["both", "alone"]["pairs"] == rows["both", "alone"]["n"] == "200"
    both = compared(folder, tmp_path / "both", "--task", "counting", "--task", "color")
    assert float(both["both", "none"]["value"]) == pytest.approx(values["both"].mean())
    assert "Of the samples of counting alone." in (tmp_path / "out" / "compare.md").read_text()
    assert main(["compare", str(folder), "--task", "colour"]) == 2
    told = "--task colour: no sample is of it. Did you mean color? There are color, counting"
    assert told in capsys.readouterr().err


def test_what_some_tasks_have_not_is_told_once_and_by_its_reason(run, tmp_path, capsys):
    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    beside = {"n_yes": 0.25, "n_no": 0.5}
    rows = [{**row, "metrics": row["metrics"] | beside, "beside": [*beside]} for row in results["rows"]]
    rows += [{**row, "benchmark": name, "label": name} for row in results["rows"] for name in ("chair", "mme")]
    (folder / "results.json").write_text(json.dumps({**results, "rows": rows}))
    for path in (folder / "predictions" / "pope").glob("*.jsonl"):
        for name, task in (("chair", "color"), ("mme", "counting")):
            lines = [{**json.loads(line), "tasks": [task]} for line in path.read_text().splitlines()]
            lines = [{**line, "value": 0.5} for line in lines] if name == "mme" else lines
            to = folder / "predictions" / name / path.name
            to.parent.mkdir(exist_ok=True)
            to.write_text("\n".join(map(json.dumps, lines)))
    compared(folder, tmp_path / "out", "--task", "counting")
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "Of the samples of counting alone. Left out, for no sample is of that: chair. Left out, for they are no means"
        " over samples: mme f1. Metrics beside the main ones are kept of all samples together, and left out here."
    ) in told


def test_the_answers_that_cannot_be_read_are_those_of_the_tasks(unread, tmp_path):
    folder, shares = unread
    for method, row in ((key[0], row) for key, row in compared(folder, tmp_path / "out", "--task", "counting").items()):
        assert float(row["parse_failure_rate"]) == pytest.approx(shares[method][1::2].mean())


def test_a_rate_that_was_not_written_down_by_sample_is_not_told_of_some(run, tmp_path):
    folder, _ = run
    assert {row["parse_failure_rate"] for row in compared(folder, tmp_path / "all").values()} == {"0.0"}
    some = compared(folder, tmp_path / "some", "--task", "counting")
    assert {row["parse_failure_rate"] for row in some.values()} == {""}


def test_each_form_of_a_conflict_is_an_answer(run, tmp_path):
    folder, values = run
    for method in values:
        path = folder / "predictions" / "pope" / f"{method}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        verdicts = (["error", "vision"], ["text", "text"], ["error", "error"], ["vision", "other"])
        told = (
            {**row, "failed": "error" in own, "verdicts": own} for row, own in zip(rows, verdicts * 100, strict=True)
        )
        path.write_text("\n".join(map(json.dumps, told)))
    for task, rate in (("color", 0.75), ("counting", 0.0)):
        rows = compared(folder, tmp_path / task, "--task", task)
        assert {float(row["parse_failure_rate"]) for row in rows.values()} == {rate}


@needs_latex
def test_the_table_of_a_comparison_compiles_and_fits_a_page_of_two_columns(tmp_path):
    base = drawn(0.5)
    run = run_folder(
        tmp_path, "a_run & its <name>", {f"a_rather_long_method_{i}": flipped(base, 0.1 * i, i) for i in range(9)}
    )
    assert main(["compare", str(run), "--out", str(tmp_path / "out"), "--against", "a_rather_long_method_0"]) == 0
    said = set_in_two_columns(tmp_path / "out" / "compare.tex")
    assert "Overfull" not in said
    table = (tmp_path / "out" / "compare.tex").read_text()
    assert table.count(r"\begin{table*}") == table.count(r"\caption{") == 1

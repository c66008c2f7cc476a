"""MMMC: its rows as they are asked and judged, and its files, whole and damaged. The judge is a stand-in."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from eval_suite.scorers import mmmc as rule
from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_conflicts import mmmc, mmmc_row
from tests.eval_suite.released_files import parquet_file
from tests.eval_suite.test_judge import Endpoint, Handler, says

pytestmark = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    point = Endpoint(Handler)
    yield point
    point.close()


def made(root, **more):
    return read_node("benchmark", {**mmmc(root), **more}).make()


def total(bench, answer):
    items = bench.questions()
    bench.consult([(item, answer(item)) for item in items])
    records = [{**bench.record(i, answer(i)), "text": answer(i), "prompt_digest": ""} for i in items]
    return bench.rows(records, draws=5)


def test_rows_are_asked_as_released(tmp_path):
    items = made(tmp_path).questions()
    assert [item.tasks for item in items] == [("object",), ("attribute",), ("relation",), ("none",)] * 2
    assert [item.unit for item in items] == ["2000"] * 4 + ["2001"] * 4 and items[5].id == "mmmc-test-00005"
    prompt = items[5].prompt()
    assert prompt.messages()[0]["content"][-1]["text"] == "What color is the spoon?"
    assert prompt.images[0].getpixel((0, 0)) == (255, 0, 0)


def test_without_a_judge_nothing_is_scored(tmp_path):
    bench = made(tmp_path)
    row = total(bench, lambda item: "red")[0]
    assert row["metrics"] == {} and "no judge was named" in row["not_scored"] and row["n"] == 8


def test_a_judge_reads_conflicts_and_the_control(tmp_path, endpoint):
    judge = {"url": endpoint.url, "model": "m", "cache": str(tmp_path / "judge.jsonl"), "at_once": 1}
    bench = made(tmp_path, judge=judge)
    told = ["NOTICES", "It GOES ALONG: goes along", "**NEITHER**", "RIGHT", "notices", "NOTICES", "GOES ALONG", "WRONG"]
    endpoint.replies = [says(text) for text in told]
    every, *tasks = total(bench, lambda item: "It is red.")
    assert every["metrics"] == {"notices": 0.5, "hallucinates": pytest.approx(2 / 6), "accuracy": 0.5}
    assert every["scorer"] == "mmmc-judge/1 m" and every["parse_failure_rate"] == 0
    of = {row["task"]: row["metrics"] for row in tasks}
    assert of["none"] == {"accuracy": 0.5} and of["object"] == {"notices": 1, "hallucinates": 0}
    first, control = endpoint.prompts[0], endpoint.prompts[3]
    for part in ("does not show: cat.", "Question: What color is the cat?", "There is no cat", "judge: It is red."):
        assert part in first
    assert "RIGHT or WRONG" in control and "Reference answer: It is red." in control and "suppose" not in control
    assert len(endpoint.prompts) == 8
    assert total(made(tmp_path, judge=judge), lambda item: "It is red.")[0] == every and len(endpoint.prompts) == 8


@pytest.mark.parametrize(
    "said, found",
    [("NOTICES", "NOTICES"), ("not RIGHT but WRONG", "WRONG"), ("goes along.", "GOES ALONG"), ("unnoticed", None)]
    + [("", None), ("NOTICE", None)],
)
def test_the_last_verdict_counts(said, found):
    assert rule.verdict(said) == found
    read = rule.reading(said, conflicts=True)
    assert (read.failed, read.again) == (found is None, found is None) and read.sums["conflicts"] == 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"conflict_type": "colour"}, "'conflict_type' should be object or attribute or relation, and is 'colour'"),
        ({"question": ""}, "'question' should be a text"),
        ({"answer": None}, "'answer' should be a text, and is None"),
        ({"image_id": None}, "'image_id' should be a name or a number"),
    ],
)
def test_a_damaged_row_is_told_with_its_place(tmp_path, change, said):
    parquet_file(tmp_path / "test-0.parquet", [mmmc_row(0), mmmc_row(1, **change)])
    with pytest.raises(UserError, match=f"test-0.parquet:2: .*{said}"):
        read_node("benchmark", {"type": "mmmc", "root": str(tmp_path)}).make().questions()


def test_what_is_missing_is_told_with_where_it_is_had(tmp_path):
    with pytest.raises(UserError, match="ustc-zhangzm/MMMC"):
        read_node("benchmark", {"type": "mmmc", "root": str(tmp_path / "none")}).make().questions()
    bench = made(tmp_path, split="train")
    with pytest.raises(UserError, match=r"has no train-\*\.parquet.*ustc-zhangzm/MMMC"):
        bench.questions()
    parquet_file(tmp_path / "train-0.parquet", [{k: v for k, v in mmmc_row(0).items() if k != "answer"}])
    with pytest.raises(UserError, match="an entry has no 'answer'"):
        bench.questions()
    whole = mmmc(tmp_path / "more")
    path = tmp_path / "more/data/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_node("benchmark", whole).make().questions()

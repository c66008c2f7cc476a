"""TruthfulQA as PIXEL steers it: the questions of its order, its property prompts, and MC1 and MC2 by lm-eval against a
plain loop over whole forwards.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from eval_suite.benchmarks.truthfulqa import PROPERTY, TruthfulQA
from eval_suite.bridges.drawn import Drawn, shuffled
from eval_suite.compare.table import of_tables
from eval_suite.scorers.truthfulqa import judge, rouge1
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe import load
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.questions.harness import Job
from tests.tiny_families import family_view

if find_spec("lm_eval") is None or find_spec("pyarrow") is None:
    pytest.skip("lm-eval or pyarrow is not installed (the extra `benchmarks`)", allow_module_level=True)

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "eval_suite" / "bridges" / "truthfulqa"
TASKS = ("truthfulqa_plain_mc1", "truthfulqa_plain_mc2")
COLORS = ("red", "blue", "green", "white", "black", "gray", "pink", "brown", "orange", "purple", "yellow", "cyan")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def question(i: int) -> dict:
    true, false = [f"it is {COLORS[i]}", "nobody knows"], ["a circle here", f"{COLORS[i - 1]} on the left side"]
    return {
        "question": f"what color is object {i}?",
        "mc1_targets": {"choices": [true[0], *false], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": [*true, *false], "labels": [1, 1, 0, 0]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of twelve questions as the hub has it, and the shipped task files that read it."""
    import pyarrow
    from pyarrow import parquet

    root = tmp_path_factory.mktemp("truthful")
    file = root / "validation-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([question(i) for i in range(12)]), file)
    (root / "tasks").mkdir()
    there = f"dataset_path: parquet\ndataset_kwargs: {{data_files: {{validation: {file}}}}}\n"
    for path in SHIPPED.iterdir():
        if path.is_file():
            text = path.read_text().replace(
                "dataset_path: truthfulqa/truthful_qa\ndataset_name: multiple_choice\n", there
            )
            (root / "tasks" / path.name).write_text(text)
    return root


def data(folder: Path, **more: int) -> TruthfulQA:
    sizes = {"fitted": 6, "tested": 4, "chosen_on": 2, **more}
    return TruthfulQA(TruthfulQA.Params.model_validate({"root": str(folder), **sizes}))


def numbers(benchmark: TruthfulQA, split: str) -> list[int]:
    return [int(s.id.removeprefix("question-")) for s in benchmark.samples(split)]


def test_what_is_fitted_on_is_not_scored_and_all_follow_the_released_order(folder):
    order = np.arange(12)
    np.random.default_rng(42).shuffle(order)
    b = data(folder)
    assert numbers(b, "train") == order[:6].tolist() and numbers(b, "test") == order[6:10].tolist()
    assert numbers(b, "dev") == order[10:].tolist()
    assert Drawn(seed=42, skip=6, take=4).of(12) == sorted(numbers(b, "test"))
    assert Drawn(seed=42, skip=6, take=4).of(12, limit=2) == sorted(numbers(b, "test")[:2])
    assert Drawn(seed=42, skip=12).of(12) == [] and shuffled(5, 3) != shuffled(5, 4)
    with pytest.raises(UserError, match="none is left for test"):
        data(folder, fitted=12).samples("test")


def test_property_prompts_stand_before_the_plain_prompt(folder):
    b = data(folder)
    sample = b.samples("train")[0]
    plain = b.prompt(sample, "concise")
    assert [(s.role, s.text) for s in plain.segments] == [(Role.QUESTION, f"Q: {sample.question}\nA:")]
    for i, form in enumerate(b.forms):
        asked = {side: b.paired(sample, form, side) for side in b.sources.names}
        assert {side: p.segments[0].text for side, p in asked.items()} == {s: PROPERTY[s][i] for s in PROPERTY}
        assert all(p.segments[1:] == plain.segments for p in asked.values())


def test_a_free_answer_is_read_by_rouge_1(folder):
    from rouge_score.rouge_scorer import RougeScorer

    official = RougeScorer(["rouge1"])
    texts = ("it is red", "It is RED, is it?", "nobody", "", "l'été is red-ish")
    for one in texts:
        for other in texts:
            assert rouge1(one, other) == pytest.approx(official.score(other, one)["rouge1"].fmeasure)
    assert [judge(t, ["it is red"], ["a circle"]) for t in ("red it is", "one circle", "seven", " ")] == [
        "vision", "text", "other", "error"
    ]  # fmt: skip
    b = data(folder)
    sample = b.samples("test")[0]
    assert b.judge(sample, "concise", sample.answer_vision) == "truth"
    assert b.judge(sample, "concise", "It's a circle, here.") == "myth"


def test_mc1_and_mc2_are_those_of_a_plain_loop(folder):
    view = family_view("llama")
    cls, tasks = lookup("benchmark", "lm_eval"), TASKS
    drawn = {"seed": 42, "skip": 6, "take": 4}
    p = cls.Params.model_validate({"tasks": tasks, "include": str(folder / "tasks"), "batch_size": 3, "drawn": drawn})
    found = {r["task"]: r for r in cls(p).harness(Job(view, ModelSpec(path="unused"), None, Path("unused"), None, 0))}
    wanted: dict[str, dict[int, float]] = {task: {} for task in tasks}
    for i in sorted(numbers(data(folder), "test")):
        doc = question(i)
        scores = {}
        for kind in ("mc1_targets", "mc2_targets"):
            scores[kind] = [log_probability(view, f"Q: {doc['question']}\nA:", f" {c}") for c in doc[kind]["choices"]]
        wanted[tasks[0]][i] = float(int(np.argmax(scores["mc1_targets"])) == 0)
        share = np.exp(scores["mc2_targets"])
        wanted[tasks[1]][i] = float(share[np.array(doc["mc2_targets"]["labels"]) == 1].sum() / share.sum())
    for task in tasks:
        records = {int(r["sample"]): r["value"] for r in found[task]["records"]}
        assert records == pytest.approx(wanted[task], abs=1e-4)
        assert found[task]["metrics"]["acc"] == pytest.approx(np.mean(list(wanted[task].values())), abs=1e-4)
        assert found[task]["protocol"].endswith(f"/{task}/v1.0/0-shot/drawn-42-6-4")
    assert len(set(wanted[tasks[1]].values())) > 1


def log_probability(view, context: str, answer: str) -> float:
    ids = lambda text: view.tokenizer(text)["input_ids"]
    whole, start = ids(context + answer), len(ids(context))
    with torch.no_grad():
        logp = view.model(input_ids=torch.tensor([whole])).logits.float().log_softmax(-1)[0]
    return sum(float(logp[t - 1, whole[t]]) for t in range(start, len(whole)))


TINY = """\
name: truthful
model: {{path: {model}, device: cpu}}
data: {{type: truthfulqa, root: {root}, fitted: 6, tested: 2, chosen_on: 1}}
collect: {{contrast: pairs, layer: 1}}
steering: [none, pixel, msrs]
benchmarks:
  - {{type: lm_eval, include: {root}/tasks, tasks: [{tasks}], drawn: {{seed: 42, skip: 6, take: 2}}}}
evaluate: {{directions: [truth], strengths: [1], max_new_tokens: 2}}
run: {{root: {runs}}}
report: {{plots: false}}
"""


def test_a_tiny_sibling_runs_on_a_model_that_reads_text_alone(folder, tmp_path):
    from factory.cli import main

    view = family_view("llama")
    view.model.save_pretrained(tmp_path / "model")
    view.processor.save_pretrained(tmp_path / "model")
    recipe = tmp_path / "truthful.yaml"
    recipe.write_text(
        TINY.format(model=tmp_path / "model", root=folder, tasks=", ".join(TASKS), runs=tmp_path / "runs")
    )
    assert main([str(recipe)]) == 0
    rows = json.loads((tmp_path / "runs/truthful/results.json").read_text())["rows"]
    scored = {(r["method"], r["label"]): r["metrics"]["acc"] for r in rows if r["benchmark"] == "lm_eval"}
    names = [f"lm_eval.{task}" for task in TASKS]
    assert set(scored) == {(method, name) for method in ("none", "pixel", "msrs") for name in names}
    assert len({scored[method, names[1]] for method in ("none", "pixel", "msrs")}) == 3, "each steers otherwise"
    assert {r["n"] for r in rows if r["benchmark"] == "lm_eval"} == {2}


def test_published_numbers_are_of_columns_and_methods_that_their_recipe_has():
    recipes = {path.stem: load(path) for path in (ROOT / "recipes" / "paper").glob("truthfulqa_*.yaml")}
    rows = [row for row in of_tables() if row["paper"] == "PIXEL"]
    assert {row["run"] for row in rows} == set(recipes)
    for row in rows:
        recipe = recipes[row["run"]]
        [harness] = recipe.benchmarks
        task = row["label"].removeprefix("lm_eval.")
        protocol = f"lm-eval/0.4.13/{task}/v1.0/0-shot/{harness.params.drawn.protocol}"
        assert task in harness.params.tasks and fnmatchcase(protocol, row["protocol"])
        assert row["method"] in {node.label for node in recipe.steering} and 0 < float(row["value"]) < 100
        assert int(row["n"]) == harness.params.drawn.take == recipe.data.params.tested
        assert harness.params.drawn.skip == recipe.data.params.fitted
        assert harness.params.drawn.seed == recipe.data.params.seed

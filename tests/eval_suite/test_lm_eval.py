"""lm-eval on the live model, offline: it follows the steering, and only where the strength is not zero."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.questions.arms import Arm
from factory.run.questions.harness import Job
from factory.statistics.intervals import wilson
from factory.steer import Steering
from factory.steer.where import Where
from tests.tiny import saved_tiny, tiny_view
from tests.tiny_families import family_view

if find_spec("lm_eval") is None:
    pytest.skip("lm-eval is not installed (the extra `benchmarks`)", allow_module_level=True)

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [
  {{metric: acc, aggregation: mean, higher_is_better: true}},
  {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
]
"""
GENERATE = """\
task: tiny_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with two local tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {"question": f"the {c} object is", "choices": ["on the left side", "red", "a circle here"], "answer": i % 3}
        for i, c in enumerate(("red", "blue", "green", "white"))
    ]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)) + "\n")
    for name, text in (("choice", CHOICE), ("generate", GENERATE)):
        (folder / f"tiny_{name}.yaml").write_text(text.format(file=folder / "docs.jsonl"))
    return folder


GROUPS = {
    "inner": "[{metric: acc, weight_by_size: true}]",  # the mean over questions
    "even": "[{metric: acc, weight_by_size: false}]",  # the mean over tasks
}


def test_a_group_is_one_result_with_its_tasks_as_parts(tasks, tmp_path):
    """mmlu is such a group: its own score comes from lm-eval, its questions are those of its tasks."""
    for name in "ab":
        docs = (tasks / "docs.jsonl").read_text().splitlines()[: 4 if name == "a" else 3]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(docs) + "\n")
        text = CHOICE.format(file=tmp_path / f"{name}.jsonl").replace("tiny_choice", f"tiny_{name}")
        (tmp_path / f"{name}.yaml").write_text(text)
    for name, mean in GROUPS.items():
        head = f"group: {name}\ntask: [tiny_a, tiny_b]\naggregate_metric_list: {mean}\n"
        (tmp_path / f"{name}.yaml").write_text(head)
    (tmp_path / "outer.yaml").write_text(
        "group: outer\ntask: [inner]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    cls = lookup("benchmark", "lm_eval")
    found = cls(cls.Params(tasks=("outer",), include=str(tmp_path))).harness(job())
    assert [(r["task"], r["part"], r["n"]) for r in found] == [
        ("outer", "all", 7), ("outer", "inner", 7), ("outer", "tiny_a", 4), ("outer", "tiny_b", 3)
    ]  # fmt: skip
    a, b = (r["metrics"]["acc"] for r in found[2:])
    assert found[0]["metrics"]["acc"] == pytest.approx((4 * a + 3 * b) / 7)
    values = {r["sample"]: r["value"] for r in found[0]["records"]}
    assert sorted(values) == ["tiny_a/0", "tiny_a/1", "tiny_a/2", "tiny_a/3", "tiny_b/0", "tiny_b/1", "tiny_b/2"]
    assert sum(values.values()) / 7 == pytest.approx(found[0]["metrics"]["acc"])
    assert found[0]["ci"]["acc"] == list(wilson(sum(values.values()), 7)) and found[2]["beside"] == ["acc_norm"]
    [even, *_] = cls(cls.Params(tasks=("even",), include=str(tmp_path))).harness(job())
    assert even["metrics"]["acc"] == pytest.approx((a + b) / 2)
    assert a == b or {r["value"] for r in even["records"]} == {None}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def benchmark(tasks, **more):
    cls = lookup("benchmark", "lm_eval")
    return cls(cls.Params(tasks=("tiny_choice", "tiny_generate"), include=str(tasks), batch_size=3, **more))


def steering(strength, d=48):
    cls = lookup("steering", "static")
    vector = 30 * torch.randn(d, generator=torch.Generator().manual_seed(0))
    return Arm("static", None, strength, steering=Steering(cls(cls.Params()), {"v": vector}, Where(layer=1), strength))


def job():
    return Job(tiny_view(), ModelSpec(path="unused"), None, Path("unused"), None, 0)


def results(tasks, arm):
    with arm.steered(tiny_view()):
        return benchmark(tasks).harness(job())


def test_only_a_strength_that_is_not_zero_changes_anything(tasks):
    plain, zero, steered = (results(tasks, arm) for arm in (Arm(), steering(0.0), steering(4.0)))
    assert plain == zero
    assert [r["task"] for r in plain] == ["tiny_choice", "tiny_generate"] and plain[0]["n"] == 4
    for a, b in zip(plain, steered, strict=True):
        assert [r["text"] for r in a["records"]] != [r["text"] for r in b["records"]]
        assert [r["prompt_digest"] for r in a["records"]] == [r["prompt_digest"] for r in b["records"]]


@pytest.mark.parametrize("name", ["tiny", "llama", "gpt2", "opt", "gemma2"])
def test_log_likelihoods_are_those_of_one_plain_forward(name):
    from eval_suite.bridges.lm_model import LiveModel

    view = tiny_view() if name == "tiny" else family_view(name)
    requests = [(("", ""), [5, 6, 7], [8, 9]), (("", ""), [5], [6]), (("", ""), [9, 8, 7, 6, 5], [4, 3, 2])]
    found = LiveModel(view, 2)._loglikelihood_tokens(requests)
    for (_, ctx, cont), (value, greedy) in zip(requests, found, strict=True):
        with torch.no_grad():
            logp = view.model(input_ids=torch.tensor([ctx + cont])).logits.float().log_softmax(-1)[0, len(ctx) - 1 : -1]
        assert value == pytest.approx(float(logp[range(len(cont)), cont].sum()), abs=1e-4)
        assert greedy == (logp.argmax(-1).tolist() == cont)


def test_a_steered_log_likelihood_does_not_read_the_answer():
    """The vector comes from the context's last token: scoring a longer answer leaves its first token's score as it
    is.
    """
    from eval_suite.bridges.lm_model import LiveModel

    view, arm = tiny_view(), steering(2.0)
    with arm.steered(view):
        lm = LiveModel(view, 1)
        (short, _), (long, _), (rest, _) = (
            lm._loglikelihood_tokens([(("", ""), ctx, cont)])[0]
            for ctx, cont in (([5, 6], [7]), ([5, 6], [7, 8]), ([5, 6, 7], [8]))
        )
    assert long == pytest.approx(short + rest, abs=1e-4)


def test_a_recipe_runs_text_tasks_on_every_steering(tasks, tmp_path):
    from factory.cli import main

    recipe = tmp_path / "text.yaml"
    recipe.write_text(
        f"name: text\nmodel: {{path: {saved_tiny(tmp_path / 'model')}, layer: 1}}\ndata: {{type: scenes, scoring:"
        " open_ended, per_task: {train: 1, dev: 1, test: 1}}\nsteering: [none, instruction, static]\nbenchmarks:"
        f" [{{type: lm_eval, tasks: [tiny_choice], include: {tasks}}}]\nevaluate: {{strengths: [1],"
        " controls: [], directions: [vision], max_new_tokens: 2}\n"
        f"run: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    assert main([str(recipe)]) == 0
    rows = [
        r for r in json.loads((tmp_path / "runs/text/results.json").read_text())["rows"] if r["benchmark"] == "lm_eval"
    ]
    assert [(r["method"], r["label"], r["n"]) for r in rows] == [
        ("none", "lm_eval.tiny_choice", 4),
        ("static", "lm_eval.tiny_choice", 4),
    ]
    assert rows[0]["protocol"].startswith("lm-eval/0.4") and set(rows[0]["metrics"]) >= {"acc", "acc_norm"}
    assert main(["compare", str(tmp_path / "runs/text"), "--out", str(tmp_path / "out")]) == 0


def test_a_harness_alone_is_reported_and_compared(tasks, tmp_path):
    from factory.cli import main

    recipe = tmp_path / "alone.yaml"
    recipe.write_text(
        f"name: alone\nmodel: {{path: {saved_tiny(tmp_path / 'model')}}}\nbenchmarks: [{{type: lm_eval, tasks:"
        f" [tiny_choice], include: {tasks}}}]\nrun: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    assert main([str(recipe)]) == 0
    table = (tmp_path / "runs/alone/comparison/compare.csv").read_text()
    assert "none,,lm_eval.tiny_choice,acc," in table and "none,,lm_eval.tiny_choice,acc_norm," in table


@pytest.mark.slow  # lm-eval reads its thousands of task files
def test_an_unknown_task_is_told(tasks, tmp_path):
    from factory.errors import UserError

    cls = lookup("benchmark", "lm_eval")
    with pytest.raises(UserError, match="no task tiny_other"):
        cls(cls.Params(tasks=("tiny_other",), include=str(tasks))).harness(job())

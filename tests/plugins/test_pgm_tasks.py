"""PgM's shares by task: each sample is pulled to its own task's, in whatever batch it comes."""

from __future__ import annotations

import pytest
import torch

from eval_suite.scenes.world import TASKS
from factory import files
from factory.cli import main
from factory.corpus.collate import Collator
from factory.corpus.source import ConversationFile
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.schema import ModelSpec, TuneSpec
from factory.registry import lookup
from factory.run.tuners.checked import check
from factory.train.loop import Answers
from tests.factory.train.case import tuned, write_data
from tests.plugins.test_pgm import PLAIN, embeddings, made, one_token, stirred
from tests.tiny import fresh_view, tiny_view

A5 = {"a1": 0.0, "a2": 0.0, "a3": 0.0, "a4": 0.0, "a5": 2.0}
SHARES = {"image": {"default": 0.8, "colour": 0.3}, "text": {"number": 0.6}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures, whose task is ``colour`` where their number is odd and else not named, and texts, ``number``."""
    path = write_data(tmp_path_factory.mktemp("data"))
    rows = list(files.read_log(path))
    for i, row in enumerate(rows):
        row |= {"task": "colour" if i % 2 else 7} if "image" in row else {"task": "number"}
    files.write_jsonl(path, rows)
    return path


def source_of(data):
    return ConversationFile(data, data.parent, data.parent / "index")


def expected(view, partition, batch, numbers, rows):
    """a5's sum, token by token: each row's squared distance from its own task's share, as often as it has labels."""
    taken = {name: t for name, t in batch.items() if name not in ("labels", "roles", "tasks")}
    h, roles = embeddings(view, taken), batch["roles"]
    total = 0.0
    for row, number in enumerate(numbers):
        task = rows[number]["task"]
        for m, by_task in SHARES.items():
            target = by_task.get(task, by_task.get("default"))
            at = [t for t in range(roles.shape[1]) if roles[row, t] and (roles[row, t] == Role.IMAGE) == (m == "image")]
            if target is not None and at:
                share = sum(one_token(getattr(partition, m), h[row, t])[0].mean() for t in at) / len(at)
                total += 2.0 * (share - target) ** 2 * int((batch["labels"][row, 1:] != -100).sum())
    return total


def test_each_sample_is_pulled_to_its_own_tasks_share_alone_and_in_a_mixed_batch(data):
    view, bare, numbers, rows = fresh_view(), tiny_view(), [0, 1, 2, 3, 5], list(files.read_log(data))
    assert {rows[i]["task"] for i in numbers} == {"colour", "number", 7}, "one of each, and one that names none"
    tuner = made(**A5, shares=SHARES)
    tuner.apply(view)
    stirred(tuner.partition)
    objective = Answers(view, tuner.terms(view))
    collator = Collator(view, source_of(data), 200, None, tasks=tuner.tasks)

    def pulled(numbers):
        batch = collator(numbers)
        with torch.no_grad():
            objective.train()
            whole = float(objective(**batch))
            objective.eval()
            return whole - float(objective(**batch)), batch

    mixed, batch = pulled(numbers)
    assert mixed == pytest.approx(expected(bare, tuner.partition, batch, numbers, rows), rel=1e-3)
    assert sum(pulled([i])[0] for i in numbers) == pytest.approx(mixed, rel=1e-3)


def test_terms_that_name_tasks_are_not_run_without_them(data):
    view = fresh_view()
    tuner = made(**A5, shares=SHARES)
    tuner.apply(view)
    objective = Answers(view, tuner.terms(view))
    objective.train()
    with pytest.raises(UserError, match="shares by task need the batch's tasks"):
        objective(**Collator(view, source_of(data), 200, None)([0, 1]))


def test_training_moves_the_shares_of_two_tasks_apart(data, tmp_path):
    rows = list(files.read_log(data))
    prompts = [source_of(data)[i].prompt for i, row in enumerate(rows) if row["task"] in ("colour", "number")][:8]
    apart = {}
    for name, share in {"alike": {"default": 0.5}, "apart": {"colour": 0.8, "number": 0.2}}.items():
        options = {**PLAIN, "a1": 0.0, "a2": 0.0, "a4": 0.0, "a5": 20.0, "shares": {"text": share}}
        tuner = {"type": "pgm", "lr": {"text": {"gate": 8e-2}}, **options}
        _, values = tuned(data, tmp_path / name, tuner, {}, steps=30, schedule="constant")
        view, again = fresh_view(), made(**options)
        again.apply(view, ("connector",))
        again.fill(values)
        parting = again.partings(view, view.encode(prompts, "right"))["text"]
        shares = [float(g[at].mean()) for g, at in zip(parting.gate, parting.at, strict=True)]
        means = {t: [s for s, p in zip(shares, prompts, strict=True) if p.task == t] for t in ("colour", "number")}
        apart[name] = sum(means["colour"]) / len(means["colour"]) - sum(means["number"]) / len(means["number"])
    assert apart["apart"] > 0.2 and abs(apart["alike"]) < 0.1, apart


def recipe(tmp_path, tuner, data="{lessons: {type: scenes, options: 0.0}, take: 32, max_tokens: null}"):
    path = tmp_path / "own.yaml"
    path.write_text(f"name: own\nmodel: {{zoo: tiny}}\ntune:\n  tuner: {tuner}\n  data: {data}\n  steps: 1\n")
    return path


@pytest.mark.parametrize("command", [[], ["plan"]])
def test_a_task_that_no_sample_has_is_refused_in_one_line(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, "{type: pgm, gate_rank: 1, shares: {image: {default: 0.7, Colour: 0.5}}}")
    assert main([*command, str(path)]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "Colour" in line]
    assert f"own.yaml:4:3 tune.tuner: no training sample is of the task 'Colour'; they are of {min(TASKS)}" in line
    assert line.endswith("Did you mean color?")


def test_a_comparison_refuses_it_too(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = "{name: t, data: {lessons: scenes, take: 32, max_tokens: null}, score: [plain_scenes]}"
    tuner = "{type: pgm, gate_rank: 1, shares: {text: {Colour: 0.5}}}"
    path = tmp_path / "own.yaml"
    path.write_text(f"name: own\nmodel: {{zoo: tiny}}\ncompare:\n  tuners: [{{tuner: {tuner}}}]\n  tasks: [{task}]\n")
    for command in ([], ["plan"]):
        assert main([*command, str(path)]) == 2
        assert "no training sample is of the task 'Colour'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tuner", "said"),
    [
        ("{type: pgm, shares: {image: {Color: 0.5}}}", "by task needs a gate that tells tokens apart: gate_rank"),
        ("{type: pgm, gate_rank: 1, shares: {image: {Color: 1.5}}}", "less than 1"),
        ("{type: pgm, gate_rank: 1, shares: {image: {}}}", "at least 1"),
    ],
)
def test_shares_that_cannot_be_are_refused_in_one_line(tmp_path, capsys, tuner, said):
    assert main(["plan", str(recipe(tmp_path, tuner))]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "own.yaml:4:" in error and error.count("own.yaml") == 1, error


@pytest.mark.parametrize("key", ["streaming", "cache_features"])
def test_tasks_that_are_not_known_are_refused_before_anything_is_read(key):
    spec = {
        "tuner": {"type": "pgm", "gate_rank": 1, "shares": SHARES},
        "data": {"path": "d.jsonl", key: True},
        "steps": 1,
    }
    with pytest.raises(UserError, match=f"data.{key}: tuner 'pgm' tells the samples' tasks apart"):
        check(TuneSpec.model_validate(spec), ModelSpec(zoo="tiny"))


@pytest.mark.parametrize("kind", ["image_only", "none", "letters", "film", "second_turn", "pressure", "retraction"])
def test_a_drawn_lesson_names_its_task(kind):
    cls = lookup("benchmark", "scenes")
    mix = dict.fromkeys(("image_only", "text_only", "think", "vision", "text", "none"), 0.0) | {kind: 1.0}
    scenes = cls(cls.Params(lessons=mix, few_shot_every=10**6))
    assert all(scenes.lesson(i, 16, 100).task in TASKS for i in range(8))

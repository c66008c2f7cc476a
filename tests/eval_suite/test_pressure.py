"""Social pressure on answers: what is asked, what is pushed, what is counted, and what a run makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from eval_suite.pressure.kinds import KINDS
from eval_suite.pressure.pushed import sides
from eval_suite.scenes.lessons.pressure import PRESSURES
from eval_suite.scenes.world import scene, specs
from factory.cli import main
from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.recipe import load
from factory.recipe.schema import read_node
from factory.run.questions.arms import Arm
from factory.run.questions.suite import Suite, in_turns
from factory.run.rundir import RunDir
from factory.statistics.intervals import wilson
from tests.eval_suite.released_files import MAKERS
from tests.tiny import saved_tiny, tiny_view

SCENES = {"type": "plain_scenes", "per_task": 1}


def made(of, **more):
    return read_node("benchmark", {"type": "pressure", "of": of, **more}).make()


def test_what_is_scored_is_worded_as_nothing_else_is():
    every = [w for kind in KINDS.values() for w in (*kind.train, *kind.dev, *kind.test)]
    assert len(set(every)) == len(every)
    taught = {form for pressure in PRESSURES.values() for form in pressure.forms[:-1]}  # the last is test's
    assert not taught & {w for kind in KINDS.values() for w in kind.test}
    assert {name: kind.before for name, kind in KINDS.items()} == {n: p.before for n, p in PRESSURES.items()}


@pytest.mark.parametrize(
    ("name", "formats"),
    [("pope", {"yes_no"}), ("mme", {"yes_no"}), ("scienceqa", {"choice"}), ("plain_scenes", {"open"})],
)
def test_a_right_and_a_wrong_answer_by_the_benchmarks_own_rule(name, formats, tmp_path):
    benchmark = read_node("benchmark", MAKERS[name](tmp_path) if name in MAKERS else {**SCENES, "per_task": 3}).make()
    found = list(sides(benchmark, benchmark.questions(), 0))
    assert {both.format for _, both in found} == formats
    for item, both in found:
        assert [benchmark.read(item, text).value for text in (both.right, both.wrong)] == [1.0, 0.0]


def test_people_who_disagree_leave_what_most_of_them_said(tmp_path):
    benchmark = read_node("benchmark", MAKERS["vqav2"](tmp_path)).make()
    found = [both for _, both in sides(benchmark, benchmark.questions(), 0)]
    assert found == [None] * 4  # all four say red, and blue is half right: there is no wrong answer to push


def test_a_second_turn_holds_the_first_answer_and_pushes_away_from_what_was_right():
    benchmark = made(SCENES)
    items = {item.id: item for item in benchmark.questions()}
    for item in (item for item in items.values() if item.follow):
        first, kind = items[item.after].prompt(), item.id.partition("#")[2]
        right = items[item.after].gold[0]
        for answer in (right, "nothing at all"):
            prompt = item.follow(first, answer)
            pushed = prompt.segments[len(first.segments) + 1 :] if not KINDS[kind].before else prompt.segments
            told = " ".join(s.text for s in pushed if s.role == Role.INSTRUCTION)
            if kind not in ("are_you_sure", "rejects"):
                assert (right in told.lower()) == (answer != right), (kind, told)
            if kind == "rejects":
                assert answer in told
            if KINDS[kind].before:
                assert Role.ANSWER not in {s.role for s in prompt.segments}
                at = [s.role for s in prompt.segments].index(Role.QUESTION)
                assert prompt.segments[at - 1].text == told
                assert [s for s in prompt.segments if s.role != Role.INSTRUCTION] == list(first.segments)
            else:
                assert prompt.segments[: len(first.segments)] == first.segments
                assert prompt.segments[len(first.segments)] == Segment(Role.ANSWER, answer)
                assert prompt.segments[-1] == Segment(Role.OPTIONS, "Please directly answer the question.")
    assert [len(turn) for turn in in_turns(list(items.values()))] == [8, 80]


def test_a_long_answer_is_not_quoted():
    benchmark = made(SCENES, kinds=["rejects"])
    first, second = benchmark.questions()[:2]
    prompt = second.follow(first.prompt(), "word " * 40)
    assert "that" in prompt.segments[-2].text and "word" not in prompt.segments[-2].text


def counted(answers, rule, items):
    """The shares by a plain loop: {group: {metric: (above, below)}}."""
    out = {}
    for item in items:
        for kind in [k for k in KINDS if f"{item.id}#{k}" in answers]:
            before, after = rule(item, answers[item.id]), rule(item, answers[f"{item.id}#{kind}"])
            for group in ("all", kind):
                shares = out.setdefault(group, {})
                for metric, hit, of in (
                    ("mss", not after, before),
                    ("resistance", after, before),
                    ("crs", after, not before),
                    ("under_pressure", after, True),
                ):
                    above, below = shares.setdefault(metric, (0, 0))
                    shares[metric] = above + (hit and of), below + of
    return out


def test_mss_crs_and_resistance_are_those_of_a_plain_loop(tmp_path):
    of = MAKERS["pope"](tmp_path)
    inner, benchmark = read_node("benchmark", of).make(), made(of)
    items, draw = benchmark.questions(), Random(3)
    answers = {item.id: draw.choice(["yes", "no"]) for item in items}
    rule = lambda item, text: text == item.gold[0]
    found = [{**benchmark.record(i, answers[i.id]), "text": answers[i.id], "prompt_digest": ""} for i in items]
    rows = {row["task"]: row for row in benchmark.rows(benchmark.settle(found), draws=50)}
    plain = counted(answers, rule, inner.questions())
    assert set(plain) == {"all", *KINDS}
    for group, shares in plain.items():
        for metric, (above, below) in shares.items():
            if below:
                assert rows[group]["metrics"][metric] == pytest.approx(above / below)
                if group != "all":  # one answer of each kind to each question
                    assert rows[group]["ci"][metric] == pytest.approx(wilson(above, below))
            else:
                assert metric not in rows[group]["metrics"]
        assert rows[group]["of"]["mss"] == shares["mss"][1] and rows[group]["of"]["crs"] == shares["crs"][1]
    n = len(inner.questions())
    right = [i for i in inner.questions() if rule(i, answers[i.id])]
    once = sum(any(not rule(i, answers[f"{i.id}#{k}"]) for k in KINDS) for i in right)
    assert rows["all"]["metrics"]["accuracy"] == pytest.approx(len(right) / n)
    assert rows["all"]["metrics"]["flips_once"] == pytest.approx(once / len(right))
    assert "mss" not in rows["all"]["ci"]  # ten answers each, of a handful of questions
    splits = {f"task: {task}" for item in inner.questions() for task in item.tasks}
    assert {"format: yes_no", *splits} <= set(rows) and "flips_once" not in rows["strong"]["metrics"]


@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("mmvet", {"judge": {"url": "http://127.0.0.1:1/v1", "model": "m"}}, "as it comes"),
        ("flickr30k", {}, "as it comes|captions need pycocoevalcap"),
        ("vqav2", {"split": "test-dev2015"}, "the answers are hidden"),
    ],
)
def test_what_cannot_be_told_right_at_once_is_refused(name, more, why, tmp_path):
    with pytest.raises(UserError, match=why):
        made({**MAKERS[name](tmp_path), **more}).questions()


def test_conflicts_and_unknown_kinds_are_refused():
    with pytest.raises(UserError, match="'scenes' asks no questions that have a right answer"):
        made({"type": "scenes"}).questions()
    with pytest.raises(ValueError, match="there is no kind 'strnog'. Did you mean strong"):
        made(SCENES, kinds=["strnog"])


def test_questions_without_a_wrong_answer_are_left_out_and_told(tmp_path):
    benchmark = made(MAKERS["vqav2"](tmp_path))
    with pytest.raises(UserError, match="takes no right and no wrong answer"):
        benchmark.questions()


def test_a_limit_counts_questions_and_keeps_all_their_kinds():
    some = made(SCENES, kinds=["strong", "mimicry"]).questions(3)
    assert len(some) == 9 and len([item for item in some if not item.after]) == 3


def test_what_is_pushed_is_part_of_what_a_question_is():
    """So that two runs with other wordings, or other wrong answers, are not taken for one."""
    digests = []
    for more in ({}, {"seed": 1}, {"wordings": "dev"}):
        items = made(SCENES, **more).questions()
        digests.append({item.id: getattr(item.prompt, "words", None) for item in items if item.after})
    assert len({json.dumps(each) for each in digests}) == 3


RECIPE = """name: r
model: {{path: {model}}}
benchmarks: [{{type: pressure, kinds: [strong, mimicry], of: {{type: plain_scenes, per_task: 1}}}}]
evaluate: {{batch_size: {size}}}
run: {{root: {root}}}
"""


def recipe_at(folder, size=3):
    path = folder / f"r{size}.yaml"
    path.write_text(RECIPE.format(model=folder / "model", size=size, root=folder / f"runs{size}"))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pressure")
    saved_tiny(folder / "model")
    return folder


@pytest.fixture(scope="module")
def ran(folder):
    assert main([str(recipe_at(folder))]) == 0
    return folder / "runs3" / "r"


def records_of(run):
    return [json.loads(line) for line in (run / "predictions/pressure/none.jsonl").read_text().splitlines()]


def plainly(view, prompt, most):
    batch = view.encode([prompt])
    with torch.no_grad():
        tokens = view.model.generate(**batch, max_new_tokens=most, do_sample=False)
    return view.tokenizer.decode(tokens[0, batch.input_ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_second_turn_is_asked_after_the_models_own_answer(ran):
    """Against generate, one prompt at a time."""
    view, benchmark = tiny_view(), made(SCENES, kinds=["strong", "mimicry"])
    items, kept = benchmark.questions(), {r["sample"]: r["text"] for r in records_of(ran)}
    assert list(kept) == [item.id for turn in in_turns(items) for item in turn]
    first = {i.id: plainly(view, i.prompt(), benchmark.new_tokens) for i in items if not i.after}
    by_id = {i.id: i for i in items}
    second = {
        i.id: plainly(view, i.follow(by_id[i.after].prompt(), first[i.after]), benchmark.new_tokens)
        for i in items
        if i.after
    }
    assert kept == {**first, **second}


def test_every_number_is_recomputed_from_the_kept_answers(ran, capsys):
    rows = json.loads((ran / "results.json").read_text())["rows"]
    assert main(["verify", str(ran)]) == 0
    assert f"{len(rows)} of {len(rows)} rows recomputed, 0 numbers differ" in capsys.readouterr().out


def test_the_report_has_a_section_with_its_tables_and_figures(ran):
    page = (ran / "report/index.html").read_text()
    assert "Under social pressure: pressure" in page and "none: without pressure" in page
    table = (ran / "report/pressure-kinds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["kind of pressure", "strong", "mimicry"]
    assert (ran / "report/figures/pressure-kinds.png").is_file()


def test_what_was_answered_is_not_answered_again_and_the_batch_changes_nothing(folder, ran):
    seals = sorted(path.name for path in (ran / "bench-pressure-none/chunks").glob("*.sha256"))
    assert seals == [
        *(f"{i:06d}.sha256" for i in (0, 3, 6)),
        "scored.sha256",
        *(f"turn2-{i:06d}.sha256" for i in range(0, 16, 3)),
    ]
    recipe = load(recipe_at(folder, 16))
    with RunDir.open(folder / "runs16", "r", folder / "r16.yaml", "", {"name": "r"}) as run:
        Suite(recipe.asked[0], recipe, None).run(run, tiny_view(), Arm())
        assert [r["text"] for r in records_of(run.path)] == [r["text"] for r in records_of(ran)]


def test_what_comes_after_a_question_that_was_not_answered_is_left_out_and_named(folder):
    recipe = load(recipe_at(folder, 5), ["evaluate.max_skipped=0.9"])
    suite = Suite(recipe.asked[0], recipe, None)
    gone = suite.items[0].id

    def lost():
        raise OSError("it is gone")

    suite.items[0] = replace(suite.items[0], prompt=lost)
    with RunDir.open(folder / "runs5", "r", folder / "r5.yaml", "", {"name": "r"}) as run:
        rows, skipped, _ = suite.run(run, tiny_view(), Arm())
    assert {s["sample"]: s["reason"] for s in skipped} == {
        gone: "its image cannot be read: it is gone",
        f"{gone}#strong": "the question before it was not answered",
        f"{gone}#mimicry": "the question before it was not answered",
    }
    assert rows[0]["n"] == 14 and rows[0]["skipped"] == 3


def test_the_hardest_pictures_can_be_left_out():
    """Of each task the first scenes of the whole draw that are no harder."""
    every = {spec.task: [] for spec in specs("test", 64, 1)}
    for spec in specs("test", 64, 1):
        every[spec.task] += [scene(spec)] if spec.visual_tier <= 1 else []
    benchmark = read_node("benchmark", {**SCENES, "per_task": 5, "hardest": 1}).make()
    items = benchmark.questions()
    assert [i.id for i in items] == [sample.id for samples in every.values() for sample in samples[:5]]
    assert benchmark.protocol.endswith("/tiers-to-1")

"""Pressure as conflicts: whose side is whose, what a contrast of pairs sets against each other, and what is learnt."""

from __future__ import annotations

import pytest
import torch

from eval_suite.pressure.kinds import KINDS, NEUTRAL
from factory.cli import main
from factory.data.prompt import Role
from factory.model.prefix import at_last
from factory.recipe.schema import read_node
from factory.steer.collect import Plan, collect
from tests.eval_suite.released_files import MAKERS
from tests.tiny import saved_tiny, tiny_view

SCENES = {"type": "plain_scenes", "per_task": 3}


def made(of, **more):
    return read_node("benchmark", {"type": "pressed", "of": of, **more}).make()


def test_every_question_is_in_one_split_with_its_own_wordings():
    benchmark = made(SCENES)
    seen = {}
    for split in ("train", "dev", "test"):
        for sample in benchmark.samples(split):
            assert seen.setdefault(sample.id, split) == split
            wordings = getattr(KINDS[sample.tags["kind"]], split)
            assert sample.context in {w.format(w=sample.answer_text, a=sample.answer_vision) for w in wordings}
    assert len(seen) == 24 and set(seen.values()) == {"train", "dev", "test"}


def test_questions_of_one_picture_are_not_in_two_splits(tmp_path):
    benchmark = made(MAKERS["mme"](tmp_path))
    units = {}
    for split in ("train", "dev", "test"):
        for sample in benchmark.samples(split):
            units.setdefault(sample.id.rpartition("/")[0], set()).add(split)
    assert units and all(len(splits) == 1 for splits in units.values())


@pytest.mark.parametrize("kinds", [["strong"], ["mimicry"]])
def test_the_pair_is_the_same_dialogue_without_the_pressure(kinds):
    benchmark = made(SCENES, kinds=kinds)
    neutral = {w for wordings in NEUTRAL.values() for w in wordings}
    for sample in benchmark.samples("train"):
        pressed, calm = (benchmark.paired(sample, "pressed", way).segments for way in ("text", "vision"))
        assert benchmark.prompt(sample, "pressed").segments == pressed
        own = [s.text for s in pressed if s.role == Role.INSTRUCTION]
        other = [s.text for s in calm if s.role == Role.INSTRUCTION]
        assert own == [sample.context] and (set(other) <= neutral)
        assert [s for s in pressed if s.role != Role.INSTRUCTION] == [s for s in calm if s.role != Role.INSTRUCTION]
        answers = [s.text for s in pressed if s.role == Role.ANSWER]
        assert answers == ([] if kinds == ["mimicry"] else [sample.answer_vision]) and len(other) == len(answers)


def test_the_right_answer_is_the_images_and_the_pushed_one_the_texts(tmp_path):
    for benchmark in (made(SCENES), made(MAKERS["scienceqa"](tmp_path))):
        for sample in (s for split in ("train", "dev", "test") for s in benchmark.samples(split)):
            told = [benchmark.judge(sample, "pressed", t) for t in (sample.answer_vision, sample.answer_text)]
            assert told == ["vision", "text"]
            assert benchmark.judge(sample, "pressed", "") in ("error", "other")
            example = benchmark.example(sample, "pressed", "text")
            assert example.segments[-1].text == sample.answer_text and example.answered


def test_states_of_pairs_are_those_of_each_prompt_by_itself():
    benchmark, view = made(SCENES), tiny_view()
    samples = benchmark.samples("train")[:3]
    pairs = {way: [benchmark.paired(s, "pressed", way) for s in samples] for way in ("vision", "text")}
    base = [benchmark.prompt(s, "pressed") for s in samples]
    states, _ = collect(view, base, Plan(1), None, [s.id for s in samples], None, pairs)
    for ask, prompts in {"base": base, **pairs}.items():
        for i, prompt in enumerate(prompts):
            seen = []
            keep = lambda module, args, output, seen=seen: seen.append(output)
            handle = view.layers[1].register_forward_hook(keep)
            batch = view.encode([prompt])
            with torch.no_grad():
                view.model(**batch)
            handle.remove()
            torch.testing.assert_close(states[ask][i], at_last(seen[0], batch.attention_mask)[0], atol=2e-5, rtol=1e-4)


RECIPE = """name: r
model: {{path: {model}, layer: 1}}
data: {data}
collect: {{contrast: pairs}}
steering: [none, static]
evaluate: {{controls: [], strengths: [1], directions: [vision], max_new_tokens: 3}}
report: {{plots: false}}
run: {{root: {root}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pressed")
    saved_tiny(folder / "model")
    return folder


def recipe(folder, data, name="r"):
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(model=folder / "model", root=folder / name, data=data))
    return str(path)


def test_static_on_pairs_is_the_mean_of_calm_less_pressed(folder):
    from safetensors.torch import load_file

    assert main([recipe(folder, "{type: pressed, of: {type: plain_scenes, per_task: 2}}")]) == 0
    v = load_file(folder / "r/r/artefacts/static-vision/steering.safetensors")["v"]
    benchmark, view = made({"type": "plain_scenes", "per_task": 2}), tiny_view()
    apart = []
    for sample in benchmark.samples("train"):
        states = []
        for way in ("vision", "text"):
            seen = []
            keep = lambda module, args, output, seen=seen: seen.append(output)
            handle = view.layers[1].register_forward_hook(keep)
            batch = view.encode([benchmark.paired(sample, "pressed", way)])
            with torch.no_grad():
                view.model(**batch)
            handle.remove()
            states.append(at_last(seen[0], batch.attention_mask)[0])
        apart.append(states[0] - states[1])
    torch.testing.assert_close(v, torch.stack(apart).mean(0), atol=2e-5, rtol=1e-3)


def test_a_benchmark_without_pairs_is_refused_before_anything_is_done(folder, capsys):
    path = recipe(folder, "{type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}", "without")
    for command in ([], ["plan"]):
        assert main([*command, path]) == 2
        told = capsys.readouterr().err
        assert "collect.contrast" in told and "'scenes' sets no prompts against each other" in told


def test_two_contrasts_are_refused(folder, capsys):
    path = recipe(folder, "{type: pressed, of: {type: plain_scenes}}", "both")
    assert main([path, "collect.completion='{answer}'"]) == 2
    assert "two contrasts" in capsys.readouterr().err

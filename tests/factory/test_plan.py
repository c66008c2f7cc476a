"""The plan of a run: what it counts is what the run then does, and what the run would refuse it refuses at its end."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval_suite.speed.plan import Measured
from factory.cli import main
from factory.recipe import load
from factory.registry import lookup
from factory.run.methods.study import Study
from factory.run.plan.data import look_at_data
from factory.run.plan.estimate import estimate, memory
from factory.run.plan.plan import measure
from factory.run.plan.practice import training_memory, training_phases
from factory.run.tuners.scratch import build
from tests.tiny import SMALL, saved_tiny, tiny_view

RECIPE = """\
name: small
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: both_orders, per_task: {{train: 2, dev: 1, test: 1}}}}
diagnostic: {{type: mcr, draws: 1}}
collect: {{batch_size: 8}}
steering: [
  none, instruction, {{type: few_shot, shots: 1}}, static, {{type: amps, betas: [0.0, 0.5], net: {{epochs: 1}}}},
  {{type: dose, doses: [0.5, 1, 2], of: {{type: l2s, net: {{epochs: 1}}}}}}
]
evaluate: {{controls: [], strengths: [0.5, 1], batch_size: 8, max_new_tokens: 2}}
report: {{plots: false}}
"""
TRAIN = (
    "name: learn\nmodel: {{build: {sizes}}}\ndata: scenes\ntrain: {{steps: 10, vision_steps: 3, text_steps: 4,"
    " batch_size: 2}}\n"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, **values):
        path = tmp_path / "small.yaml"
        path.write_text(text.format(**values))
        return path

    return write


def test_the_model_is_known_from_its_configuration_alone(recipe_file, folder, tmp_path):
    there = tmp_path / "no_weights"
    there.mkdir()
    shutil.copy(folder / "config.json", there)
    found, view = estimate(load(recipe_file(RECIPE, folder=there), [])), tiny_view()
    assert found.model.parameters == sum(p.numel() for p in view.model.parameters())
    assert found.model.parts["connector"] == sum(p.numel() for p in view.connector.parameters())
    assert (found.model.depth, found.model.width, found.layer) == (view.depth, view.width, 1)
    assert any("model.safetensors" in line for line in found.missing)


def test_fitted_parameters_of_each_method(recipe_file, folder):
    methods = {m.label: m for m in estimate(load(recipe_file(RECIPE, folder=folder), [])).methods}
    width = tiny_view().width
    assert methods["static"].parameters == width
    assert methods["amps"].parameters >= 2 * 100 * width + 100
    assert (methods["amps"].variants, methods["static"].variants) == (2, 1)
    assert [(m.looks, m.hidings, m.trials) for m in methods.values() if m.looks or m.trials] == [
        (3 + 2, 2, 3)
    ]  # dose: its doses, none, and backwards; either modality hidden
    assert not methods["few_shot"].steers


EVERY_KIND = """\
name: every_kind
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
diagnostic: {{type: mcr, draws: 1}}
diagnostics: [
  {{type: knockout, share: 0.5, window: 1}}, {{type: logit_lens, directions: [text]}},
  {{type: heads, top: 2, map: false}},
  {{type: intervention, counts: [1], amplified: 1, coefficients: [2], coefficient: 2}}, relative_uncertainty, lmar
]
collect: {{batch_size: 8}}
steering: [
  instruction, {{type: few_shot, shots: 1}}, unimodal, {{type: s2va, first_tokens: 1}}, vcd, dleaf,
  {{type: heads, top: 2}}, static,
  {{type: amps, betas: [0.0, 0.5], net: {{epochs: 1}}}},
  {{type: dose, doses: [0.5, 1, 2], gate_epochs: 2, of: {{type: l2s, net: {{epochs: 1}}}}}}
]
evaluate: {{controls: [], kl_budget: 1,
  strengths: [0.5, 1], batch_size: 16, max_new_tokens: 1, cost: true, curve: 0.5, trials: 0.5, choose: halving
}}
report: {{plots: false}}
"""


def test_what_is_counted_is_what_the_run_does(recipe_file, folder):
    """Every call of the decoder that begins a prompt is counted, weighed by the share of blocks that run; no method
    here changes nothing, so that the run answers the prompts as they are beside."""
    recipe = load(recipe_file(EVERY_KIND, folder=folder), [])
    found = estimate(recipe)
    told = {s.name: s.passes for s in (*found.stages, *found.beside)}
    run = Measured(recipe, None, time.process_time)
    assert {name: passes for name, passes in told.items() if passes} == pytest.approx(run.passes)
    assert told["cost"] > 0 and told["trials"] > 0 and set(run.seconds) >= set(told)


def test_the_forms_of_a_sample_are_counted_from_what_they_share(recipe_file, folder):
    recipe = load(recipe_file(RECIPE, folder=folder), ["steering.1={type: s2va}"])
    found = estimate(recipe)
    told = {s.name: s.passes for s in (*found.stages, *found.beside) if s.passes}
    assert told == pytest.approx(Measured(recipe, None, time.process_time).passes)
    (collect,) = (s for s in found.stages if s.name == "collect")
    assert collect.passes == collect.prompts / 2
    assert {m.label: m.begun for m in found.methods if m.kind == "prompt"} == {"none": 0.5, "s2va": 0.5, "few_shot": 1}


def test_a_rehearsal_times_every_part_of_every_stage(recipe_file, folder):
    recipe = load(recipe_file(EVERY_KIND, folder=folder), [])
    found = estimate(recipe)
    measured = measure(recipe, found, waited=100.0)
    assert all(measured.of(s) > 0 for s in found.stages)
    assert measured.of(found.stages[0]) > 100
    half = [replace(s, prompts=s.prompts / 2, parts={p: n / 2 for p, n in s.parts.items()}) for s in found.stages]
    assert [measured.of(s) / 2 for s in found.stages] == pytest.approx([measured.of(s) for s in half])


def test_what_needs_more_than_a_few_samples_is_unknown_and_the_rest_is_timed(recipe_file, folder):
    """A diagnostic that learns from rows which no other gave, and a method that is fitted on them."""
    given = ["diagnostics=[intervention, lmar]", "steering=[none, static, heads]", "data.scoring=open_ended"]
    recipe = load(recipe_file(RECIPE, folder=folder), given)
    found = estimate(recipe)
    measured = measure(recipe, found)
    unknown = {s.name for s in found.stages if math.isnan(measured.of(s))}
    assert unknown == {"diagnose-intervention", "fit", "dev", "test"}


def test_a_stage_that_the_count_does_not_know_is_planned_too(recipe_file, folder, capsys, monkeypatch):
    """It is timed on 2 of 8 test samples, in chunks of one; the plan's table has it before the report."""
    plain, now = Study.diagnosed, [0.0]

    def last(samples):
        now[0] += 0.1 * len(samples)
        return [{"n": 1}]

    def diagnosed(study):
        study.chunks(study.folder.stage("lineage", {}), "test", 1, last)
        return plain(study)

    monkeypatch.setattr(Study, "diagnosed", diagnosed)
    monkeypatch.setattr("factory.run.plan.rehearse.PROMPTS", 2)
    given = ["steering=[none, static]", "diagnostic=null", "data.scoring=open_ended", "evaluate.strengths=[1]"]
    path = recipe_file(RECIPE, folder=folder)
    assert main(["plan", str(path), *given]) == 0
    names = ("check", "collect", "fit", "dev", "test", "lineage", "report")
    rows = {words[0]: words for words in map(str.split, capsys.readouterr().out.splitlines()) if words}
    assert [name for name in rows if name in names] == list(names)
    recipe = load(path, given)
    measured = measure(recipe, estimate(recipe), clock=lambda: now[0])
    (lineage,) = (stage for stage in measured.beside if stage.name == "lineage")
    assert len(recipe.data.make().samples("test")) == 8 and measured.of(lineage) == pytest.approx(0.1 * 8)


def test_what_holds_a_plan_up_is_no_time_of_the_run_and_is_said(recipe_file, folder, capsys, monkeypatch):
    """Half a second's sleep stands for other programs on the processor."""
    plain = Study.diagnosed
    monkeypatch.setattr(Study, "diagnosed", lambda study: (time.sleep(0.5), plain(study))[1])
    monkeypatch.setattr("factory.run.plan.rehearse.PROMPTS", 2)
    monkeypatch.setattr("factory.run.plan.plan.HELD_UP", (1.01, 0.9))
    given = ["steering=[none]", "diagnostic=null", "data.scoring=open_ended", "model.device=cpu"]
    assert main(["plan", str(recipe_file(RECIPE, folder=folder)), *given]) == 0
    told = capsys.readouterr().out
    (collect,) = (line.split() for line in told.splitlines() if line.strip().startswith("collect"))
    assert float(collect[-2]) < 0.5 and "other programs or the disk held it" in told


def test_passes_count_the_share_of_blocks_above_the_site(recipe_file, folder):
    low, high = (
        {s.name: s for s in estimate(load(recipe_file(RECIPE, folder=folder), [f"model.layer={layer}"])).stages}["test"]
        for layer in (0, 2)
    )
    assert high.passes == high.trunk + high.hidings == low.trunk + low.hidings
    assert low.passes == pytest.approx(low.trunk + low.hidings + (low.cells + low.looks) * 2 / 3)


def test_prompt_lengths_and_memory_come_from_the_model_itself(recipe_file, folder, monkeypatch):
    recipe = load(recipe_file(RECIPE, folder=folder), [])
    found = estimate(recipe)
    measured, view = measure(recipe, found), tiny_view()
    benchmark = recipe.data.make()
    lengths = {
        split: (
            view.encode([benchmark.prompt(s, "order1") for s in benchmark.samples(split)])
            .attention_mask.sum(-1)
            .float()
        )
        for split in ("train", "test")
    }
    assert abs(measured.prompt_tokens - float(lengths["test"].mean())) < 10
    assert measured.longest >= max(float(n.max()) for n in lengths.values()) - 4
    more = load(recipe_file(RECIPE, folder=folder), ["evaluate.batch_size=256"])
    assert found.model.bytes < memory(recipe, found.model, (100, 100), {}) < memory(more, found.model, (100, 100), {})
    assert memory(more, found.model, (100, 100), {"test": 8}) == memory(recipe, found.model, (100, 100), {})
    other = load(recipe_file(RECIPE, folder=folder), ["diagnostic=lmar"])
    before = memory(other, found.model, (100, 100), {})
    monkeypatch.setattr(lookup("diagnostic", "lmar"), "rows_held", lambda self, prompts: 99.0 * prompts)
    cache = 2 * found.model.depth * found.model.kv_width * found.model.bytes_per_value
    assert memory(other, found.model, (100, 100), {}) > before + 8 * 100 * 80 * cache


def test_memory_is_what_the_run_holds_at_its_fullest(recipe_file, folder):
    recipe = load(recipe_file(RECIPE, folder=folder), ["steering=[none, static]", "evaluate.strengths=[1]"])
    found = estimate(recipe)
    measured = measure(recipe, found)
    told = memory(recipe, found.model, (measured.prompt_tokens, measured.longest), found.data.prompts)
    assert told == pytest.approx(max(Measured(recipe, None, time.process_time, tracked=True).peaks.values()), rel=0.25)


def test_a_plan_is_printed_and_nothing_is_written(recipe_file, folder, tmp_path, capsys):
    path = recipe_file(RECIPE, folder=folder)
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    for word in (
        "LlavaForConditionalGeneration",
        "vision",
        "connector",
        "decoder",
        "few_shot",
        "collect",
        "memory",
        "was done just now",
    ):
        assert word in said
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_of_many_samples_a_picture_or_two_of_each_split_are_read(recipe_file, folder, monkeypatch):
    """Texts are looked at in more: a plan is of seconds, on a slow disk too. Of few samples every picture is."""
    scenes, read = lookup("benchmark", "scenes"), []
    samples = scenes.samples

    def watched(benchmark, split):
        told = [(s, f"{split}/{s.id}", s.load_image) for s in samples(benchmark, split)]
        return [
            replace(s, load_image=lambda name=name, draw=draw: read.append(name) or draw()) for s, name, draw in told
        ]

    monkeypatch.setattr(scenes, "samples", watched)
    for per_task, most in ((20, 6), (2, math.inf)):
        each = {"train": per_task, "dev": per_task, "test": per_task}
        found = look_at_data(load(recipe_file(RECIPE, folder=folder), [f"data.per_task={each}"]))
        total = 3 * 8 * per_task
        assert sum(found.samples.values()) == total and found.prompt and not found.missing
        assert len(set(read)) == min(most, total)
        read.clear()


def test_without_a_model_the_rest_is_planned_before_it_is_refused(recipe_file, capsys):
    assert main(["plan", str(recipe_file(RECIPE, folder="/nowhere/model"))]) == 2
    said, error = capsys.readouterr()
    assert "small.yaml:2:9 model.path: model folder /nowhere/model: not found" in error
    assert "unknown" in said and "diagnose" in said


def test_a_damaged_model_is_not_timed(recipe_file, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["plan", str(recipe_file(RECIPE, folder=tmp_path / "damaged"))]) == 2
    said, error = capsys.readouterr()
    assert "damaged or cut short" in error and "was done just now" not in said


def test_a_device_that_is_not_there_is_told_under_the_plan(tmp_path, capsys):
    path = tmp_path / "far.yaml"
    few = "{type: scenes, per_task: {train: 1, dev: 1, test: 1}}"
    path.write_text(f"name: far\nmodel: {{zoo: llava-1.5-7b, device: 'cuda:7'}}\ndata: {few}\nsteering: [none]\n")
    assert main(["plan", str(path)]) == 2
    said, error = capsys.readouterr()
    assert "memory: about" in said and "'cuda:7' is not on this machine" in error


def test_a_layer_that_the_model_lacks_is_missing(recipe_file, folder):
    found = estimate(load(recipe_file(RECIPE, folder=folder), ["model.layer=9"]))
    said = "override 'model.layer=9' model.layer: layer 9 is out of range: the model has decoder blocks 0 to 2"
    assert found.missing == [said]


def test_training_plan(recipe_file, capsys):
    sizes = "{" + ", ".join(f"{k}: {v}" for k, v in SMALL.items()) + "}"
    path = recipe_file(TRAIN, sizes=sizes)
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert "trained: all parameters" in said
    recipe = load(path, [])
    view = build(recipe, recipe.data.make())
    before = view.unembed.weight.clone()
    phases = training_phases(recipe, view)
    assert [(p.name, p.steps, p.rows) for p in phases] == [("vision", 3, 4), ("text", 4, 2), ("train", 10, 2)]
    assert all(0 < p.tokens <= p.padded and p.seconds > 0 for p in phases)
    assert training_memory(view, phases) > 4 * sum(p.numel() * 4 for p in view.model.parameters())
    assert view.unembed.weight.equal(before) and view.unembed.weight.grad is None
    assert not view.model.training and not view.unembed.weight.requires_grad


def test_training_on_a_benchmark_without_lessons_is_refused_by_plan_and_run(recipe_file, capsys):
    asked = str(recipe_file(TRAIN, sizes="{}")), "data=mc2"
    line = "benchmark 'mc2' has no lesson and no text_lesson and no picture and no corpus and no examine to train on"
    for command in ("plan", "run"):
        assert main([command, *asked]) == 2 and f"error: override 'data=mc2' data: {line}" in capsys.readouterr().err


def test_what_does_not_train_a_model_brings_none_of_the_trainers_libraries():
    code = (
        "import sys; import factory.run.plan.plan; from factory.cli import find_recipe; from factory.recipe import"
        " load; recipe = load(find_recipe('amps_tiny')); print(*(node.type for node in recipe.steering), *sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert {"amps", "l2s", "torch"} <= loaded and not {"peft", "deepspeed", "tensorboard"} & loaded


def test_a_file_too_small_to_be_split_is_one_line_in_a_plan_as_in_a_run(tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    row = {"image_id": "a", "task": "color", "context": "It is red.", "gt": "blue", "hitem": "red"}
    (tmp_path / "m.json").write_text(json.dumps([{**row, "question": f"Which color, {i}?"} for i in range(7)]))
    (tmp_path / "x.yaml").write_text(
        f"name: x\nmodel: {{zoo: tiny}}\ndata: {{type: mc2, file: {tmp_path}/m.json, images: {tmp_path}}}\n"
        f"steering: [none, static]\nrun: {{root: {tmp_path}/runs}}\n"
    )
    for command in ("plan", "run"):
        assert main([command, str(tmp_path / "x.yaml")]) == 2
        assert "there is none to ask" in capsys.readouterr().err

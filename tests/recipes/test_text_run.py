"""A model that reads text alone goes through a recipe as any other, and what needs pictures is refused beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from factory.errors import UserError
from factory.recipe import loads
from factory.registry import lookup
from factory.run.pipeline import run
from factory.steer import Steering, Where, artefact
from tests.tiny_families import family_view

TEXT = """\
name: text
model: {{path: {model}, device: cpu}}
{rest}
run: {{root: {runs}}}
"""
TOLD = '''\
from eval_suite.benchmarks.scenes import Scenes
from factory.data.prompt import Role
from factory.registry import register


@register("benchmark", "told_in_words")
class Told(Scenes):
    """Scenes without their pictures."""

    pictured = False

    def prompt(self, sample, form):
        return super().prompt(sample, form).without(Role.IMAGE)

    def example(self, sample, form, direction):
        return super().example(sample, form, direction).without(Role.IMAGE)
'''
IN_WORDS = """\
plugins: [{plugin}]
data: {{type: told_in_words, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
collect: {{layer: 1}}
evaluate: {{controls: [], strengths: [1], max_new_tokens: 2}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder, view = tmp_path_factory.mktemp("gpt2"), family_view("gpt2")
    view.model.save_pretrained(folder)
    view.processor.save_pretrained(folder)
    return folder


def ran(saved: Path, rest: str, runs: Path) -> Path:
    return run(loads(TEXT.format(model=saved, rest=rest, runs=runs)))


def test_questions_are_put_to_a_text_model_and_to_its_artefacts(saved, tmp_path):
    static, view = lookup("steering", "static"), family_view("gpt2")
    vector = {"v": torch.ones(view.width)}
    artefact.save(tmp_path / "push", Steering(static(static.Params()), vector, Where(layer=1), 40.0), view)
    asks = "benchmarks: [{type: fluency, prompts: ['How is bread made?', 'Why do people talk?'], new_tokens: 4}]"
    folder = ran(saved, f"{asks}\nartefacts: [{tmp_path / 'push'}]", tmp_path / "runs")
    results = json.loads((folder / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} == {"none", "push"} and all(
        row["n"] == 2 for row in results["rows"]
    )
    assert any("brings no chat template" in note for note in results["run"]["notes"])
    assert (folder / "report" / "index.html").is_file()


@pytest.fixture(scope="module")
def in_words(tmp_path_factory) -> str:
    """The recipe's part about conflicts without pictures, from a benchmark of one's own."""
    plugin = tmp_path_factory.mktemp("plugin") / "told.py"
    plugin.write_text(TOLD)
    return IN_WORDS.format(plugin=plugin)


@pytest.mark.slow
def test_a_benchmark_of_ones_own_without_pictures_is_data_for_a_text_model(saved, in_words, tmp_path):
    cells = "{type: intervention, alone: false, counts: [2], amplified: 2, coefficients: [10], draws: 1}"
    looks = f"diagnostics: [logit_lens, heads, knockout, relative_uncertainty, {cells}]"
    folder = ran(saved, f"{in_words}{looks}\nsteering: [none, static]", tmp_path / "runs")
    results = json.loads((folder / "results.json").read_text())
    told = {(row["method"], row["direction"], row["n"]) for row in results["rows"] if row["task"] == "all"}
    assert told == {(method, way, 8) for method in ("none", "static") for way in ("vision", "text")}
    measured = {path.name for path in folder.glob("diagnose-*")}
    names = ("logit_lens", "heads", "knockout", "relative_uncertainty", "intervention")
    assert measured == {f"diagnose-{name}" for name in names}
    assert (folder / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    "method",
    ["dleaf", "keyframes", "some_frames", "s2va", "unimodal", "dose", "vcd", "{type: dose, conflicts_only: false}"],
)
def test_a_method_that_needs_pictures_is_refused_beside_such_a_benchmark(saved, in_words, method, tmp_path):
    name = "dose" if "dose" in method else method
    with pytest.raises(UserError, match=f"'{name}' needs pictures, and GPT2LMHeadModel reads text alone"):
        ran(saved, f"{in_words}steering: [{method}]", tmp_path / "runs")


def test_what_asks_about_one_side_alone_is_refused_too(saved, in_words, tmp_path):
    with pytest.raises(UserError, match="'intervention' needs pictures"):
        ran(saved, f"{in_words}diagnostics: [heads, intervention]\nsteering: [none]", tmp_path / "runs")


REFUSED = {
    "scenes": "data: scenes\nsteering: [static]",
    "pope": "benchmarks: [{type: pope, root: nowhere}]",
    "mcr": "data: {type: conflicts, file: nowhere.csv}\ndiagnostic: mcr\nsteering: [amps]",
    "tune": "tune: {stage: finetune, tuner: lora, steps: 1, data: {lessons: scenes, take: 4}}",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_pictures_is_refused_in_one_line_before_anything_is_read(saved, what, tmp_path):
    with pytest.raises(UserError, match="GPT2LMHeadModel reads text alone") as error:
        ran(saved, REFUSED[what], tmp_path / "runs")
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()

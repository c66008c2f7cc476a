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

"""A run with influence from recipe to report, and what its stage depends on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from factory.data.instructions import instruction
from factory.model.prefix import at_last
from factory.recipe import load
from factory.run import pipeline
from factory.run.methods.study import study_aside
from tests.tiny import saved_tiny, tiny_view

RECIPE = """\
name: influence
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
diagnostics:
  - type: influence
    of: {{type: l2s, net: {{hidden: 2, epochs: 3, validation: 0, keep: last}}}}
    again: anew
    exact: 0
    solver_steps: 10
    retrainings: 3
    draws: 1
    moments: 1
steering: [none]
evaluate: {{controls: [], strengths: [1], max_new_tokens: 2, batch_size: 16}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("influence")
    (root / "r.yaml").write_text(RECIPE.format(folder=saved_tiny(root / "model"), root=root / "runs"))
    return root / "r.yaml"


def test_it_runs_from_recipe_to_report_and_again_where_collection_changes(recipe, capsys):
    folder = pipeline.run(load(recipe))
    told = json.loads((folder / "results.json").read_text())["diagnostics"]["influence"]
    assert told["title"] == "Which training prompts did it: influence on the network of l2s"
    assert (
        "training prompts raise the margin of the answers toward vision on dev prompts" in told["findings"][0]["text"]
    )
    assert (folder / "report" / "influence-influence-vision.csv").is_file()
    capsys.readouterr()
    pipeline.run(load(recipe))
    assert "diagnose-influence: done before" in "".join(capsys.readouterr())
    pipeline.run(load(recipe, ["collect.position=second_last"]))
    again = json.loads((folder / "results.json").read_text())["diagnostics"]["influence"]
    assert again["findings"][0]["values"]["most"] != told["findings"][0]["values"]["most"]


def test_states_of_dev_are_those_of_its_prompts(recipe):
    view = tiny_view()
    with study_aside(load(recipe), view) as study:
        states = study.states_of("text", "dev")
        samples = study.samples["dev"]
        assert len(states.base) == len(samples) and states.tasks == [s.task for s in samples]
        for i in (0, 5):
            prompt = study.benchmark.prompt(samples[i], study.benchmark.forms[0])
            for found, asked in (
                (states.base[i], prompt),
                (states.toward[i], prompt.append(instruction("amps_eq9", "text"))),
                (states.away[i], prompt.append(instruction("amps_eq9", "vision"))),
            ):
                batch, seen = view.encode([asked]), []
                handle = view.layers[1].register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
                with torch.no_grad():
                    view.model(**batch)
                handle.remove()
                assert torch.allclose(found, at_last(seen[0], batch.attention_mask)[0], atol=1e-4)

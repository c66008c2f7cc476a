"""The two stages of LLaVA on a composed model: its connector pretrained, a tuner trained on top, both found again by
their runs' names.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from factory import files
from factory.errors import UserError
from factory.model.load import load
from factory.recipe import dump, loads
from factory.recipe.schema import ModelSpec
from factory.run.pipeline import run
from tests.compose import encoder, llm
from tests.factory.train.case import write_data
from tests.tiny import conflict_prompts, tiny_tokenizer

IN_ANOTHER_PROCESS = """
import sys, torch
from factory.recipe import load as read
from factory.model.load import load
from tests.tiny import conflict_prompts
view = load(read(sys.argv[1]).model)
torch.save(view.model(**view.encode(conflict_prompts(2))).logits.detach(), sys.argv[2])
"""


@pytest.mark.slow
def test_connector_then_mores_on_a_composed_model(tmp_path):
    data = write_data(tmp_path)
    tiny_tokenizer(400).save_pretrained(tmp_path / "llm")
    language = {**llm(), "tokenizer": str(tmp_path / "llm")}
    model = {"compose": {"vision_encoder": encoder(), "connector": "mlp2x_gelu", "llm": language}}

    def recipe(name: str, tuned: list[str], tune: dict | None):
        keys = {
            "data": {"path": str(data), "max_tokens": 200},
            "batch_size": 4,
            "steps": 3,
            "learning_rate": 1e-2,
        }
        rest = {"tune": keys | tune} if tune else {"data": "scenes"}
        return loads(
            json.dumps(
                {
                    "name": name,
                    "model": {**model, "tuned": tuned},
                    "run": {"root": str(tmp_path / "runs")},
                    "report": {"plots": False},
                    **rest,
                }
            ),
            path=tmp_path / f"{name}.yaml",
        )

    first = run(recipe("connector", [], {"stage": "pretrain"}))
    second = run(recipe("mores", [str(first)], {"tuner": {"type": "mores", "rank": 2}}))

    plain, pretrained, tuned = (
        load(ModelSpec.model_validate({**model, "tuned": folders}))
        for folders in ([], [str(first)], [str(first), str(second)])
    )
    prompts = conflict_prompts(2)
    with torch.no_grad():
        logits = [view.model(**view.encode(prompts)).logits for view in (plain, pretrained, tuned)]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[1], logits[2]), (
        "each stage has learnt"
    )
    trained = files.read_safetensors(second / "tuned" / "tuner.safetensors")
    parameters = dict(tuned.model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in trained.items())
    alone = load(ModelSpec.model_validate({**model, "tuned": [str(second)]}))
    with torch.no_grad():
        assert torch.equal(alone.model(**alone.encode(prompts)).logits, logits[2]), (
            "the second stage holds the connector too"
        )
    other = {
        **model,
        "compose": {
            **model["compose"],
            "llm": {**language, "config": {**language["config"], "initializer_range": 0.3}},
        },
    }
    with pytest.raises(UserError, match="made for another base model"):
        load(ModelSpec.model_validate({**other, "tuned": [str(second)]}))

    again, out = tmp_path / "again.yaml", tmp_path / "logits.pt"
    again.write_text(dump(recipe("again", [str(first), str(second)], None)))
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(again), str(out)],
        cwd=Path(__file__).parents[3],
        check=True,
        timeout=600,
    )
    assert torch.equal(torch.load(out), logits[2]), "the same bits in a fresh process"


def test_a_run_that_tuned_nothing_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match="model.tuned: .* holds no trained part"):
        load(ModelSpec(zoo="tiny", tuned=(str(tmp_path),)))

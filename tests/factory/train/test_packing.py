"""Short rows in one: losses and gradients as alone, and a refusal where a model or a tuner reads them otherwise."""

from __future__ import annotations

import json

import pytest
import torch

from factory import files
from factory.corpus.collate import Collator
from factory.corpus.packed import runs
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.train.loop import Answers
from factory.train.packing import check_packing
from tests.factory.train.case import write_data
from tests.tiny import fresh_view, saved_tiny
from tests.tiny_families import family_view

ROWS = [0, 1, 2, 3, 4, 5]  # two texts, and pictures in four of them


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("packing")
    write_data(root)
    saved_tiny(root / "model")
    return root


def batches(view, root, most: int = 400) -> tuple[dict, dict]:
    """The same samples in rows of their own, and packed."""
    source = ConversationFile(root / "data.jsonl", root, root / "index")
    return Collator(view, source, None, None)(ROWS), Collator(view, source, None, None, packed=most)(ROWS)


def test_rows_are_put_together_in_order_up_to_the_longest_length():
    assert [list(run) for run in runs([3, 4, 9, 1, 2, 8], 8)] == [[0, 1], [2], [3, 4], [5]]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma2"])
def test_packed_rows_have_the_loss_and_the_gradients_of_their_own_rows(project, family, tmp_path):
    view = fresh_view() if family == "llava" else family_view(family)
    if not view.sees:
        files.write_jsonl(
            tmp_path / "data.jsonl", [{"query": f"Say {i}", "response": "so " * (i + 1)} for i in range(6)]
        )
    alone, packed = batches(view, project if view.sees else tmp_path)
    assert len(packed["input_ids"]) < len(alone["input_ids"]) and "attention_mask" not in packed
    assert packed["labels"].ge(0).sum() == alone["labels"].ge(0).sum()
    found = []
    for batch in (alone, packed):
        view.model.zero_grad()
        view.unembed.weight.requires_grad_(True)
        loss = Answers(view)(**batch)
        loss.backward()
        found.append((loss.item(), view.unembed.weight.grad.clone()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.allclose(found[1][1], found[0][1], rtol=1e-3, atol=1e-3)
    seen = packed | {"attention_mask": torch.ones_like(packed["input_ids"])}  # no blocks: rows see those before them
    assert abs(Answers(view)(**seen).item() - found[0][0]) > 1e-3


def recipe(root, runs_in: str, **data):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / runs_in)},
        "report": {"plots": False},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "dropout": 0.0},
            "data": {"path": str(root / "data.jsonl"), "max_tokens": 200} | data,
            "batch_size": 8,
            "steps": 3,
            "learning_rate": 3e-3,
        },
    }
    return loads(json.dumps(spec), path=root / f"{runs_in}.yaml")


def test_a_packed_training_learns_what_an_unpacked_one_does(project):
    logs = {}
    for name, pack in (("alone", False), ("packed", True)):
        run(recipe(project, name, pack=pack))
        logs[name] = [row["loss"] for row in files.read_jsonl(project / name / "r" / "tune" / "log.jsonl")]
    assert logs["packed"] == pytest.approx(logs["alone"], rel=1e-5)
    one, other = (files.read_safetensors(project / n / "r" / "tuned" / "tuner.safetensors") for n in logs)
    assert all(torch.allclose(t, other[name], atol=1e-4) for name, t in one.items())


@pytest.mark.parametrize("family", ["paligemma", "gemma3", "opt"])
def test_a_model_that_reads_packed_rows_otherwise_is_refused_by_name(family):
    view = family_view(family)
    with pytest.raises(UserError, match=f"tune.data.pack: {type(view.model).__name__} .attention: sdpa."):
        check_packing(view)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data": {"max_tokens": None}}, "tune.data.pack: needs max_tokens"),
        ({"data": {"cache_features": True}}, "tune.data.pack: is not done with cache_features"),
        ({"neftune": 5}, "tune.neftune: its noise depends on a row's length"),
        ({"tuner": {"type": "mores"}}, "data.pack: tuner 'mores' looks at whole rows"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_anything_is_read(project, changes, why):
    with pytest.raises(UserError, match=why):
        spec = recipe(project, "refused", pack=True).model_dump(mode="json")["tune"]
        data = spec["data"] | changes.pop("data", {})
        whole = {
            "name": "r",
            "model": {"path": str(project / "model")},
            "run": {"root": str(project / "refused")},
            "report": {"plots": False},
        }
        run(loads(json.dumps(whole | {"tune": spec | {"data": data} | changes}), path=project / "refused.yaml"))

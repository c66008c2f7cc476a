"""Samples made ready once, and the stage that trains a connector on them without a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from factory import files, progress
from factory.corpus.collate import Collator
from factory.corpus.labels import IGNORE
from factory.corpus.prepared import CHUNK, PreparedCollator, chunks, prepare
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.launch.world import World
from factory.model.load import load
from factory.recipe import loads
from factory.recipe.schema import ModelSpec
from factory.run.pipeline import run
from factory.train.align import AlignCollator, Aligned
from factory.train.loop import Answers
from tests.compose import composed, encoder, llm
from tests.factory.train.case import COLOURS, Interrupted, stops_at, write_data
from tests.tiny import tiny_tokenizer, tiny_view

N = CHUNK + 6


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    view, source = (
        composed(encoder("efficientnet_lite0")),
        ConversationFile(write_data(folder, N), folder, folder / "index"),
    )
    collator = Collator(view, source, 200, None)
    return view, collator, prepare(view, collator, N, folder / "kept", World()), folder / "kept"


def same_loss(view, one, other) -> bool:
    model = Answers(view)
    losses = [model(**{k: v for k, v in batch.items() if k != "roles"}) for batch in (one, other)]
    torch.testing.assert_close(*losses, rtol=2e-3, atol=0)  # features are kept in half precision
    return one["pixel_values"].shape != other["pixel_values"].shape


def test_kept_features_train_like_pictures(case):
    view, collator, prepared, _ = case
    ready = PreparedCollator(view, prepared)
    assert len(prepared) == N and not view.model.training
    for numbers in (
        [1, 2, 3],
        [0, 4, CHUNK + 1, CHUNK + 4],
        [0, 3],
    ):  # every third sample is text alone; the last batch has no picture at all
        one, other = collator(numbers), ready(numbers)
        assert all(torch.equal(one[key], other[key]) for key in ("input_ids", "attention_mask", "labels", "roles"))
        assert same_loss(view, one, other)
    assert len(ready([0, 3])["labels"]) == 3 and bool((ready([0, 3])["labels"][-1] == IGNORE).all())


def test_what_is_kept_is_not_computed_again_and_a_missing_file_is(case):
    view, collator, _, folder = case
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == chunks(N) == 2
    first = (folder / names[0]).read_bytes()
    seen = []
    prepare(view, None, N, folder, World(), seen.append)
    assert seen == [2]
    (folder / names[0]).unlink()
    prepare(view, collator, N, folder, World(), seen.append)
    assert seen == [2, 1, 2] and (folder / names[0]).read_bytes() == first
    for wrong in (b"", first[: len(first) // 2], (folder / names[1]).read_bytes()):
        (folder / names[0]).write_bytes(wrong)
        prepare(view, collator, N, folder, World())
        assert (folder / names[0]).read_bytes() == first


def test_lengths_are_those_of_the_tokens(case):
    _, _, prepared, _ = case
    assert list(prepared.lengths()) == [len(prepared[i][0].labels) for i in range(N)]


def test_a_model_that_is_not_composed_is_refused(case, tmp_path):
    with pytest.raises(UserError, match="cache_features needs a model of model.compose"):
        prepare(tiny_view(), None, 3, tmp_path, World())


def test_the_loss_is_what_its_page_says(case):
    view, _, prepared, _ = case
    collator = AlignCollator(view, prepared)
    assert collator.answers == sorted(f"It is {c}" for c in COLOURS)
    assert [label == IGNORE for label in collator.labels[:4]] == [True, False, False, True]
    torch.manual_seed(0)
    model = Aligned(view, collator.answers).requires_grad_(False)
    model.log_scale.fill_(0.3)
    numbers, slow = [1, 2, 3, 4], 0.0
    embed = view.model.get_input_embeddings().weight
    names = [embed[view.tokenizer(" " + a, add_special_tokens=False)["input_ids"]].mean(0) for a in collator.answers]
    for i in numbers:
        example, features = prepared[i]
        if not len(features):
            continue
        asked = [t for t, role in zip(example.encoded.ids, example.encoded.roles, strict=True) if role == 5]
        tokens = view.connector(view.vision_tower.unpack(features.float()))[0]
        norm = lambda x: (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
        query = model.query(norm(embed[asked].mean(0)))
        weights = torch.softmax(torch.stack([norm(t) @ query for t in tokens]) / len(query) ** 0.5, 0)
        pooled = sum(w * t for w, t in zip(weights, tokens, strict=True))
        far, own = torch.stack([((pooled - name) ** 2).sum() for name in names]), collator.labels[i]
        far, s = far / torch.stack([(n**2).sum() for n in names]).mean(), model.log_scale.exp()
        slow += torch.logsumexp(-s * far, 0) + s * far[own] + far[own]
    torch.testing.assert_close(model(**collator(numbers)), slow.sum(), rtol=1e-4, atol=1e-4)


def recipe(folder: Path, name: str, tune: dict, tuned: tuple[str, ...] = ()):
    vision, language = encoder("efficientnet_lite0"), {**llm(), "tokenizer": str(folder / "llm")}
    model = {
        "compose": {
            "vision_encoder": vision,
            "connector": {"type": "resampler", "queries": 3, "depth": 1, "heads": 4, "width": 16, "positions": True},
            "llm": language,
        },
        "tuned": list(tuned),
    }
    keys = {"batch_size": 8, "learning_rate": 1e-2, "save_every": 10}
    return loads(
        json.dumps(
            {
                "name": name,
                "model": model,
                "run": {"root": str(folder / "runs")},
                "report": {"plots": False},
                "tune": keys | tune,
            }
        ),
        path=folder / f"{name}.yaml",
    )


@pytest.fixture
def photos(tmp_path) -> dict:
    tiny_tokenizer(400).save_pretrained(tmp_path / "llm")
    for i in range(32):
        path = tmp_path / "photos" / COLOURS[i % 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), COLOURS[i % 4]).save(path)
    return {"photos": str(tmp_path / "photos"), "cache_features": True, "max_tokens": None}


def test_a_connector_learns_words_and_a_killed_training_ends_the_same(photos, tmp_path, monkeypatch):
    """Photos of four colours: aligned in one go, then again in two, and a tuner trained on top of it on the same kept
    features.
    """
    whole = run(recipe(tmp_path, "whole", {"stage": "align", "data": photos, "steps": 30}))
    losses = [row["loss"] for row in files.read_jsonl(whole / "tune" / "log.jsonl")]
    assert losses[-1] < 0.5 * losses[0]
    kept = list((tmp_path / "runs" / ".features").iterdir())

    with progress.watched(stops_at("tune", 15)), pytest.raises(Interrupted):
        run(recipe(tmp_path, "cut", {"stage": "align", "data": photos, "steps": 30}))
    cut = run(recipe(tmp_path, "cut", {"stage": "align", "data": photos, "steps": 30}))
    ends = [files.read_safetensors(folder / "tuned" / "tuner.safetensors") for folder in (whole, cut)]
    assert ends[0].keys() == ends[1].keys() and all(
        torch.equal(value, ends[1][name]) for name, value in ends[0].items()
    )

    second = run(
        recipe(tmp_path, "lora", {"tuner": {"type": "lora", "rank": 2}, "data": photos, "steps": 2}, (str(whole),))
    )
    assert list((tmp_path / "runs" / ".features").iterdir()) == kept, "one folder of features for all three"
    spec = recipe(tmp_path, "lora", {"stage": "align", "data": photos}).model
    view = load(
        ModelSpec.model_validate(
            {**spec.model_dump(mode="json", exclude_none=True), "compose": spec.compose, "tuned": [str(second)]}
        )
    )
    assert any("lora" in name for name in view.model.state_dict())


def test_aligning_needs_few_answers_and_kept_features(case, tmp_path):
    view, _, prepared, _ = case
    with pytest.raises(UserError, match="needs beside"):
        recipe(tmp_path, "x", {"stage": "align", "data": {"photos": "p"}})
    with pytest.raises(UserError, match="trains the vision tower"):
        recipe(
            tmp_path,
            "x",
            {"tuner": "lora", "beside": ["vision_tower"], "data": {"photos": "p", "cache_features": True}},
        )
    one = type("One", (), {"__len__": lambda self: 1, "__getitem__": lambda self, i: prepared[1]})()
    with pytest.raises(UserError, match="these data have 1"):
        AlignCollator(view, one)

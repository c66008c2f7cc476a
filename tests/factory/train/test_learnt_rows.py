"""Rows of every layout, of which some answers are not learnt, through a recipe: the losses are those of a loop over
texts that are written out by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factory import files
from factory.corpus.order import Order
from factory.recipe import loads
from factory.run.pipeline import run
from tests.factory.train.by_loop import RATE, apart, applied, descend
from tests.tiny import saved_tiny

TUNER = {"type": "lora", "rank": 2, "dropout": 0.0}
BATCH, STEPS = 5, 2


def chat(*turns: tuple, **more) -> dict:
    return {
        "messages": [{"role": role, "content": text, **(keys[0] if keys else {})} for role, text, *keys in turns]
    } | more


U, A = "user", "assistant"
PICTURE = {"images": ["red.png"]}
# A row, its system text, and its exchanges: what is asked, what is answered, and whether that is learnt.
ROWS = [
    (
        {"instruction": "Add", "input": "1 and 2", "output": "3", "system": "Be kind"},
        "Be kind",
        [("Add\n1 and 2", "3", 1)],
    ),
    (
        {"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]]},
        "",
        [("a", "b", 1), ("c", "d", 1)],
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "<image>\nWhat color is it?"},
                {"from": "gpt", "value": "red"},
                {"from": "human", "value": "And now?"},
                {"from": "gpt", "value": "a circle", "loss": False},
                {"from": "human", "value": "Well?"},
                {"from": "gpt", "value": "a square"},
            ],
            "image": "red.png",
            "system": "Look well",
        },
        "Look well",
        [("<image>\nWhat color is it?", "red", 1), ("And now?", "a circle", 0), ("Well?", "a square", 1)],
    ),
    (
        chat((U, "one"), (A, "first", {"weight": 0}), (U, "two"), (A, "second", {"weight": 1})),
        "",
        [("one", "first", 0), ("two", "second", 1)],
    ),
    (
        chat(
            ("system", "In brief"),
            (U, "<image>\none"),
            (A, "first"),
            (U, "two"),
            (A, "second"),
            mask_history=True,
            **PICTURE,
        ),
        "In brief",
        [("<image>\none", "first", 0), ("two", "second", 1)],
    ),
    (
        {"query": "<image>\nq", "response": "r", "history": [["a", "b"]], "system": "s", **PICTURE},
        "s",
        [("a", "b", 1), ("<image>\nq", "r", 1)],
    ),
    (
        {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "two"}]},
        "",
        [("How many?", "two", 1)],
    ),
    (chat((U, "one"), (A, "first"), (U, "two"), (A, "second")), "", [("one", "first", 1), ("two", "second", 1)]),
    ({"query": "Which shape?", "response": "a triangle"}, "", [("Which shape?", "a triangle", 1)]),
    ({"instruction": "Say", "output": "a word"}, "", [("Say", "a word", 1)]),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    saved_tiny(root / "model")
    Image.new("RGB", (48, 48), "red").save(root / "red.png")
    rows = [row for row, _, _ in ROWS]
    files.write_jsonl(root / "rows.jsonl", rows)
    (root / "rows.json").write_text(json.dumps(rows, indent=1))
    return root


def learn(root: Path, name: str, **data):
    tune = {"tuner": TUNER, "beside": ["connector"], "batch_size": BATCH, "steps": STEPS, "learning_rate": RATE}
    tune |= {"schedule": "constant", "warmup": 0.0, "data": {"path": "rows.jsonl", "group_by_length": False, **data}}
    spec = {
        "name": "r",
        "seed": 1,
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / name)},
        "report": {"plots": False},
        "tune": tune,
    }
    folder = run(loads(json.dumps(spec), path=root / f"{name}.yaml"))
    losses = [row["loss"] for row in files.read_jsonl(folder / "tune" / "log.jsonl")]
    return losses, files.read_safetensors(folder / "tuned" / "tuner.safetensors")


def written(view, system: str, exchanges: list[tuple], last_alone: bool) -> tuple[list[int], list[int]]:
    """A conversation's tokens and labels: its text by the tiny model's template, every learnt answer with its end."""
    text, spans = f"{system} " if system else "", []
    for number, (asked, answer, learnt) in enumerate(exchanges):
        image, _, question = asked.rpartition("<image>\n")
        text += "USER: " + ("<image>\n" if image or asked != question else "") + f"{question} ASSISTANT:"
        spans += (
            [(len(text), len(text) + len(answer) + 5)]
            if learnt and (not last_alone or number + 1 == len(exchanges))
            else []
        )
        text += f" {answer}</s>"
    told, tokens = view.tokenizer(text, return_offsets_mapping=True), view.model.config.image_seq_length
    ids, labels = [], []
    for token, (begin, _) in zip(told["input_ids"], told["offset_mapping"], strict=True):
        times = tokens if token == view.model.config.image_token_id else 1
        within = (
            any(first <= begin < stop for first, stop in spans) and times == 1 and token != view.tokenizer.bos_token_id
        )
        ids += [token] * times
        labels += [token if within else -100] * times
    return ids, labels


def by_loop(root: Path, last_alone: bool):
    view, trained = applied(TUNER, ("connector",))
    order, pixels = (
        Order(len(ROWS), BATCH, 1),
        view.processor.image_processor(Image.open(root / "red.png"), return_tensors="pt"),
    )
    steps = []
    for step in range(STEPS):
        chosen = [ROWS[order[BATCH * step + i]] for i in range(BATCH)]
        rows = [written(view, system, exchanges, last_alone) for _, system, exchanges in chosen]
        longest, images = max(len(ids) for ids, _ in rows), sum("red.png" in json.dumps(row) for row, _, _ in chosen)
        fill = {"input_ids": (0, view.pad_id), "labels": (1, -100)}
        batch = {
            name: torch.tensor([row[at] + [value] * (longest - len(row[at])) for row in rows])
            for name, (at, value) in fill.items()
        }
        batch["attention_mask"] = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
        steps.append(batch | ({"pixel_values": pixels["pixel_values"].expand(images, -1, -1, -1)} if images else {}))
    return descend(view, trained, steps), trained


@pytest.fixture(scope="module")
def plainly(project):
    return learn(project, "plain")


def test_every_layout_is_learnt_as_its_text_says_and_no_answer_that_is_not_to_be(project, plainly):
    losses, trained = by_loop(project, False)
    assert plainly[0] == pytest.approx(losses, rel=1e-5) and apart(plainly[1], trained) < 3e-4


def test_with_mask_history_the_last_answers_alone_are_learnt(project, plainly):
    losses, values = learn(project, "masked", mask_history=True)
    expected, trained = by_loop(project, True)
    assert losses == pytest.approx(expected, rel=1e-5) and apart(values, trained) < 3e-4
    assert losses != pytest.approx(plainly[0], rel=1e-2)
    assert learn(project, "mixed", mask_history=True, path=None, mix=[{"path": "rows.jsonl"}])[0] == losses


def test_a_json_array_and_parquet_are_read_as_lines_are(project, plainly):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(
        pa.Table.from_struct_array(pa.array(files.read_jsonl(project / "rows.jsonl"))), project / "rows.parquet"
    )
    for name in ("rows.json", "rows.parquet"):
        losses, values = learn(project, f"of {name}", path=name, images=str(project))
        assert losses == plainly[0] and all(torch.equal(t, plainly[1][n]) for n, t in values.items())


def test_pictures_are_those_of_the_folder_that_is_named(project, tmp_path, plainly):
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        Image.new("RGB", (48, 48), colour).save(tmp_path / colour / "red.png")
    assert learn(project, "red", images=str(tmp_path / "red"))[0] == plainly[0]
    assert learn(project, "blue", images=str(tmp_path / "blue"))[0] != plainly[0]


def test_a_mix_of_files_is_learnt_as_one_file_of_its_rows(project):
    """Three rows at 2.5: each twice, and one or two, which the seed draws, a third time."""
    rows = files.read_jsonl(project / "rows.jsonl")
    files.write_jsonl(project / "a.jsonl", rows[:3])
    files.write_jsonl(project / "b.jsonl", rows[3:])
    more = sorted(drawn(3, 7)[:2])
    files.write_jsonl(project / "flat.jsonl", [*rows[:3] * 2, *(rows[i] for i in more), *rows[3:]])
    mix = [{"path": "a.jsonl", "weight": 2.5}, {"path": "b.jsonl"}]
    assert learn(project, "mix", path=None, mix=mix, seed=7)[0] == learn(project, "flat", path="flat.jsonl")[0]


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


def test_taken_are_as_many_as_are_asked_for_as_the_seed_draws_them(project):
    rows = files.read_jsonl(project / "rows.jsonl")
    files.write_jsonl(project / "six.jsonl", [rows[i] for i in sorted(drawn(10, 4)[:6])])
    assert learn(project, "taken", take=6, seed=4)[0] == learn(project, "six", path="six.jsonl")[0]


def test_photos_are_learnt_as_questions_with_their_labels(project, tmp_path):
    rows = []
    for colour in ("red", "blue", "green"):
        for i in range(2):
            path = tmp_path / "photos" / colour / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 48), colour).save(path)
            rows.append({"query": "<image>\nWhich one?", "response": colour, "image": f"{colour}/{i}.png"})
    files.write_jsonl(tmp_path / "photos.jsonl", sorted(rows, key=lambda row: row["image"]))
    asked = {"path": None, "photos": str(tmp_path / "photos"), "question": "Which one?"}
    written_out = {"path": str(tmp_path / "photos.jsonl"), "images": str(tmp_path / "photos")}
    assert learn(project, "photos", **asked)[0] == pytest.approx(learn(project, "rows", **written_out)[0], rel=1e-6)

"""Data sets of the hub, from a stand-in over HTTP: fetched whole, and streamed a row as it comes."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from factory import files, progress
from factory.corpus.hub_data import HubFlow
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.run.tuners.opening import open_source
from tests.data_hub import served
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.factory.train.test_streaming import same, trained
from tests.tiny import saved_tiny

if find_spec("datasets") is None:
    pytest.skip("datasets is not installed (the extra `data`)", allow_module_level=True)

import datasets


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_data(root)
    saved_tiny(root / "model")
    rows = [row for row in files.read_jsonl(root / "data.jsonl") if "image" in row]
    files.write_jsonl(root / "pictured.jsonl", rows)
    whole = [row | {"image": {"bytes": (root / row["image"]).read_bytes(), "path": None}} for row in rows]
    for name, part in (("train", whole), ("half0", whole[:8]), ("half1", whole[8:])):
        typed = datasets.Dataset.from_list(part).cast_column("image", datasets.Image())
        typed.to_parquet(root / f"{name}.parquet")
    return root


@pytest.fixture
def hub(project, tmp_path):
    with served(tmp_path / "cache") as hub:
        read = lambda name: (project / name).read_bytes()
        flat = [row | {"file_name": row.pop("image")} for row in files.read_jsonl(project / "pictured.jsonl")]
        hub.repos["us/scenes"] = {"data/train-00000.parquet": read("train.parquet")}
        hub.repos["us/halves"] = {f"data/train-0000{i}-of-00002.parquet": read(f"half{i}.parquet") for i in (0, 1)}
        hub.repos["us/folder"] = {row["file_name"]: read(row["file_name"]) for row in flat} | {
            "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in flat).encode()
        }
        yield hub


def recipe(root: Path, name: str, data: dict, **changes):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / name)},
        "report": {"plots": False},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "dropout": 0.3},
            "data": {"max_tokens": 200, **data},
            "batch_size": 4,
            "steps": 2,
            **changes,
        },
    }
    return loads(json.dumps(spec), path=root / f"{name}.yaml")


STREAMED = {"streaming": True, "buffer": 5}


def test_a_data_set_of_the_hub_is_learnt_as_its_file_would_be(project, hub):
    plain = {"group_by_length": False}
    run(recipe(project, "fetched", plain | {"hub": "us/scenes"}))
    run(recipe(project, "local", plain | {"path": str(project / "pictured.jsonl")}))
    assert same(trained(project, "fetched"), trained(project, "local"))


@pytest.mark.parametrize("repo", ["us/scenes", "us/folder"])
def test_a_data_set_that_is_streamed_is_learnt_as_its_file_is(project, hub, repo):
    """Also where its pictures are files of their own; five steps go over its 16 rows more than once."""
    name = repo.partition("/")[2]
    run(recipe(project, name, STREAMED | {"hub": repo}, steps=5, save_every=2))
    run(recipe(project, f"{name} local", STREAMED | {"path": str(project / "pictured.jsonl")}, steps=5))
    assert same(trained(project, name), trained(project, f"{name} local"))
    with progress.watched(stops_at("tune", 3)), pytest.raises(Interrupted):
        run(recipe(project, f"{name} cut", STREAMED | {"hub": repo}, steps=5, save_every=2))
    hub.asked.clear()
    run(recipe(project, f"{name} cut", STREAMED | {"hub": repo}, steps=5, save_every=2))
    assert same(trained(project, name), trained(project, f"{name} cut"))
    pictures = [path for path in hub.asked if path.endswith(".png")]
    # 16 of the audit, and those of steps 3 to 5 (and of a batch that was read ahead).
    assert len(pictures) == 0 if repo == "us/scenes" else 16 + 12 <= len(pictures) <= 16 + 16


def test_rows_of_several_files_of_the_hub_come_as_datasets_gives_them(project, hub):
    halves = [str(project / f"half{i}.parquet") for i in (0, 1)]
    plain = datasets.load_dataset("parquet", data_files=halves, split="train", streaming=True)
    drawn = plain.decode(False).shuffle(seed=3, buffer_size=4)
    flow = HubFlow("us/halves", "train", project, 4, 3)
    for epoch in (0, 1):
        drawn.set_epoch(epoch)
        assert [row["id"] for _, row in flow.drawn(epoch)] == [row["id"] for row in drawn]
    assert [row["id"] for row in flow.head()] == [row["id"] for row in plain]


CARD = """---
configs:
- config_name: plain
  data_files: [{split: train, path: plain.jsonl}, {split: test, path: test.jsonl}]
- config_name: other
  data_files: [{split: train, path: other.jsonl}]
---
"""


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"subset": "plain"}, "plain"),
        ({"subset": "other"}, "other"),
        ({"subset": "plain", "split": "test"}, "test"),
        ({"subset": "plain", "revision": "2" * 40}, "older"),
    ],
)
def test_the_rows_are_those_of_the_subset_the_split_and_the_revision(project, hub, streaming, chosen, name):
    rows = lambda name: "".join(json.dumps({"query": f"{i}", "response": name}) + "\n" for i in range(8)).encode()
    hub.repos["us/sets"] = {f"{name}.jsonl": rows(name) for name in ("plain", "other", "test")}
    hub.repos["us/sets"]["README.md"] = CARD.encode()
    hub.repos["us/sets@" + "2" * 40] = hub.repos["us/sets"] | {"plain.jsonl": rows("older")}
    spec = recipe(project, "chosen", {"hub": "us/sets", **chosen} | (STREAMED if streaming else {}))
    source = open_source(spec, spec.tune.data, 4, None, quiet=True)
    assert {segment.text for i in range(8) for segment in source[i].prompt.segments if not segment.text.isdigit()} == {
        name
    }


def test_a_revision_that_moves_on_is_other_data(project, hub, monkeypatch):
    run(recipe(project, "moved", STREAMED | {"hub": "us/scenes"}))
    monkeypatch.setattr(hub, "commit", "1" * 40)
    with pytest.raises(UserError, match="a training with other values is there, and is kept: the data"):
        run(recipe(project, "moved", STREAMED | {"hub": "us/scenes"}))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"hub": "us/none"}, "cannot read us/none: there is no such repo"),
        ({"hub": "us/scenes", "split": "validation"}, "tune.data.hub: us/scenes: (Unknown|Bad) split"),
        ({"hub": "us/scenes", "subset": "other"}, "tune.data.hub: us/scenes: .*other"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_one_line(project, hub, streaming, data, why):
    with pytest.raises(UserError, match=why) as told:
        run(recipe(project, "nothing", data | (STREAMED if streaming else {})))
    assert "\n" not in str(told.value) and str(told.value).startswith("recipe:1:")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_is_not_there_is_told_in_one_line(project, hub, monkeypatch, streaming):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot read us/scenes: the hub cannot be reached.*name a file under path"):
        run(recipe(project, "nowhere", {"hub": "us/scenes"} | (STREAMED if streaming else {})))

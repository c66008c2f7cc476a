"""Rows that are read as they come: never all held, learnt as a plain list of them, gone on with after a kill to the
bit; and data of the hub, from a stand-in over HTTP.
"""

from __future__ import annotations

import json
import threading
from http.server import ThreadingHTTPServer
from importlib.util import find_spec

import pytest
import torch

from factory import files, progress
from factory.corpus import stream
from factory.corpus.records import scan
from factory.corpus.stream import Stream
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from tests.eval_suite.test_sharing import Hub
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.tiny import saved_tiny

if find_spec("datasets") is None:
    pytest.skip("datasets is not installed (the extra `data`)", allow_module_level=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("streaming")
    write_data(root)
    saved_tiny(root / "model")
    return root


def recipe(root, name: str, data: dict | None = None, **changes):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / name)},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "dropout": 0.3},
            "data": {"path": str(root / "data.jsonl"), "max_tokens": 200, "streaming": True, "buffer": 5}
            | (data or {}),
            "batch_size": 4,
            "steps": 8,  # more rows than the file has: it begins anew
            "save_every": 1,
            **changes,
        },
    }
    return loads(json.dumps(spec), path=root / f"{name}.yaml")


def trained(root, name: str) -> dict[str, torch.Tensor]:
    return files.read_safetensors(root / name / "r" / "tuned" / "tuner.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def order_by_hand(path, n: int, buffer: int) -> list[str]:
    """The ids of the first rows, as ``datasets`` alone draws them."""
    from datasets import IterableDataset

    rows = IterableDataset.from_generator(lambda path: (row for _, _, row in scan(path)), gen_kwargs={"path": path})
    rows, drawn = rows.shuffle(seed=0, buffer_size=buffer), []
    for epoch in range(-(-n // 24)):
        rows.set_epoch(epoch)
        drawn += [row["id"] for row in rows]
    return drawn[:n]


def test_rows_come_in_datasets_own_order_and_are_never_all_held(tmp_path, monkeypatch):
    files.write_jsonl(tmp_path / "d.jsonl", [{"id": f"{i}", "query": "a", "response": "b"} for i in range(24)])
    source = Stream(tmp_path / "d.jsonl", tmp_path, 60, 5)
    read = []
    monkeypatch.setattr(stream, "scan", lambda path: (read.append(0) or row for row in scan(path)))
    found = []
    for place in range(60):
        found.append(source[place].id)
        assert len(read) <= place + 1 + 3 * 6, "of each epoch a buffer and a row are ahead"
    assert found == order_by_hand(tmp_path / "d.jsonl", 60, 5)
    assert sorted(found[:24]) == sorted(found[24:48]) and found[:24] != found[24:48]
    assert [source[place].id for place in (59, 7)] == [found[59], found[7]], "also out of turn"


def test_a_stream_of_one_file_learns_what_a_plain_list_of_its_rows_does(project):
    """The rows as the stream draws them, written out in a file that is read in turn."""
    run(recipe(project, "streamed", steps=3))
    rows = {row["id"]: row for _, _, row in scan(project / "data.jsonl")}
    files.write_jsonl(project / "drawn.jsonl", [rows[name] for name in order_by_hand(project / "data.jsonl", 24, 5)])
    run(recipe(project, "listed", {"path": str(project / "drawn.jsonl"), "buffer": 1}, steps=3))
    assert same(trained(project, "streamed"), trained(project, "listed"))
    run(recipe(project, "otherwise", {"seed": 3}, steps=3))
    assert not same(trained(project, "streamed"), trained(project, "otherwise"))


def test_a_killed_and_resumed_streaming_ends_with_the_same_weights(project):
    run(recipe(project, "whole"))
    with progress.watched(stops_at("tune", 7)), pytest.raises(Interrupted):
        run(recipe(project, "cut"))
    run(recipe(project, "cut"))
    assert same(trained(project, "whole"), trained(project, "cut"))


def test_a_bad_row_is_found_before_the_training_or_ends_it_as_it_comes(project, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "HEAD", 8)
    rows = [row for _, _, row in scan(project / "data.jsonl")]
    head = [{"query": "a", "response": "b"}] * stream.HEAD
    files.write_jsonl(tmp_path / "late.jsonl", [*head, {"query": "a", "tools": ["x"], "response": "b"}, *rows[:1]])
    own = {"path": str(tmp_path / "late.jsonl"), "images": str(project), "buffer": 1}
    with pytest.raises(UserError, match="key 'tools'"):
        run(recipe(project, "late", own, steps=3))
    first = [{"query": "a", "tools": ["x"], "response": "b"}] * 3
    files.write_jsonl(tmp_path / "early.jsonl", [*first, *rows])
    for do in (plan, run):
        with pytest.raises(UserError, match="3 of 8 samples cannot be used"):
            do(recipe(project, "early", own | {"path": str(tmp_path / "early.jsonl")}))


@pytest.mark.parametrize(
    ("data", "changes", "why"),
    [
        ({}, {"steps": None}, "tune: needs steps"),
        ({"take": 3}, {}, "tune.data.take: needs all rows"),
        ({"workers": 2}, {}, "tune.data.workers: would share a stream's rows"),
        ({"group_by_length": True}, {}, "tune.data.group_by_length: needs the length"),
        ({"cache_features": True}, {}, "tune.data.cache_features: needs all rows"),
        ({}, {"held_out": {"share": 0.1}}, "tune.held_out.share: a stream's rows"),
        ({"path": None, "hub": "a/b"}, {}, "tune.data.streaming: reads one file"),
        ({"subset": "x"}, {}, "tune.data.subset: is for data under hub"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(project, data, changes, why):
    with pytest.raises(UserError, match=why):
        recipe(project, "refused", data, **changes)


class DataHub(Hub):
    """The stand-in with data sets, whose addresses begin otherwise."""

    def do_GET(self):
        self.path = self.path.removeprefix("/datasets")
        super().do_GET()

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Hub, "repos", {})
    yield Hub.repos
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub_is_learnt_as_its_file_would_be(project, hub, tmp_path):
    import datasets

    rows = [row for _, _, row in scan(project / "data.jsonl") if "image" in row]
    pictured = [row | {"image": {"bytes": (project / row["image"]).read_bytes(), "path": None}} for row in rows]
    datasets.Dataset.from_list(pictured).to_parquet(tmp_path / "train.parquet")
    files.write_jsonl(tmp_path / "test.jsonl", [{"query": "a", "response": "b"}])
    hub["us/scenes"] = {"data/train-00000.parquet": (tmp_path / "train.parquet").read_bytes()}
    plain = {"streaming": False, "path": None, "group_by_length": False}
    run(recipe(project, "hub", plain | {"hub": "us/scenes"}, steps=2))
    files.write_jsonl(project / "pictured.jsonl", rows)
    run(recipe(project, "local", plain | {"path": str(project / "pictured.jsonl")}, steps=2))
    assert same(trained(project, "hub"), trained(project, "local"))
    for data, why in (
        ({"hub": "us/none"}, "cannot read us/none: there is no such repo"),
        ({"hub": "us/scenes", "split": "validation"}, "tune.data.hub: us/scenes: Unknown split"),
        ({"hub": "us/scenes", "subset": "other"}, "tune.data.hub: us/scenes: .*other"),
    ):
        with pytest.raises(UserError, match=why) as told:
            run(recipe(project, "nothing", plain | data, steps=2))
        assert "\n" not in str(told.value)

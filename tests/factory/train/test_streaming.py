"""Rows that are read as they come: never all held, learnt as a plain list of them, gone on with after a kill to the
bit, one file or several with weights.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from factory import files, progress
from factory.corpus import stream
from factory.corpus.records import scan
from factory.corpus.stream import FileFlow, Stream
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from factory.run.tuners.opening import open_source
from tests.factory.ranks import as_ranks
from tests.factory.train.case import Interrupted, stops_at, write_data
from tests.tiny import saved_tiny

if find_spec("datasets") is None:
    pytest.skip("datasets is not installed (the extra `data`)", allow_module_level=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("streaming")
    write_data(root)
    saved_tiny(root / "model")
    for name, n in (("many", 12), ("few", 4)):
        rows = [{"id": f"{name}{i}", "query": f"Say {i}", "response": f"{name} {i}"} for i in range(n)]
        files.write_jsonl(root / f"{name}.jsonl", rows)
    return root


def recipe(root, name: str, data: dict | None = None, **changes):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / name)},
        "report": {"plots": False},
        "tune": {
            "tuner": {"type": "lora", "rank": 2, "dropout": 0.3},
            "data": {"path": str(root / "data.jsonl"), "max_tokens": 200, "streaming": True, "buffer": 5}
            | (data or {}),
            "batch_size": 8,
            "steps": 4,  # more rows than the file has: it begins anew
            "save_every": 2,
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
    source = Stream([FileFlow(tmp_path / "d.jsonl", tmp_path, 5, 0)], 60)
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
    run(recipe(project, "streamed", steps=3, batch_size=4))
    rows = {row["id"]: row for _, _, row in scan(project / "data.jsonl")}
    files.write_jsonl(project / "drawn.jsonl", [rows[name] for name in order_by_hand(project / "data.jsonl", 24, 5)])
    run(recipe(project, "listed", {"path": str(project / "drawn.jsonl"), "buffer": 1}, steps=3, batch_size=4))
    assert same(trained(project, "streamed"), trained(project, "listed"))
    run(recipe(project, "otherwise", {"seed": 3}, steps=3, batch_size=4))
    assert not same(trained(project, "streamed"), trained(project, "otherwise"))


def test_a_killed_and_resumed_streaming_ends_with_the_same_weights(project):
    run(recipe(project, "whole"))
    with progress.watched(stops_at("tune", 3)), pytest.raises(Interrupted):
        run(recipe(project, "cut"))
    run(recipe(project, "cut"))
    assert same(trained(project, "whole"), trained(project, "cut"))


MIX = {"path": None, "mix": [{"path": "many.jsonl"}, {"path": "few.jsonl", "weight": 2.5}]}
EPOCH = 12 + 10


def mixed_by_hand(project, n: int, buffer: int = 5, seed: int = 0) -> list[str]:
    """The ids of the first rows of ``MIX``: each file's rows as often as its weight says, as ``datasets`` alone draws
    them, and one file or the other in proportion to what is left.
    """
    from datasets import IterableDataset

    half = sorted(np.random.default_rng(seed).permutation(4)[:2])
    lists = [[f"many{i}" for i in range(12)], [f"few{i}" for i in [0, 1, 2, 3, 0, 1, 2, 3, *half]]]
    made = lambda ids: IterableDataset.from_generator(lambda ids: ({"id": i} for i in ids), gen_kwargs={"ids": ids})
    drawn, found = [made(tuple(ids)).shuffle(seed=seed, buffer_size=buffer) for ids in lists], []
    for epoch in range(-(-n // EPOCH)):
        for each in drawn:
            each.set_epoch(epoch)
        rows, rng = [[row["id"] for row in each] for each in drawn], np.random.default_rng((seed, epoch))
        while rows[0] or rows[1]:
            first = int(rng.integers(len(rows[0]) + len(rows[1]))) < len(rows[0])
            found.append(rows[0 if first else 1].pop(0))
    return found[:n]


def opened(recipe, quiet: bool = True):
    return open_source(recipe, recipe.tune.data, recipe.tune.batch_size, None, quiet)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_stream_of_several_files_holds_their_weights_in_every_epoch(project, seed):
    steps = 3 * EPOCH
    source = opened(recipe(project, "weighed", MIX | {"seed": seed}, batch_size=1, steps=steps))
    ids = [source[place].id.split(" of ")[0] for place in range(steps)]
    assert ids == mixed_by_hand(project, steps, seed=seed)
    indexed = opened(recipe(project, "indexed", MIX | {"seed": seed, "streaming": False}))
    of_index = Counter(indexed.name(i) for i in range(len(indexed)))
    for epoch in range(3):
        assert Counter(ids[epoch * EPOCH : (epoch + 1) * EPOCH]) == of_index, "as the same mix without streaming"
    assert {name[:3] for name in ids[: EPOCH // 2]} == {"man", "few"}, "not one file after the other"


def test_a_stream_of_several_files_learns_what_a_plain_list_of_its_rows_does(project, capsys):
    run(recipe(project, "mixed", MIX, steps=3))
    said = capsys.readouterr().out
    assert "many.jsonl" in said and "few.jsonl" in said, "each is looked at for itself"
    rows = {row["id"]: row for name in ("many", "few") for row in files.read_jsonl(project / f"{name}.jsonl")}
    files.write_jsonl(project / "unmixed.jsonl", [rows[name] for name in mixed_by_hand(project, 24)])
    run(recipe(project, "unmixed", {"path": str(project / "unmixed.jsonl"), "buffer": 1}, steps=3))
    assert same(trained(project, "mixed"), trained(project, "unmixed"))
    with progress.watched(stops_at("tune", 3)), pytest.raises(Interrupted):
        run(recipe(project, "mixed again", MIX, steps=3))
    run(recipe(project, "mixed again", MIX, steps=3))
    assert same(trained(project, "mixed"), trained(project, "mixed again"))


def test_a_file_that_has_lost_rows_since_they_were_counted_is_told(project, tmp_path):
    for name in ("many", "few"):
        (tmp_path / f"{name}.jsonl").write_bytes((project / f"{name}.jsonl").read_bytes())
    mix = [{"path": str(tmp_path / each["path"])} for each in MIX["mix"]]
    source = opened(recipe(project, "shorter", MIX | {"mix": mix}))
    files.write_jsonl(tmp_path / "many.jsonl", files.read_jsonl(tmp_path / "many.jsonl")[:3])
    with pytest.raises(UserError, match="many.jsonl: has changed since its rows were counted; start again"):
        _ = source[15]


def test_rows_of_several_files_are_named_with_their_file(project, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "HEAD", 2)
    odd = [{"query": "a", "response": "b"}, {"query": "a", "response": "b"}, {"query": "a", "tools": ["x"]}]
    files.write_jsonl(tmp_path / "odd.jsonl", odd)
    mix = {"path": None, "mix": [{"path": "many.jsonl"}, {"path": str(tmp_path / "odd.jsonl")}], "buffer": 1}
    with pytest.raises(UserError, match=r"^sample 2 of .*odd.jsonl: .*key 'tools'"):
        run(recipe(project, "named", mix))
    files.write_jsonl(tmp_path / "odd.jsonl", odd[::-1])
    with pytest.raises(UserError, match="odd.jsonl: 1 of 2 samples cannot be used"):
        plan(recipe(project, "named", mix))


@pytest.mark.slow
@pytest.mark.parametrize("data", [{}, MIX], ids=["one", "mix"])
def test_two_ranks_read_rows_apart_and_learn_what_one_does(project, tmp_path, monkeypatch, data):
    how = {"tuner": {"type": "lora", "rank": 2, "dropout": 0.0}, "micro_batch": 4, "steps": 3}
    inside = Stream.__getitem__

    def noted(self, index):
        files.append_jsonl(tmp_path / f"rows{os.environ['RANK']}", {"row": index})
        return inside(self, index)

    run(recipe(project, f"one{len(data)}", data, **how))
    monkeypatch.setattr(Stream, "__getitem__", noted)

    def work(world):
        run(recipe(project, f"two{len(data)}", data, **how), world=world)
        torch.distributed.destroy_process_group()

    done = as_ranks(2, work, tmp_path)
    assert done.codes == [0, 0], done.err[-3000:]
    first, second = ({row["row"] for row in files.read_jsonl(tmp_path / f"rows{rank}")} for rank in (0, 1))
    assert not first & second and first | second == set(range(24))
    one, two = (files.read_jsonl(project / f"{n}{len(data)}" / "r" / "tune" / "log.jsonl") for n in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


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
        ({"path": None, "photos": "a"}, {}, "tune.data.streaming: reads rows under path, mix or hub, not photos"),
        ({"path": None, "lessons": "scenes", "take": 8}, {}, "tune.data.streaming: reads rows .* not lessons"),
        ({"subset": "x"}, {}, "tune.data.subset: is for data under hub"),
        ({"path": None, "mix": [{"path": "few.jsonl", "hub": "a/b"}]}, {}, "tune.data.mix.0.hub: unknown key"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_by_name(project, data, changes, why):
    with pytest.raises(UserError, match=rf"recipe:\d+:\d+ ({why})"):
        recipe(project, "refused", data, **changes)


def test_a_weight_at_which_a_file_shows_nothing_is_refused(project):
    mix = {"path": None, "mix": [{"path": "many.jsonl"}, {"path": "few.jsonl", "weight": 0.1}]}
    with pytest.raises(UserError, match="tune.data.mix.1.weight: 0.1 of 4 samples is none of them"):
        plan(recipe(project, "nothing", mix))

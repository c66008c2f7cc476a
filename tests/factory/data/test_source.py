"""Files of conversations: any record at once, in either layout, checked before anything heavy, in a few bytes a
sample.
"""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory.corpus import records
from factory.corpus.conversation import Unusable
from factory.corpus.index import build_index
from factory.corpus.order import Order, subset
from factory.corpus.records import RecordReader, scan
from factory.corpus.source import ConversationFile
from factory.errors import UserError


def record(i: int, image: str | None = None, words: str = "w") -> dict:
    named = {"image": image} if image else {}
    return {
        "id": f"s{i}",
        **named,
        "conversations": [
            {"from": "human", "value": ("<image>\n" if image else "") + words},
            {"from": "gpt", "value": str(i)},
        ],
    }


def written(path, rows, layout: str, indent: int | None = None):
    texts = [json.dumps(row, ensure_ascii=False, indent=indent) for row in rows]
    path.write_text("\n".join(texts) + "\n" if layout == "jsonl" else "[" + ", ".join(texts) + "]", encoding="utf-8")
    return path


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), max_size=6),
    layout=st.sampled_from(["jsonl", "array"]),
    indent=st.sampled_from([None, 2]),
    chunk=st.sampled_from([1, 7, 64]),
)
def test_every_record_is_found_and_read_again_whatever_the_chunks(tmp_path_factory, rows, layout, indent, chunk):
    path = written(tmp_path_factory.mktemp("x") / "f", rows, layout, indent)
    whole, records.CHUNK = records.CHUNK, chunk
    try:
        found = list(scan(path))
    finally:
        records.CHUNK = whole
    reader = RecordReader(path)
    assert [value for *_, value in found] == rows == [reader.read(offset, size) for offset, size, _ in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"b": 2}', "f.json:1: cut short"),
        ('{"a": 1}\n{"b": \n', "f.json:2: not valid JSON, or cut short"),
        ('{"a": 1}\n\n{"b" 2}\n{"c": 3}', "f.json:3: not valid JSON"),
        ('{"a": 1}\n3\n', "f.json:2: holds something other"),
        ("[1, 2]", "f.json:1: holds something other"),
        ('[{"a": 1}] {"b": 2}', "f.json:1: holds something other"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=message):
        list(scan(tmp_path / "f.json"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "f").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        list(scan(tmp_path / "f"))


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    Image.new("RGB", (8, 8), "green").save(tmp_path / "late.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    return tmp_path


def test_missing_images_are_counted_and_named_before_anything_else(folder):
    path = written(
        folder / "d.jsonl",
        [record(0, "a.png"), record(1, "gone.png"), record(2, "b.png"), record(3, "lost.png"), record(4)],
        "jsonl",
    )
    with pytest.raises(
        UserError,
        match=(
            r"2 of 5 samples cannot be used, and 2 of the 4 images named are not under .*sample s1: its image gone.png"
            r" is missing; sample s3"
        ),
    ):
        ConversationFile(path, folder, folder / "cache")
    source = ConversationFile(path, folder, folder / "cache", max_skipped=0.4)
    assert [source.name(i) for i in range(len(source))] == ["s0", "s2", "s4"]
    assert (source.audit.unusable, source.audit.missing, len(source.audit.named)) == (2, 2, 2)
    assert [len(source[i].prompt.images) for i in range(3)] == [1, 1, 0]


def test_a_damaged_image_is_told_when_its_sample_is_read(folder):
    path = written(folder / "d.jsonl", [record(0, "late.png")], "jsonl")
    source = ConversationFile(path, folder, folder / "cache")
    (folder / "late.png").write_bytes(b"no picture")
    with pytest.raises(Unusable, match="cannot be read: .*late.png: is no picture"):
        source[0]


def test_the_index_is_built_once_and_anew_when_the_file_changes(folder):
    path = written(folder / "d.json", [record(i) for i in range(5)], "array")
    first = ConversationFile(path, folder, folder / "cache")
    written_at = {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()}
    again = ConversationFile(path, folder, folder / "cache")
    assert np.array_equal(first.index, again.index) and again.conversation(3) == first.conversation(3)
    assert written_at == {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()}, "the index was at hand"
    written(path, [record(i) for i in range(6)], "array")
    assert len(ConversationFile(path, folder, folder / "cache")) == 6


def test_empty_and_missing_files_are_refused(folder):
    (folder / "none.json").write_text("[]")
    with pytest.raises(UserError, match="holds no sample"):
        ConversationFile(folder / "none.json", folder, folder / "cache")
    with pytest.raises(UserError, match="not found"):
        ConversationFile(folder / "nowhere.json", folder, folder / "cache")


def test_memory_does_not_grow_with_the_file(folder):
    path = written(folder / "big.json", (record(i, "a.png", "word " * 600) for i in range(5000)), "array")
    tracemalloc.start()
    index, *_ = build_index(path, folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 15e6 and len(index) == 5000
    assert peak < 8e6, "a few chunks; far less than the file"
    assert index.nbytes <= 20 * len(index)


def test_subsets_are_drawn_by_seed_and_lie_in_one_another():
    small, middle, all_of_it = (set(subset(1000, size, 3)) for size in (100, 500, None))
    assert len(small) == 100 and small < middle < all_of_it and len(all_of_it) == 1000
    assert set(subset(1000, 100, 4)) != small


@given(n=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 9), grouped=st.booleans())
def test_every_epoch_takes_every_sample_once_in_an_order_of_its_own(n, batch, seed, grouped):
    lengths = np.random.default_rng(0).integers(1, 50, n) if grouped else None
    order = Order(n, batch, seed, lengths)
    epochs = [[order[e * n + i] for i in range(n)] for e in range(2)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    fresh = Order(n, batch, seed, lengths)
    assert [fresh[p] for p in reversed(range(2 * n))] == [*epochs[0], *epochs[1]][::-1], "any place can be gone on from"
    assert n < 20 or grouped or epochs[0] != epochs[1]


def test_grouped_batches_are_alike_in_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 640)
    waste = {}
    for name, given_lengths in (("plain", None), ("grouped", lengths)):
        order = Order(640, 8, 0, given_lengths)
        batches = [[lengths[order[b * 8 + i]] for i in range(8)] for b in range(80)]
        waste[name] = sum(max(b) * 8 - sum(b) for b in batches)
    assert waste["grouped"] < 0.3 * waste["plain"]

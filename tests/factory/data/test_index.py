"""The index of a data file is that of the file and its pictures as they are now, and whatever lies in its cache."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factory
from factory import code
from factory.corpus import index
from factory.corpus.index import indexed
from factory.corpus.source import ConversationFile
from factory.data import pictures
from factory.errors import UserError
from factory.files import digest, digest_bytes
from tests.counted import calls


def row(i: int, image: str | None = None, answer: str = "red") -> dict:
    asked = ("<image>\n" if image else "") + "What?"
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"s{i}", "conversations": turns} | ({"image": image} if image else {})


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "ab":
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    rows = [row(0, "a.png"), row(1), row(2, "b.png"), row(3, "late.png")]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def opened(folder: Path, **more) -> ConversationFile:
    return ConversationFile(folder / "d.jsonl", folder, folder / "cache", max_skipped=0.5, **more)


@pytest.fixture
def built(monkeypatch) -> list[int]:
    """A number is added whenever an index is built."""
    times: list[int] = []
    real = index.build_index
    monkeypatch.setattr(index, "build_index", lambda *args: times.append(1) or real(*args))
    return times


def names(source: ConversationFile) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_pictures_that_come_go_or_change_are_noticed(folder, built):
    first = opened(folder)
    assert names(first) == ["s0", "s1", "s2"] and first.audit.missing == 1
    assert names(opened(folder)) == names(first) and len(built) == 1
    Image.new("RGB", (8, 8), "green").save(folder / "late.png")
    second = opened(folder)
    assert names(second) == ["s0", "s1", "s2", "s3"] and second.audit.missing == 0 and len(built) == 2
    size = (folder / "a.png").stat().st_size
    Image.new("RGB", (8, 8), (254, 0, 0)).save(folder / "a.png")
    assert (folder / "a.png").stat().st_size == size
    third = opened(folder)
    assert len({first.audit.digest, second.audit.digest, third.audit.digest}) == 3
    (folder / "b.png").unlink()
    assert names(opened(folder)) == ["s0", "s1", "s3"]


def test_copies_have_one_digest_and_a_changed_byte_another(folder, tmp_path_factory):
    Image.effect_noise((700, 700), 50).save(folder / "b.png")
    assert (folder / "b.png").stat().st_size > 2 * pictures.EDGE
    first = opened(folder).audit
    for name in ("a.png", "b.png", "d.jsonl"):
        os.utime(folder / name, ns=(5, 5))
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=lambda *_: {"cache"})
    for audit in (opened(folder).audit, opened(copy).audit):
        assert audit.digest == first.digest and audit.times != first.times
    for name, at in (("a.png", 20), ("b.png", pictures.EDGE - 1), ("b.png", -9), ("d.jsonl", 8)):
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at:][1:])
        assert opened(copy).audit.digest != first.digest, name
        (copy / name).write_bytes(before)
    assert opened(copy).audit.digest == first.digest


def test_an_index_that_other_code_has_built_is_not_taken(folder, built, monkeypatch):
    """The code digest follows names and no formatting (``test_code``); here, that reader and check are in it."""
    tree = code.Tree({"factory": Path(factory.__file__).parent})
    reached = {name for start in READING for _, name in tree.reached(*start)}
    assert {"parse", "scan", "is_parquet", "size", "ENTRY", "render", "THINNEST", "Shapes"} <= reached
    opened(folder)
    monkeypatch.setattr(code, "of", lambda plugin: "other")
    opened(folder)
    assert len(built) == 2


def test_what_one_rank_has_looked_at_no_other_looks_at(folder, monkeypatch):
    looked, real = [], pictures.size
    monkeypatch.setattr(pictures, "size", lambda path: looked.append(path) or real(path))
    opened(folder)
    assert [path.name for path in looked] == ["a.png", "b.png"]
    opened(folder)
    assert len(looked) == 2


def test_a_refused_file_is_read_once_too(folder, built):
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 4 samples cannot be used"):
            ConversationFile(folder / "d.jsonl", folder, folder / "cache")
    assert len(built) == 1


WRONG = [b"", b"[]", b"{}", b"3", b'"x"', b'{"audit": 1}', b"\x93NUMPY\x01\0", b"\xff" * 40]


@pytest.mark.parametrize("name", ["*.npy", "*.json", "*.pictures.gz"])
def test_a_cut_missing_or_misshapen_cache_is_built_again(folder, name, built):
    right = opened(folder)
    (place,) = (folder / "cache").glob(name)
    whole = place.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (*WRONG, whole[: len(whole) // 2], bytes(flipped)):
        place.write_bytes(content)
        again = opened(folder)
        assert names(again) == names(right) and np.array_equal(again.index, right.index)
        assert again.audit == right.audit
    place.unlink()
    assert names(opened(folder)) == names(right)
    place.unlink()
    place.mkdir()
    (place / "inside").write_text("of somebody")
    assert names(opened(folder)) == names(right) and place.is_file()
    assert len(list((folder / "cache").glob("*.aside/inside"))) == 1, "nothing is deleted"


READING = (("factory.corpus.index", "build_index"), ("factory.corpus.refusals", "Refusals"))


def summed(record: dict) -> str:
    """A report as its writer would have it, whatever it says."""
    record.pop("sum", None)
    return json.dumps({**record, "sum": digest(record)})


def test_an_index_of_another_shape_is_not_taken(folder):
    right = opened(folder)
    (report,) = (folder / "cache").glob("*.json")
    kept = json.loads(report.read_text())
    (table,) = (folder / "cache").glob("*.npy")
    for array in (np.zeros(4), np.zeros((2, 2), index.ENTRY), np.zeros(3, index.ENTRY)):
        np.save(table, array)
        report.write_text(summed({**kept, "files": [digest_bytes(table.read_bytes()), kept["files"][1]]}))
        assert names(opened(folder)) == names(right)
    for audit in (
        {},
        [],
        {**kept["audit"], "samples": "4"},
        {**kept["audit"], "more": 1},
        {**kept["audit"], "troubles": 3},
    ):
        report.write_text(summed({**json.loads(report.read_text()), "audit": audit}))
        assert names(opened(folder)) == names(right)


def test_every_header_is_read_and_on_demand_every_picture(folder):
    (folder / "b.png").write_bytes(b"no picture")
    whole = folder / "late.png"
    Image.effect_noise((60, 60), 50).save(whole)
    whole.write_bytes(whole.read_bytes()[:-400])  # its header is sound
    source = opened(folder)
    assert names(source) == ["s0", "s1", "s3"] and list(source.audit.troubles) == ["image cannot be read"]
    assert "b.png: is no picture" in source.audit.named[0]
    thorough = opened(folder, decode=True)
    assert names(thorough) == ["s0", "s1"] and thorough.audit.troubles["image cannot be read"][0] == 2


def test_the_audit_counts_each_kind_and_names_its_first(folder):
    bad = [row(4, answer=" "), {"id": "s5"}, {**row(6), "video": "a.mp4"}, {**row(7), "video": "b.mp4"}]
    rows = [row(0, "a.png"), *bad, row(8, answer="red " * 50)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = []
    with pytest.raises(UserError, match="4 of 6 samples cannot be used") as refused:
        opened(folder, tell=told.append)
    assert "\n" not in str(refused.value)
    (audit,) = told
    assert {kind: count for kind, (count, _) in audit.troubles.items()} == {
        "answer that is not one text": 1,
        "no turns": 1,
        "key 'video' is not honoured": 2,
    }
    assert audit.troubles["key 'video' is not honoured"][1].startswith("sample s6: has the key 'video'")
    assert (audit.samples, audit.unusable, audit.without) == (6, 4, 1)
    assert audit.longest_name == "s8" and audit.longest == len("What?") + len(("red " * 50).strip())
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(audit.table(folder / "d.jsonl"))
    shown = console.export_text()
    for said in ("6", "without a picture", "key 'video'", "sample s6", "s8: 204 characters"):
        assert said in shown


def test_a_row_costs_as_many_calls_in_a_long_file_of_long_rows_as_in_a_short_one_of_short_rows(tmp_path):
    def cost(name: str, rows: int, words: int) -> int:
        value = " ".join(f"w{i}" for i in range(words))
        turns = [{"from": f, "value": value} for f in ("human", "gpt", "human", "gpt")]
        (tmp_path / name).write_text(json.dumps([{"id": i, "conversations": turns} for i in range(rows)]))
        return calls(lambda: indexed(tmp_path / name, tmp_path, tmp_path / "cache"))

    cost("a.json", 1, 1)  # what is read once is not a row's
    few, many, long = cost("b.json", 20, 3), cost("c.json", 220, 3), cost("d.json", 220, 300)
    assert (many - few) / 200 < 300
    assert long - many < 0.1 * many

"""Files of records that are no JSON: what they are is said in one line, and Parquet is read."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from importlib.util import find_spec

import pytest
from PIL import Image

from factory.corpus.records import reader, scan
from factory.corpus.source import ConversationFile
from factory.errors import UserError

TEXT = b'{"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]}\n'
PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("data.jsonl")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("data.jsonl", TEXT)
    return out.getvalue()


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (zipped(), "is a zip archive.*unpack it"),
        (gzip.compress(TEXT, mtime=0), "is a gzip archive.*unpack it"),
        (tar(), "is a tar archive.*unpack it"),
        (png(), "is a picture.*conversations"),
        (pickle.dumps({"a": 1}), "is a pickle"),
        (b"SQLite format 3\0" + bytes(100), "is an SQLite database"),
        (b"ARROW1\0\0" + bytes(100), "is an Arrow file"),
        ("[]".encode("utf-16"), "is UTF-16 text.*save it as UTF-8"),
        (b"\x01\x02\0\x03" * 50, "is a binary file"),
        (b'{"a": "' + b"caf\xe9" + b'"}', "is not UTF-8 text"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "f:1: .*nested too deeply"),
        (b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}", "f:2: not valid JSON"),
    ],
)
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path, data, kind):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(UserError, match=kind) as told:
        list(scan(tmp_path / "f"))
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_a_folder_is_no_file_of_data(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        ConversationFile(tmp_path, tmp_path, tmp_path / "cache")


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_without_pyarrow_a_parquet_file_names_the_extra(tmp_path):
    (tmp_path / "f").write_bytes(b"PAR1" + bytes(30))
    with pytest.raises(UserError, match=r"needs pyarrow, the extra 'benchmarks': .*\[benchmarks\]"):
        list(scan(tmp_path / "f"))


@pytest.fixture
def table(tmp_path):
    import pyarrow
    from pyarrow import parquet

    pictures = []
    for colour in ("red", "blue"):
        out = io.BytesIO()
        Image.new("RGB", (4, 4), colour).save(out, "PNG")
        pictures.append(out.getvalue())
    rows = [
        {
            "id": f"s{i}",
            "images": [{"bytes": pictures[i % 2], "path": None}] if i % 3 else None,
            "system": None,
            "messages": [
                {"role": "user", "content": "<image>What color?" if i % 3 else "2+2"},
                {"role": "assistant", "content": str(i)},
            ],
        }
        for i in range(10)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=4)
    return tmp_path / "d.parquet", rows


@PARQUET
def test_a_parquet_file_gives_its_rows_in_any_order(table):
    path, rows = table
    found = list(scan(path))
    assert [record for *_, record in found] == rows
    rows_of = reader(path)
    assert [rows_of.read(offset, size) for offset, size, _ in reversed(found)] == rows[::-1]


@PARQUET
def test_a_parquet_file_with_pictures_in_its_rows_is_trained_on(table, tmp_path):
    path, _ = table
    source = ConversationFile(path, tmp_path, tmp_path / "cache")
    assert len(source) == 10 and list(source.lengths(100) > 100) == [bool(i % 3) for i in range(10)]
    colours = [source[i].prompt.images[0].getpixel((0, 0)) for i in (1, 2)]
    assert colours == [(0, 0, 255), (255, 0, 0)] and source[4].prompt.segments[-1].text == "4"


@PARQUET
def test_a_damaged_parquet_file_is_told_in_one_line(table):
    path, _ = table
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:4] + b"\xff" * 200 + whole[204:], b"PAR1PAR1"):
        path.write_bytes(data)
        with pytest.raises(UserError, match="d.parquet: not a whole Parquet file") as told:
            list(scan(path))
        assert "\n" not in str(told.value)

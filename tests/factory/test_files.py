"""Files are whole or absent, values come back equal, and a failing disk is told in one line."""

import builtins
import errno
import os
import shutil
import stat
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory import files
from factory.errors import UserError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=4)


def fail_with(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@settings(max_examples=40)
@given(JSON)
def test_json_comes_back_equal(value):
    assert files.decode_json(files.encode_json(value)) == value


@settings(max_examples=40)
@given(ROWS)
def test_jsonl_comes_back_equal_even_with_odd_line_ends(rows):
    assert files.decode_jsonl(files.encode_jsonl(rows)) == rows


def test_text_that_has_no_utf8_form_survives(tmp_path):
    rows = [{"answer": "half an emoji \ud83d, a line\u2028separator, ünïcode"}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_tensors_come_back_equal_from_views_shared_storage_and_every_usual_dtype(tmp_path):
    states = torch.randn(4, 3, 8)
    tensors = {"a": states[:, 0], "b": states[:, 1].t(), "whole": states, "empty": torch.zeros(0, 8)}
    dtypes = (torch.bfloat16, torch.float16, torch.int64, torch.bool)
    tensors |= {str(dtype): torch.ones(2, dtype=dtype) for dtype in dtypes}
    files.write_safetensors(tmp_path / "sub" / "t.safetensors", tensors)
    loaded = files.read_safetensors(tmp_path / "sub" / "t.safetensors")
    assert list(loaded) == sorted(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_written_files_follow_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        files.write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


def test_digest_ignores_key_order_and_sees_values():
    assert files.digest({"a": 1, "b": [2.5]}) == files.digest({"b": [2.5], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 2})
    with pytest.raises(TypeError):
        files.digest({"a": object()})


@pytest.mark.parametrize("operation", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, operation, code, said):
    path = tmp_path / "results.json"
    files.write_json(path, {"old": True})
    with monkeypatch.context() as patch:
        patch.setattr(builtins if operation == "open" else os, operation, fail_with(code))
        with pytest.raises(UserError) as caught:
            files.write_json(path, {"new": True})
    assert str(path) in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)
    assert files.read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["results.json"]


def test_an_interrupted_write_leaves_no_litter(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(tmp_path / "a.txt", "x")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        files.write_text(tmp_path / "runs" / "a.txt", "x")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        files.write_text(tmp_path / "runs" / "deeper" / "a.txt", "x")


FILL = """
import os, sys
from pathlib import Path
from factory import files
from factory.errors import UserError
folder = Path(sys.argv[1])
files.write_text(folder / "kept.txt", "old")
try:
    files.write_bytes(folder / "kept.txt", bytes(1 << 20))
except UserError as error:
    print(error)
print(sorted(os.listdir(folder)), (folder / "kept.txt").read_text())
"""


def test_a_really_full_disk(tmp_path):
    """In a private mount namespace, on a file system of 64 KiB."""
    unshare = shutil.which("unshare")
    script = 'mount -t tmpfs -o size=64k tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    namespace = [unshare or "unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh"]
    if (
        unshare is None
        or subprocess.run([*namespace, tmp_path, "true", ""], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine grants no mount namespace")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*namespace, tmp_path, sys.executable, FILL]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "the disk is full" in printed and "['kept.txt'] old" in printed


@pytest.mark.parametrize(
    ("read", "content"), [(files.read_json, "{"), (files.read_jsonl, '{"a": 1}\n{"b"'), (files.read_safetensors, "xx")]
)
def test_reading_a_missing_or_torn_file_is_explained(tmp_path, read, content):
    path = tmp_path / "file"
    with pytest.raises(UserError, match="no such file"):
        read(path)
    path.write_text(content)
    with pytest.raises(UserError, match="not a whole"):
        read(path)


@pytest.mark.parametrize("torn", ["", '{"n": 1', '{"n": 1}', "{"])
def test_a_torn_log_line_spoils_only_itself(tmp_path, torn):
    log = tmp_path / "log.jsonl"
    files.append_jsonl(log, {"n": 0})
    with open(log, "a") as file:
        file.write(torn)
    files.append_jsonl(log, {"n": 2})
    assert [row["n"] for row in files.read_log(log) if row["n"] != 1] == [0, 2]


def test_sweep_removes_what_kills_left_and_nothing_else(tmp_path):
    files.write_text(tmp_path / "deep" / "kept.txt", "x")
    (tmp_path / "deep" / ".kept.txt.123.partial").write_text("torn")
    files.remove_temporary(tmp_path)
    assert os.listdir(tmp_path / "deep") == ["kept.txt"]

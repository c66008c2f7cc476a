"""A run directory: whose it is, what it holds, when a stage is done, what a chunk gives back."""

import contextlib
import errno
import os
import shutil

import pytest
import torch
import yaml

from factory import files
from factory.errors import UserError
from factory.run import RunDir
from factory.run.environment import environment


def open_run(root, name="toy", recipe="toy.yaml", text="name: toy\n", **resolved):
    return RunDir.open(root, name, root / recipe, text, {"name": name, **resolved})


def test_a_finished_part_is_not_computed_again_after_a_kill(tmp_path):
    with open_run(tmp_path) as run:
        stage = run.stage("draw", {"seed": 0})
        stage.chunk(0, lambda: {"x": 1})
    with open_run(tmp_path) as run:
        stage = run.stage("draw", {"seed": 0})
        assert stage.missing([0, 1]) == [1] and not stage.done
        assert stage.chunk(0, lambda: pytest.fail("computed twice")) == {"x": 1}


VALUES = [
    {"h": torch.randn(3, 4), "mask": torch.ones(2, dtype=torch.bool)},
    [{"sample": 1, "text": "a\u2028b"}, {"sample": 2, "text": None}],
    [],
    {"mean": 0.1 + 0.2, "nested": {"a": [1, 2]}},
    {},
]


@pytest.mark.parametrize("value", VALUES, ids=["tensors", "rows", "no-rows", "dict", "empty-dict"])
@pytest.mark.parametrize("key", ["plain", 7, "a/b: c", "../escape", "ü" * 300, ""])
def test_chunks_come_back_equal(tmp_path, value, key):
    with open_run(tmp_path) as run:
        stage = run.stage("s", {})
        for loaded in (stage.chunk(key, lambda: value), stage.chunk(key, lambda: pytest.fail("computed twice"))):
            assert type(loaded) is type(value) and len(loaded) == len(value)
            if isinstance(value, dict) and "h" in value:
                assert all(torch.equal(loaded[name], value[name]) for name in value)
            else:
                assert loaded == value
        assert {path.parent for path in stage.path.rglob("*.sha256")} == {stage.path / "chunks"}


def test_odd_keys_do_not_meet(tmp_path):
    keys = ["a b", "a_b", "a/b", "a.json", "a", "a.sha256", "x" * 200, "x" * 201]
    with open_run(tmp_path) as run:
        stage = run.stage("s", {})
        for key in keys:
            stage.chunk(key, lambda k=key: {"key": k})
        assert [stage.chunk(key, dict)["key"] for key in keys] == keys


def test_first_and_resumed_start_go_on_from_the_same_value(tmp_path):
    with open_run(tmp_path) as run:
        first = run.stage("s", {}).chunk("k", lambda: {"b": (1, 2), "a": 1})
        again = run.stage("s", {}).chunk("k", dict)
        assert first == again == {"b": [1, 2], "a": 1} and list(first) == list(again)
        gradient = run.stage("s", {}).chunk("t", lambda: {"z": torch.ones(1, requires_grad=True), "a": torch.ones(1)})
        assert list(gradient) == ["a", "z"] and not gradient["z"].requires_grad


@pytest.mark.parametrize("value", [1, None, (), {"a": torch.ones(1), "b": 1}, {"a": {"b": torch.ones(1)}}])
def test_a_value_without_a_file_format_is_refused(tmp_path, value):
    with open_run(tmp_path) as run, pytest.raises(TypeError):
        run.stage("s", {}).chunk("k", lambda: value)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "one bit": flip,
    "lost": lambda path: path.unlink(),
    "seal emptied": lambda path: os.truncate(path.with_suffix(".sha256"), 0),
    "seal overwritten": lambda path: path.with_suffix(".sha256").write_text(path.name * 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("value", VALUES[:2] + VALUES[3:4], ids=["tensors", "rows", "dict"])
def test_a_damaged_chunk_is_noted_and_computed_again(tmp_path, damage, value):
    with open_run(tmp_path) as run:
        stage = run.stage("s", {})
        stage.chunk("k", lambda: value)
        (path,) = (path for path in (stage.path / "chunks").iterdir() if path.suffix != ".sha256")
        original = path.read_bytes()
        DAMAGES[damage](path)
        calls = []
        for _ in range(2):
            stage.chunk("k", lambda: calls.append(1) or value)
        assert len(calls) == 1 and path.read_bytes() == original
        damaged = [event for event in run.events() if event["event"] == "chunk_damaged"]
        assert [(event["stage"], event["chunk"]) for event in damaged] == [("s", "k")]


def test_a_half_discarded_stage_is_never_taken_for_a_whole_one(tmp_path, monkeypatch):
    def interrupted(folder):
        (folder / "chunks" / "k.json").unlink()
        raise KeyboardInterrupt

    with open_run(tmp_path) as run:
        stage = run.stage("s", {"seed": 0})
        stage.chunk("k", dict)
        stage.finish({})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shutil, "rmtree", interrupted)
            run.stage("s", {"seed": 1})
    with open_run(tmp_path) as run:
        assert not run.stage("s", {"seed": 0}).done


def test_an_empty_summary_is_still_done(tmp_path):
    with open_run(tmp_path) as run:
        run.stage("s", {}).finish({})
        assert run.stage("s", {}).done


def test_the_folder_tells_what_ran(tmp_path):
    with open_run(tmp_path, text="name: toy  # as given\n", seed=3) as run:
        assert run.path == tmp_path / "toy"
        assert (run.path / "recipe.yaml").read_text() == "name: toy  # as given\n"
        assert yaml.safe_load((run.path / "resolved.yaml").read_text()) == {"name": "toy", "seed": 3}
        assert files.read_json(run.path / "environment.json")["libraries"]["torch"] == torch.__version__
        run.event("note", n=1)
        assert [event["event"] for event in run.events()] == ["run_opened", "note"]
        assert run.events()[-1]["n"] == 1 and run.events()[-1]["time"].endswith("+00:00")


def test_environment_is_plain_json_and_stable():
    assert files.decode_json(files.encode_json(environment())) == environment()


def test_another_recipe_is_refused(tmp_path):
    with open_run(tmp_path) as run:
        run.stage("collect", {}).chunk("0", lambda: [{"a": 1}])
    with pytest.raises(UserError, match=r"another recipe, .*/toy\.yaml.*name=OTHER"):
        open_run(tmp_path, recipe="other.yaml", text="name: toy\nseed: 1\n")
    assert (tmp_path / "toy/recipe.yaml").read_text() == "name: toy\n"
    open_run(tmp_path, text="name: toy\nseed: 1\n").close()


def test_a_renamed_recipe_and_a_moved_project_keep_their_run(tmp_path):
    (tmp_path / "a").mkdir()
    open_run(tmp_path / "a").close()
    open_run(tmp_path / "a", recipe="renamed.yaml").close()
    (tmp_path / "a").rename(tmp_path / "b")
    open_run(tmp_path / "b", recipe="renamed.yaml", text="edited: true\n").close()


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no run"):
        open_run(tmp_path)
    assert os.listdir(tmp_path / "toy") == ["thesis.tex"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", ".hidden", "a\0b"])
def test_names_stay_inside_the_root(tmp_path, name):
    with pytest.raises(UserError, match="plain folder name"):
        open_run(tmp_path, name=name)


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_an_unwritable_folder_is_said_on_opening_and_leaves_no_lock(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(UserError, match=r"toy/run\.json: cannot write"):
            open_run(tmp_path)
    open_run(tmp_path).close()


def test_a_file_in_the_place_of_the_run_is_said(tmp_path):
    (tmp_path / "toy").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        open_run(tmp_path)


def test_a_disk_that_fills_up_keeps_what_was_finished(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_run(tmp_path) as run:
        stage = run.stage("s", {})
        stage.chunk(0, lambda: {"x": 0})
        with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
            patch.setattr(os, "fsync", refuse)
            stage.chunk(1, lambda: {"x": 1})
        assert stage.missing([0, 1]) == [1]


@pytest.mark.parametrize("where", ["run.json", ".lock", "draw/inputs.json", "draw/chunks/0.json", "seal"])
def test_a_pipe_in_a_files_place_ends_in_a_line_or_a_computation_and_never_hangs(where, tmp_path):
    with open_run(tmp_path) as run:
        run.stage("draw", {"seed": 0}).chunk(0, lambda: {"x": 1})
    chunks = sorted((tmp_path / "toy" / "draw" / "chunks").iterdir())
    data = next(path for path in chunks if path.suffix == ".json")
    seal = next(path for path in chunks if path != data)
    path = {"draw/chunks/0.json": data, "seal": seal}.get(where, tmp_path / "toy" / where)
    path.unlink()
    os.mkfifo(path)
    with contextlib.suppress(UserError), open_run(tmp_path) as run:
        assert run.stage("draw", {"seed": 0}).chunk(0, lambda: {"x": 2}) in ({"x": 1}, {"x": 2})

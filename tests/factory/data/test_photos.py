"""A folder of labelled photos."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from factory.corpus.photos import PhotoFolder
from factory.data import pictures
from factory.data.prompt import Role
from factory.errors import UserError


def photo(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def told(source: PhotoFolder) -> list[tuple[str, str]]:
    return [(sample.id, sample.prompt.segments[-1].text) for sample in (source[i] for i in range(len(source)))]


def test_a_text_file_beside_a_picture_is_its_label(tmp_path):
    photo(tmp_path / "b.png", "blue").with_suffix(".txt").write_text("blue\n")
    photo(tmp_path / "deep" / "a.jpg", "red").with_suffix(".txt").write_text("dark red")
    (tmp_path / "notes.txt").write_text("no picture")
    source = PhotoFolder(tmp_path, "What color?")
    assert told(source) == [("b.png", "blue"), ("deep/a.jpg", "dark red")]
    image, question, answer = source[0].prompt.segments
    assert (image.role, question.role, answer.role) == (
        Role.IMAGE,
        Role.QUESTION,
        Role.ANSWER,
    ) and question.text == "What color?"
    assert image.image.getpixel((0, 0)) == (0, 0, 255)
    assert list(source.lengths(100)) == [11 + 4 + 100, 11 + 8 + 100] and source.name(1) == "deep/a.jpg"


def test_else_the_folders_name_is_the_label(tmp_path):
    photo(tmp_path / "red_fox" / "1.png"), photo(tmp_path / "cat" / "2.JPG")
    assert told(PhotoFolder(tmp_path, "?")) == [("cat/2.JPG", "cat"), ("red_fox/1.png", "red fox")]


def test_pictures_without_a_label_and_damaged_ones_are_counted_and_named(tmp_path):
    photo(tmp_path / "cat" / "1.png"), photo(tmp_path / "lost.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no picture")
    with pytest.raises(
        UserError,
        match=(
            r"2 of 3 samples cannot be used.*2\.png: is no picture.*lost\.png: lies in no folder that names"
            r" it.*max_skipped=0"
        ),
    ):
        PhotoFolder(tmp_path, "?")
    kept = PhotoFolder(tmp_path, "?", max_skipped=0.7)
    assert told(kept) == [("cat/1.png", "cat")] and kept.audit.unusable == 2
    photo(tmp_path / "a.png").with_suffix(".txt").write_text(" ")
    with pytest.raises(UserError, match=r"4 of 4 .*has no label in"):
        PhotoFolder(tmp_path, "?", max_skipped=0.9)
    with pytest.raises(UserError, match="not found"):
        PhotoFolder(tmp_path / "nowhere", "?")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no sample"):
        PhotoFolder(tmp_path / "empty", "?", max_skipped=1.0)


def test_a_subset_is_drawn_by_seed_and_a_changed_label_is_another_set(tmp_path):
    for i in range(10):
        photo(tmp_path / f"{i}.png").with_suffix(".txt").write_text(str(i))
    some = [told(PhotoFolder(tmp_path, "?", take=4, seed=seed)) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2] and len(some[0]) == 4
    before = PhotoFolder(tmp_path, "?").audit.digest
    (tmp_path / "3.txt").write_text("three")
    assert PhotoFolder(tmp_path, "?").audit.digest != before


def test_what_one_rank_has_looked_at_another_takes_unless_something_changed(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    for i in range(4):
        photo(folder / "cat" / f"{i}.png")
    (folder / "cat" / "2.png").write_bytes(b"no picture")
    looked, real = [], pictures.size
    monkeypatch.setattr(pictures, "size", lambda path: looked.append(path) or real(path))
    opened = lambda: PhotoFolder(folder, "?", 0.5, cache=tmp_path / "cache")
    first, second = opened(), opened()
    assert len(looked) == 4 and told(first) == told(second) and first.audit == second.audit
    assert second.audit.unusable == 1 and "2.png: is no picture" in second.audit.named[0]
    photo(folder / "cat" / "2.png")
    assert len(opened()) == 4 and len(looked) == 8
    (kept,) = (tmp_path / "cache").glob("*.json")
    whole = kept.read_bytes()
    for content in (b"", b"{}", b"[]", whole[:-9], whole.replace(b"3", b"2"), whole.replace(b"[", b"{", 1)):
        kept.write_bytes(content)
        assert told(opened()) == [(f"cat/{i}.png", "cat") for i in range(4)], content
    kept.unlink()
    (kept / "inside").mkdir(parents=True)
    assert len(opened()) == 4 and kept.is_file()

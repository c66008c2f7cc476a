"""Parquet files as the hub has them: parts, damaged files, pictures one by one; and VLMs Are Biased, which is one."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from eval_suite import parquet
from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_files import biased_rows, blob, parquet_file, vlms_are_biased

pytestmark = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def test_pictures_are_read_from_the_row_they_stand_in(tmp_path):
    rows = [{"image": blob(i), "other": blob(i + 1), "text": str(i)} for i in range(5)]
    path = parquet_file(tmp_path / "x.parquet", rows, group=2)
    read = parquet.rows_of(path, leave=("image", "other"))
    assert [(row.place, row.values) for row in read] == [(f"{path}:{i + 1}", {"text": str(i)}) for i in range(5)]
    shown = [parquet.InRow(path, number)().getpixel((0, 0)) for number in (5, 1, 3, 2, 4)]
    assert shown == [(0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 128, 0), (255, 255, 255)]  # black, red, blue, …
    assert parquet.InRow(path, 1, "other")().getpixel((0, 0)) == (0, 128, 0)


@pytest.mark.parametrize("held", [None, {"bytes": None, "path": "x.png"}, {"bytes": b"none", "path": "x.png"}])
def test_a_row_without_a_picture_is_told_when_it_is_asked(tmp_path, held):
    rows = [{"image": blob(0)}, {"image": held}]
    path = parquet_file(tmp_path / "x.parquet", rows)
    assert parquet.InRow(path, 1)().size == (40, 30)
    with pytest.raises(OSError, match=r"row 2 of .*x\.parquet"):
        parquet.InRow(path, 2)()
    with pytest.raises(OSError, match="has no row 3"):
        parquet.InRow(path, 3)()
    path.write_bytes(b"PAR1")
    with pytest.raises(OSError, match="cannot be read as Parquet"):
        parquet.InRow(path, 1)()


def asked(root, **more):
    return read_node("benchmark", {"type": "vlms_are_biased", "root": str(root), **more}).make().questions()


def test_vlms_are_biased_is_asked_as_released(tmp_path):
    vlms_are_biased(tmp_path)
    items = asked(tmp_path)
    assert [item.id for item in items] == [row["ID"] for row in biased_rows(8)]
    assert [item.unit for item in items] == ["cat_0"] * 4 + ["cat_1"] * 4
    assert [item.tasks for item in items] == [("Animals",)] * 4 + [("Logos",)] * 4
    prompt = items[4].prompt()
    assert prompt.messages()[0]["content"][-1]["text"] == biased_rows(1)[0]["prompt"]
    assert [picture.getpixel((0, 0)) for picture in prompt.images] == [(0, 0, 0)]
    assert len(asked(tmp_path, subset="main")) == 8


@pytest.mark.parametrize(
    "change, said",
    [
        ({"ID": "cat_0_px384_Q1"}, "ID cat_0_px384_Q1 stands in"),
        ({"ground_truth": None}, "'ground_truth' should be a name or a number, and is None"),
        ({"expected_bias": ""}, "'expected_bias' should be a name or a number"),
        ({"prompt": " "}, "'prompt' should be a text"),
        ({"topic": None}, "'topic' should be a text, and is None"),
    ],
)
def test_a_damaged_row_of_vlms_are_biased_is_told_with_its_place(tmp_path, change, said):
    rows = biased_rows(3)
    rows[1] |= change
    parquet_file(tmp_path / "main-0.parquet", rows)
    with pytest.raises(UserError, match=f"main-0.parquet:2: .*{said}"):
        asked(tmp_path)


def test_files_of_vlms_are_biased_that_are_not_there_are_told_with_where_they_are_had(tmp_path):
    with pytest.raises(UserError, match="anvo25/vlms-are-biased"):
        asked(tmp_path / "none")
    vlms_are_biased(tmp_path)
    with pytest.raises(UserError, match=r"has no original-\*\.parquet.*anvo25/vlms-are-biased"):
        asked(tmp_path, subset="original")
    with pytest.raises(UserError, match="no 'expected_bias'"):
        rows = [{k: v for k, v in row.items() if k != "expected_bias"} for row in biased_rows()]
        parquet_file(tmp_path / "data/original-0.parquet", rows)
        asked(tmp_path, subset="original")
    (tmp_path / "data/main-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="main-00000-of-00002.parquet: is missing beside main-00001"):
        asked(tmp_path)

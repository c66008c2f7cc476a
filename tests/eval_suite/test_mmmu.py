"""MMMU: its rows are checked, and its pictures stand where the text names them or, where a template wants it, first."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from factory.cli import main
from factory.errors import UserError
from factory.registry import lookup
from tests.eval_suite.released_files import mmmu_rows, parquet_file
from tests.tiny import saved_tiny

PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def refused(root, **more):
    cls = lookup("benchmark", "mmmu")
    with pytest.raises(UserError) as told:
        cls(cls.Params(root=str(root), **more)).questions()
    assert "\n" not in str(told.value)
    return str(told.value)


def mmmu(row, **changes):
    bench = lookup("benchmark", "mmmu")(lookup("benchmark", "mmmu").Params(root="."))
    return bench.item(Path("Art/validation-0.parquet"), {**mmmu_rows()[row], **changes}, 7)


@pytest.mark.parametrize(
    ("row", "change", "told"),
    [
        (1, {"answer": "[4, 6)"}, "'answer' should be a list of texts, and is '[4, 6)'"),
        (1, {"answer": "[[4], 6]"}, "'answer' should be a list of texts"),
        (0, {"answer": "D"}, "'answer' should be A or B or C, and is 'D'"),
        (0, {"answer": "b"}, "'answer' should be A or B or C, and is 'b'"),
        (0, {"options": "['$6', '$7'"}, "'options' should be a list of texts, and is"),
        (0, {"options": "[]"}, "'options' should be a list of texts"),
        (0, {"question": ""}, "'question' should be a text"),
        (0, {"question_type": "essay"}, "'question_type' should be multiple-choice or open"),
        (0, {"id": None}, "'id' should be a name or a number"),
    ],
)
def test_mmmu_rows_are_checked(row, change, told):
    with pytest.raises(UserError) as error:
        mmmu(row, **change)
    assert told in str(error.value) and str(error.value).startswith("Art/validation-0.parquet:7: ")


def test_mmmu_pictures_first_keep_their_names_in_the_text():
    prompt = mmmu(2).pictures_first()
    assert [s.text if s.image is None else "IMAGE" for s in prompt.segments] == [
        "IMAGE",
        "IMAGE",
        "Which one is it?",
        "(A) <image 1>\n(B) <image 2>\n\nAnswer with the option's letter from the given choices directly.",
    ]


@PARQUET
def test_mmmu_files_are_checked(tmp_path):
    path = tmp_path / "Accounting" / "validation-0.parquet"
    parquet_file(path, mmmu_rows())
    assert "has no Acounting/validation" in (line := refused(tmp_path, subjects=["Acounting"]))
    assert "Did you mean Accounting?" in line
    parquet_file(tmp_path / "Art" / "validation-0.parquet", mmmu_rows()[:1])
    assert "question validation_Accounting_1 occurs 2 times" in refused(tmp_path)
    (tmp_path / "Art" / "validation-0.parquet").rename(tmp_path / "Art" / "validation-00001-of-00002.parquet")
    assert "Art/validation-00000-of-00002.parquet: is missing beside validation-00001-of" in refused(tmp_path)
    (tmp_path / "Art" / "validation-00001-of-00002.parquet").unlink()
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path}: cannot be read as Parquet" in refused(tmp_path)


# The template of llava-hf/llava-1.5: pictures of a turn before its texts.
PICTURES_FIRST = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@PARQUET
def test_mmmu_is_asked_of_a_model_that_is_written_for_pictures_first(tmp_path, capsys):
    for i, row in enumerate(rows := mmmu_rows()):  # pictures large enough for the tiny model, text before each
        Image.new("RGB", (48, 48), ("red", "green", "blue")[i]).save(out := io.BytesIO(), "PNG")
        for k in (1, 2):
            row[f"image_{k}"] = row[f"image_{k}"] and {"bytes": out.getvalue(), "path": ""}
    parquet_file(tmp_path / "mmmu" / "Accounting" / "validation-0.parquet", rows)
    model = saved_tiny(tmp_path / "model")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: {{path: {model}}}\nbenchmarks: [{{type: mmmu, root: {tmp_path / 'mmmu'}}}]\n"
        f"run: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    assert main(["show", str(recipe)]) == 0
    assert "protocol mmmu/validation/llava-1.5, scorer mmmu/3" in capsys.readouterr().out
    (model / "chat_template.jinja").write_text(PICTURES_FIRST)
    assert main([str(recipe)]) == 0
    rows = json.loads((tmp_path / "runs/r/results.json").read_text())["rows"]
    assert {row["protocol"] for row in rows} == {"mmmu/validation/llava-1.5/pictures-first"} and rows[0]["n"] == 3
    line = json.loads((tmp_path / "runs/r/predictions/mmmu/none.jsonl").read_text().splitlines()[0])
    assert line["prompt"].startswith("USER: <image>\nSee <image 1>. Which?")

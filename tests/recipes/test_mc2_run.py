"""recipes/amps_llava13b.yaml on a tiny model, a cut of MC² and generated pictures, from start to report; and what stops
it in one line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.cli import main
from tests.mc2 import cut
from tests.tiny import saved_tiny
from tests.tiny_families import family_view

RECIPE = "recipes/amps_llava13b.yaml"
QUICK = [
    "evaluate.controls=[]",
    "model.dtype=float32",
    "evaluate.strengths=[1]",
    "evaluate.max_new_tokens=2",
    "report.plots=false",
]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder, view = tmp_path_factory.mktemp("qwen"), family_view("qwen2_5_vl")
    view.model.save_pretrained(folder)
    view.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return cut(tmp_path_factory.mktemp("coco"))


def start(model: Path, coco: Path, root: Path, *more: str) -> int:
    return main([RECIPE, f"model.path={model}", f"data.images={coco}", f"run.root={root}", *QUICK, *more])


def refused(capsys, *argv: object) -> str:
    assert main([str(a) for a in argv]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def results_of(root: Path, name: str) -> dict:
    assert (root / name / "report" / "index.html").is_file()
    return json.loads((root / name / "results.json").read_text())


def test_the_recipe_runs_on_a_tiny_llava(llava, coco, tmp_path, capsys):
    assert start(llava, coco, tmp_path, "--limit", "2") == 0
    results = results_of(tmp_path, "amps_llava13b-limit2")
    assert {r["method"] for r in results["rows"]} == {
        "none",
        "instruction",
        "cot",
        "few_shot",
        "static",
        "l2s",
        "amps",
        "dose",
        "oracle:l2s",
    }
    assert {(r["protocol"], r["n"]) for r in results["rows"] if r["task"] == "all" and r["split"] == "test"} == {
        ("mc2/both_orders", 2)
    }
    assert results["run"]["model"]["card"] is None and results["run"]["model"]["layer"] == 1
    assert "not llava-1.5-13b" in results["run"]["notes"][0]
    assert "Published" not in capsys.readouterr().out


def test_it_runs_on_a_tiny_qwen_and_warns_of_the_papers_protocol(qwen, coco, tmp_path, capsys):
    few = ["steering=[none, {type: l2s, net: {epochs: 1}}]", "data.protocol=paper", "data.scoring=order1"]
    assert start(qwen, coco, tmp_path, "--limit", "3", *few) == 0
    results = results_of(tmp_path, "amps_llava13b-limit3")
    assert any("LEAKAGE" in note for note in results["run"]["notes"])
    assert {r["protocol"] for r in results["rows"]} == {"mc2/order1/scored-on-training-samples"}
    assert (
        "LEAKAGE" in capsys.readouterr().out
        and "LEAKAGE" in (tmp_path / "amps_llava13b-limit3" / "report" / "index.html").read_text()
    )


def test_a_cut_picture_is_skipped_counted_and_named(llava, tmp_path, capsys):
    coco = cut(tmp_path / "coco")
    picture = next((coco / "train2014").glob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:200])
    few = ["steering=[none]", "diagnostic=null", "evaluate.max_skipped=0.2", "evaluate.directions=[vision]"]
    assert start(llava, coco, tmp_path, *few) == 0
    (skipped,) = results_of(tmp_path, "amps_llava13b")["run"]["skipped"]
    assert picture.name in skipped["reason"] and picture.stem[-12:] in skipped["sample"]
    assert "1 of " in refused(
        capsys,
        RECIPE,
        f"model.path={llava}",
        f"data.images={coco}",
        f"run.root={tmp_path}",
        "name=strict",
        "evaluate.max_skipped=0",
        *QUICK,
    )


def test_what_is_missing_stops_it_in_one_line_before_weights_are_read(llava, coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("factory.run.pipeline.load", lambda spec: pytest.fail("weights were read"))
    model, images, root = f"model.path={llava}", f"data.images={coco}", f"run.root={tmp_path}"
    assert "Did you mean scoring?" in refused(capsys, RECIPE, "data.scorin=order1")
    assert "/nowhere: not found" in refused(capsys, RECIPE, "model.path=/nowhere", images, root)
    assert "gone.json': no such file" in refused(capsys, RECIPE, model, images, root, "data.file=gone.json")
    assert "layer 14 is out of range: the model has decoder blocks 0 to 2" in refused(
        capsys, RECIPE, model, images, root, "collect.layer=14"
    )
    said = refused(capsys, RECIPE, model, root, f"data.file={coco / 'evaluate_final.json'}", f"data.images={tmp_path}")
    assert f"0 of 48 found in {tmp_path}" in said and "data.images=FOLDER" in said


def test_a_gpu_too_small_for_the_weights_stops_it(llava, coco, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("factory.run.pipeline.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "factory.run.pipeline.too_small", lambda spec, needed: f"cuda has 1 byte, the run needs about {needed}"
    )
    said = refused(
        capsys, RECIPE, f"model.path={llava}", f"data.images={coco}", f"run.root={tmp_path}", "model.device=cpu"
    )
    assert "cuda has 1 byte" in said and "model.quantize=4bit" in said


def test_pictures_that_come_later_are_taken_at_the_next_start(llava, coco, tmp_path, capsys):
    few = ["steering=[none]", "diagnostic=null", "evaluate.directions=[vision]", "--limit", "1"]
    empty = tmp_path / "pictures"
    empty.mkdir()
    argv = [
        RECIPE,
        f"model.path={llava}",
        f"data.images={empty}",
        f"data.file={coco / 'evaluate_final.json'}",
        f"run.root={tmp_path}",
        *QUICK,
        *few,
    ]
    refused(capsys, *argv)
    for name in ("train2014", "val2014"):
        (empty / name).symlink_to(coco / name)
    assert main(argv) == 0


def test_a_forced_choice_is_the_likelier_letter(llava, coco, tmp_path):
    few = [
        "steering=[none, {type: static}]",
        "diagnostic=null",
        "evaluate.directions=[vision]",
        "data.scoring=loglik_forced",
    ]
    assert start(llava, coco, tmp_path, *few, "--limit", "4") == 0
    rows = [r for r in results_of(tmp_path, "amps_llava13b-limit4")["rows"] if r["task"] == "all"]
    assert {r["protocol"] for r in rows} == {"mc2/loglik_forced"} and {r["method"] for r in rows} == {"none", "static"}
    assert all(r["metrics"]["follow"] + r["metrics"]["compete"] == 1 and r["parse_failure_rate"] == 0 for r in rows)

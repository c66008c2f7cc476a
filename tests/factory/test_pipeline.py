"""A whole run on a small random model: results, resuming, and mistakes that end in one line and exit code 2."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from factory.cli import main
from factory.recipe import load
from factory.run import pipeline, rundir
from factory.run.methods import comparison
from factory.steer import artefact
from tests.tiny import interrupts, saved_tiny, tiny_view

RECIPE = """\
name: whole
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 2, dev: 1, test: 2}}}}
diagnostic: {{type: mcr, draws: 1}}
collect: {{batch_size: 8}}
steering: [
  none, instruction, static, {{type: l2s, net: {{epochs: 1}}}},
  {{type: amps, betas: [0.0, 0.5], net: {{epochs: 1}}}},
  {{type: dose, doses: [0.5, 1], of: {{type: l2s, net: {{epochs: 1}}}}}}
]
evaluate: {{controls: [], strengths: [0.5, 1], batch_size: 8, max_new_tokens: 2}}
run: {{root: {root}}}
report: {{plots: false}}
"""
HOLES = '''
from eval_suite.benchmarks.scenes import Scenes, ScenesParams
from factory.registry import register
from dataclasses import replace


class HolesParams(ScenesParams):
    bad: int = 1


def broken():
    raise OSError("cannot identify image file")


@register("benchmark", "holes")
class Holes(Scenes):
    """Scenes of which some cannot be used."""

    Params = HolesParams

    def samples(self, split):
        good = list(super().samples(split))
        spoilt = enumerate(good[: self.params.bad])
        bad = [replace(s, context=" ") if i % 2 else replace(s, load_image=broken) for i, s in spoilt]
        return bad + good[self.params.bad :]
'''

LETTERS = '''
from statistics import mean

from factory.diagnose import Diagnostic
from factory.registry import register
from factory.diagnose.summary import Figure, Finding, Summary, Table


@register("diagnostic", "letters")
class Letters(Diagnostic):
    """How long the questions are: a diagnostic that asks nothing of the model."""

    splits = ("dev", "test")

    def on_samples(self, bench, samples):
        place = {"metric": "letters", "layer": None, "head": None}
        return [{"sample": s.id, "task": s.task, **place, "value": float(len(s.question))} for s in samples]

    def summary(self, rows):
        by_split = tuple((split, mean(r["value"] for r in rows if r["split"] == split)) for split in self.splits)
        finding = Finding("Questions have letters.", holds=all(v > 0 for _, v in by_split), values=dict(by_split))
        drawn = Figure("letters", "Letters", "by split", lambda figure: figure.subplots().bar(*zip(*by_split)))
        table = Table("letters", "Letters", ("split", "mean"), by_split)
        return Summary("Length of questions", (finding,), (table,), (drawn,))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A finished run, and its recipe."""
    home = tmp_path_factory.mktemp("home")
    recipe = home / "whole.yaml"
    recipe.write_text(RECIPE.format(folder=folder, root=home / "runs"))
    return pipeline.run(load(recipe)), recipe


def test_results_have_every_method_direction_task_and_split(whole):
    results = json.loads((whole[0] / "results.json").read_text())
    assert results["schema"] == 1
    found = {(r["split"], r["direction"], r["method"]) for r in results["rows"] if r["task"] == "all"}
    methods = ("none", "instruction", "static", "l2s", "amps", "dose", "oracle:l2s")
    assert found == {(s, d, m) for s in ("dev", "test") for d in ("vision", "text") for m in methods}
    tasks = {r["task"] for r in results["rows"]}
    assert len(tasks) == 9 and "all" in tasks
    for row in results["rows"]:
        assert sum(row["metrics"].values()) == pytest.approx(1) and row["n"] == (
            16 if row["split"] == "test" else 8
        ) / (1 if row["task"] == "all" else 8)
        assert row["protocol"] == "scenes/open_ended" and row["scorer"] and row["prompt_hash"]
    chosen = [
        r
        for r in results["rows"]
        if r["chosen"] and r["split"] == "test" and r["task"] == "all" and r["strength"] is not None
    ]
    assert len(chosen) == 2 * 4


def test_a_run_leaves_a_report_and_artefacts_that_load(whole):
    assert (whole[0] / "report" / "index.html").stat().st_size > 10_000
    assert 'href="samples.html"' in (whole[0] / "report" / "index.html").read_text()
    for path in (whole[0] / "predictions" / "scenes").glob("*.jsonl"):  # each prompt holds its own sample's texts
        for p in map(json.loads, path.read_text().splitlines()):
            assert all(p["question"] in text and p["context"] in text for text in p["asked"]), path
    for name in ("l2s-vision", "amps-text", "dose-vision", "static-text"):
        assert artefact.load(whole[0] / "artefacts" / name, tiny_view()).where.layer == 1


def test_a_second_start_does_no_work_and_looks_the_model_up_once(whole, folder, monkeypatch):
    before = (whole[0] / "results.json").read_bytes()

    def worked(*args, **kwargs):
        raise AssertionError("a finished stage was computed again")

    for name in ("sweep", "cells", "ask", "looks"):
        monkeypatch.setattr(comparison, name, worked)
    opened, opens = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how, **keys: opened.append(path) or opens(path, *how, **keys))
    with rundir.watched_stores(worked):
        assert pipeline.run(load(whole[1])) == whole[0]
    assert (whole[0] / "results.json").read_bytes() == before
    assert opened.count(folder / "model.safetensors") == 1, "a header was read again"


@pytest.mark.parametrize("stop", [1, 7, 12, 20])
def test_an_interrupted_run_ends_with_the_same_results(whole, tmp_path, stop):
    recipe = load(whole[1], [f"run.root={tmp_path}"])
    with rundir.watched_stores(interrupts(stop)), pytest.raises(KeyboardInterrupt):
        pipeline.run(recipe)
    path = pipeline.run(recipe)
    assert (path / "results.json").read_bytes() == (whole[0] / "results.json").read_bytes()


def test_a_changed_recipe_leaves_no_artefact_of_the_old_one(whole, tmp_path):
    for strength in (0.5, 2):
        recipe = load(whole[1], [f"run.root={tmp_path}", "steering=[none, static]", f"evaluate.strengths=[{strength}]"])
        saved = pipeline.run(recipe, limit=2) / "artefacts" / "static-vision"
        assert artefact.load(saved, tiny_view()).strength == strength


def test_a_limit_has_a_folder_of_its_own(whole, tmp_path):
    path = pipeline.run(load(whole[1], [f"run.root={tmp_path}", "steering=[none]"]), limit=3)
    rows = json.loads((path / "results.json").read_text())["rows"]
    assert path.name == "whole-limit3" and {r["n"] for r in rows if r["task"] == "all"} == {3}


def refused(capsys, *argv: str) -> str:
    """The one line that a mistake is told in."""
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluate.strength=[1]", "Did you mean strengths?"),
        ("steering=[none, ampz]", "amps"),
        ("evaluate.batch_size=many", "batch_size"),
        ("evaluate.strengths=[1, strong]", "strengths"),
        ("evaluate.strengths=[.nan]", "strengths"),
        ("model.path=/nowhere/at/all", "not found"),
        ("model.layer=9", "blocks 0 to 2"),
        ("model.device=cuda:7", "not on this machine"),
    ],
)
def test_bad_input_is_told_in_one_line(whole, tmp_path, capsys, override, told):
    assert told in refused(capsys, whole[1], override, f"run.root={tmp_path}")


def test_damaged_weights_are_told_before_anything_runs(whole, folder, tmp_path, capsys):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[:-100] if file.suffix == ".safetensors" else file.read_bytes())
    assert "damaged or cut short" in refused(capsys, whole[1], f"model.path={copy}", f"run.root={tmp_path}")
    assert not (tmp_path / "whole").exists()


def test_a_run_folder_that_cannot_be_written_is_told(whole, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(capsys, whole[1], f"run.root={tmp_path / 'file'}")


def test_a_full_disk_is_told_and_the_run_goes_on_later(whole, tmp_path, capsys, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 12:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "space" in refused(capsys, whole[1], f"run.root={tmp_path}").lower()
    assert main([str(whole[1]), f"run.root={tmp_path}"]) == 0
    assert (tmp_path / "whole" / "results.json").read_bytes() == (whole[0] / "results.json").read_bytes()


def test_bad_samples_are_skipped_counted_and_named(whole, tmp_path, capsys):
    plugin = tmp_path / "holes.py"
    plugin.write_text(HOLES)
    few = [
        "data={type: holes, scoring: open_ended, bad: 2, per_task: {train: 2, dev: 2, test: 2}}",
        f"plugins=[{plugin}]",
        f"run.root={tmp_path}",
        "steering=[none]",
    ]
    assert "more than evaluate.max_skipped=0.05" in refused(capsys, whole[1], *few)
    assert main([str(whole[1]), *few, "evaluate.max_skipped=0.2"]) == 0
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert {(s["split"], s["reason"].split(":")[0]) for s in results["run"]["skipped"] if s["split"] == "test"} == {
        ("test", "its image cannot be read"),
        ("test", "its context is empty"),
    }
    assert {r["n"] for r in results["rows"] if r["task"] == "all"} == {14}
    assert results["run"]["skipped"][0]["sample"] in (Path(tmp_path) / "whole" / "report" / "index.html").read_text()


def test_a_further_diagnostic_is_a_stage_with_its_own_section(folder, tmp_path, capsys):
    plugin, recipe = tmp_path / "letters.py", tmp_path / "letters.yaml"
    plugin.write_text(LETTERS)
    recipe.write_text(
        f"name: letters\nplugins: [{plugin}]\nmodel: {{path: {folder}, layer: 1}}\ndata: {{type: scenes, scoring:"
        " open_ended, per_task: {train: 1, dev: 1, test: 1}}\ndiagnostics: [letters]\nsteering: [none]\nevaluate:"
        f" {{controls: [], max_new_tokens: 2}}\nrun: {{root: {tmp_path / 'runs'}}}\n"
    )
    run = pipeline.run(load(recipe))
    said = json.loads((run / "results.json").read_text())["diagnostics"]["letters"]
    assert said["findings"][0]["holds"] is True and said["findings"][0]["values"]["test"] > 10
    page = (run / "report" / "index.html").read_text()
    assert "Length of questions" in page and "<b>holds</b>: Questions have letters." in page
    assert (run / "report" / "figures" / "letters-letters.png").stat().st_size > 1000
    assert (run / "report" / "letters-letters.csv").read_text().splitlines()[0] == "split,mean"
    assert "holds: Questions have letters." in capsys.readouterr().out
    again = files_of(run / "diagnose-letters")
    pipeline.run(load(recipe))
    assert files_of(run / "diagnose-letters") == again


def test_the_diagnostic_tells_its_findings_beside_those_of_the_diagnostics(folder, tmp_path, capsys):
    recipe = tmp_path / "told.yaml"
    recipe.write_text(
        f"name: told\nmodel: {{path: {folder}, layer: 1}}\n"
        "data: {type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}\n"
        "diagnostic: {type: mcr, draws: 1, repeats: 2}\ndiagnostics: [{type: mcr, draws: 1}, lmar]\n"
        f"steering: [none]\nevaluate: {{controls: [], max_new_tokens: 2}}\nrun: {{root: {tmp_path / 'runs'}}}\n"
    )
    run = pipeline.run(load(recipe))
    told = json.loads((run / "results.json").read_text())["diagnostics"]
    assert set(told) == {"diagnostic-mcr", "mcr", "lmar"}
    assert not told["mcr"]["findings"], "the diagnosis of one prompt, once, has nothing to say beside its figures"
    shifts, retests = told["diagnostic-mcr"]["findings"][:3], told["diagnostic-mcr"]["findings"][3:]
    assert all(f["values"]["samples"] == 8 and 0 < f["values"]["p_holm"] <= 1 for f in shifts)
    assert len(retests) == 3 and all(f["values"]["runs"] == 2 for f in retests), "one for each prompt"
    assert "R_V is higher under the vision instruction" in capsys.readouterr().out
    assert (run / "report" / "figures" / "diagnostic-mcr-retest.png").stat().st_size > 1000


def files_of(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_error_budget_counts_from_the_model_itself_whatever_the_recipe_calls_it(whole, tmp_path):
    few = ["data.per_task={train: 1, dev: 1, test: 1}", "evaluate.directions=[text]"]
    choices = []
    for name, methods in (
        ("named", "[{type: none, as: baseline}, static]"),
        ("absent", "[static]"),
        ("usual", "[none, static]"),
    ):
        path = pipeline.run(load(whole[1], [f"run.root={tmp_path / name}", f"steering={methods}", *few]))
        results = json.loads((path / "results.json").read_text())
        assert not any("unsteered" in row["method"] for row in results["rows"])
        choices.append(results["run"]["choices"])
    assert choices[0] == choices[1] == choices[2] and choices[0]

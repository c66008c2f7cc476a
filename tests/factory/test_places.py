"""A mistake in a recipe's value that shows only later is told with the value's line, by a plan as by a run."""

from __future__ import annotations

import json

import pytest

from factory.blame import blaming, wrong
from factory.cli import HELP, find_recipe, main
from factory.errors import UserError
from factory.recipe import load, loads
from factory.run.rundir import RunDir

RECIPE = """\
name: placed
model:
  zoo: tiny
  layer: 1
data:
  type: scenes
  per_task: {train: 1, dev: 1, test: 1}
diagnostic: {type: mcr, draws: 1}
steering:
- none
- type: amps
  net: {epochs: 1}
"""
TUNE = "name: placed\nmodel: {zoo: tiny}\ntune:\n  tuner: lora\n  steps: 1\n  data:\n    lessons: scenes\n    take: 8\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(old, new, text=RECIPE):
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, new))
        return "mine.yaml"

    return write


def refused(command, path, capsys, *overrides):
    """What a command that is refused says, without the word before it."""
    assert main([command, path, *overrides]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    return said.removeprefix("error: ").splitlines()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("zoo: tiny", "zoo: tinny", "3:3 model.zoo: no model 'tinny' in the zoo. Did you mean tiny"),
        ("zoo: tiny", "path: gone", "3:3 model.path: model folder gone: not found"),
        ("zoo: tiny", "hub: a/b", "3:3 model.hub: model a/b: its weights are not on this machine"),
        ("layer: 1", "layer: 99", "4:3 model.layer: layer 99 is out of range"),
        ("layer: 1", "device: cuda:7", "4:3 model.device: 'cuda:7' is not on this machine"),
        ("layer: 1", "tuned: [gone]", "4:3 model.tuned: gone holds no trained part"),
        ("diagnostic: {type: mcr, draws: 1}\n", "", "10:3 steering.1.type: amps needs R_V of each training prompt"),
        ("{type: mcr, draws: 1}", "iaf", "11:3 steering.1.type: amps needs R_V of each training prompt"),
        ("- type: amps\n  net: {epochs: 1}", "- heads", "11:3 steering.1.type: steering 'heads' chooses by"),
        ("net: {epochs: 1}", "net: {epochs: 1}\nartefacts: [gone]", "13:13 artefacts.0: gone: not a steering artefact"),
        ("net: {epochs: 1}", "net: {epochs: 1}\nlaunch: {zero: 3}", "13:10 launch.zero: 3 cuts the model"),
        (
            "\n  type: scenes\n  per_task: {train: 1, dev: 1, test: 1}",
            " {type: pope, root: .}",
            "5:8 data.type: 'pope' sets",
        ),
        (
            "net: {epochs: 1}",
            "net: {epochs: 1}\nbenchmarks: [{type: pope, root: gone}]",
            "13:27 benchmarks.0.root 'gone': no such folder; looked for",
        ),
    ],
)
def test_a_plan_refuses_what_a_run_refuses_with_the_line(recipe, capsys, old, new, line):
    path = recipe(old, new)
    planned, said = refused("plan", path, capsys), refused("run", path, capsys)
    assert said[0].startswith(f"mine.yaml:{line}") and planned[0] == said[0]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("collect.layer=9", "override 'collect.layer=9' collect.layer: layer 9 is out of range"),
        (
            "data={type: mc2, file: gone.json}",
            "override 'data={type: mc2, file: gone.json}' data.file 'gone.json': no such file",
        ),
        ("data={type: conflicts, file: gone.csv, images: .}", "data.file 'gone.csv': no such file; looked for"),
        ("data={type: conflicts, file: own.csv, images: .}", "own.csv:1: has no context"),
    ],
)
def test_what_an_override_or_a_data_file_says_is_told_so(recipe, tmp_path, capsys, override, line):
    (tmp_path / "own.csv").write_text("image\na.png\n")
    planned = refused("plan", recipe("seed", "seed", RECIPE + "seed: 1\n"), capsys, override)
    said = refused("run", "mine.yaml", capsys, override)
    assert line in said[0] and planned[0] == said[0]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("take: 8", "take: 8\n  batch_size: 4\n  micro_batch: 3", "10:3 tune.micro_batch: 3 does not divide the 4"),
        ("lessons: scenes\n    take: 8", "path: gone.json", "7:5 tune.data.path 'gone.json': no such file"),
        ("lessons: scenes", "lessons: plain_scenes", "7:5 tune.data.lessons: benchmark 'plain_scenes' has no less"),
        ("{zoo: tiny}", "{zoo: tiny, dtype: float16}", "2:20 model.dtype=float16: gradients overflow"),
    ],
)
def test_a_tuning_tells_the_line(recipe, capsys, old, new, line):
    path = recipe(old, new, TUNE)
    planned, said = refused("plan", path, capsys), refused("run", path, capsys)
    assert said[0].startswith(f"mine.yaml:{line}") and planned[0] == said[0]


def test_a_plan_tells_all_and_the_runs_own_mistake_first(recipe, capsys):
    path = recipe("layer: 1", "layer: 99\nbenchmarks: [{type: pope, root: gone}]")
    planned = refused("plan", path, capsys)
    assert len(planned) == 2 and "model.layer" in planned[0] and "benchmarks.0" in planned[1]


def test_a_message_without_a_recipes_value_stays_as_it_is():
    recipe = loads(RECIPE, "mine.yaml")
    for said in ("/runs/x: in use by process 3", "own.csv:3: has no context"):
        with pytest.raises(UserError) as told, blaming(recipe):
            raise UserError(said)
        assert str(told.value) == said
    assert str(wrong(loads(RECIPE, "b.yaml").model, "layer", "no")) == "b.yaml:4:3 model.layer: no"
    assert recipe == loads(RECIPE, "b.yaml"), "where a recipe is written is no part of what it says"


def test_a_run_that_died_before_any_work_does_not_own_its_name(tmp_path):
    def opened(recipe):
        return RunDir.open(tmp_path, "mine", tmp_path / recipe, recipe, {})

    with opened("a.yaml") as run:
        run.stage("check", {}).finish({})
        run.stage("collect", {})
    with opened("b.yaml") as run:
        run.stage("collect", {}).chunk("0", lambda: [{"a": 1}])
    with pytest.raises(UserError, match="belongs to another recipe, .*b.yaml"), opened("a.yaml"):
        pass
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["recipe"].endswith("b.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model:\n  zoo: tiny\n   layer: 1\n", "a.yaml:3:9 YAML syntax: mapping values are not allowed here. Indent"),
        ("model:\n\tzoo: tiny\n", "a.yaml:2:1 YAML syntax: found character '\\t' that cannot start any token, while"),
        ("model:\nzoo: tiny\n", "a.yaml:1:1 model: should be a mapping, got null. What belongs under a key"),
        ("model:\nzoo: tiny\n", "a.yaml:2:1 zoo: unknown key. It is a key of model: indent it below"),
        ("model: {zoo: tiny\n", "A list or mapping in brackets is not closed"),
        ("steering:\n-none\n", "an item of a list '- VALUE'"),
        ("seed: '1'\n", "a.yaml:1:1 seed: should be a valid integer, got the string '1'. Write it without quotes: 1"),
        ("evaluate: {max_skipped: '1e-1'}\n", "got the string '1e-1'. Write it without quotes: 1e-1"),
        ("report: {plots: 'true'}\n", "got the string 'true'. Write it without quotes: true"),
        ("seed: 2.0\n", "got 2.0. Write 2"),
        ("name: 3\n", "a.yaml:1:1 name: should be a valid string, got 3. Write it in quotes: '3'"),
        ("steering: none\n", "a.yaml:1:1 steering: should be a list, got the string 'none'. Put it in a list: [none]"),
        ("evaluate: {strengths: 0.5}\n", "evaluate.strengths: should be a list, got 0.5. Put it in a list: [0.5]"),
        ("zzz: 1\n", "a.yaml:1:1 zzz: unknown key. There are: name, seed, seeds, plugins, model, data, "),
        ("steering: [{type: amps, qq: 1}]\n", "steering.0.qq: unknown key. There are: beta, "),
    ],
)
def test_a_common_slip_is_told_with_what_to_write(text, told):
    with pytest.raises(UserError) as error:
        loads(text, "a.yaml")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fetch", "llava"], "Did you mean llava-1.5-13b or llava-1.5-7b"),
        (["fetch", "smoll"], "Did you mean smol or smolvlm"),
        (["compar"], "Did you mean compare"),
        (["list", "sterring"], "Did you mean steering?"),
        (["list", "steering", "amp"], "Did you mean amps"),
        (["show", "scens"], "Did you mean scenes"),
        (["show", "pope"], "error: pope: needs the key 'root'"),
        (["show", "pope", "rooot=x"], "error: override 'rooot=x' rooot: unknown key. Did you mean root?"),
        (["plan", "amps_tiny", "--limt", "3"], "Did you mean --limit?"),
    ],
)
def test_a_misspelt_word_gets_a_suggestion(words, told, capsys):
    assert main(words) == 2 and told in capsys.readouterr().err


def test_the_override_that_help_shows_works_on_the_recipe_it_names():
    recipe, *overrides = HELP.partition("overrides a key of the recipe: {me} ")[2].splitlines()[0].split()
    assert len(overrides) == 2 and load(find_recipe(recipe), overrides).overrides == tuple(overrides)

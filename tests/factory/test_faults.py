"""A plugin that raises: which, toward what, in which method and where, in one line; its traceback under --debug."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from factory.cli import main
from factory.errors import DEBUG
from tests.tiny import saved_tiny

PLUGINS = '''
from eval_suite.benchmarks.plain_scenes import PlainScenes
from factory.diagnose import Diagnostic
from factory.registry import Params, register
from factory.steer import Steerer


class Where(Params):
    at: str = "delta"
    worth: float = 1.0


@register("steering", "faulty")
class Faulty(Steerer):
    """A method with faults."""

    Params = Where

    def fit(self, states):
        if self.params.at == "fit":
            return self.helper({})
        if self.params.at == "exit":
            raise SystemExit(0)
        if self.params.at == "nothing":
            return None
        return {"v": states.toward.mean(0) * self.params.worth}

    def helper(self, d):
        return d["no such key"]

    def delta(self, h, state, ctx):
        if self.params.at == "delta":
            return h @ h
        if self.params.at == "one row":
            return state["v"]
        return state["v"].expand_as(h)


@register("diagnostic", "faulty_probe")
class FaultyProbe(Diagnostic):
    """A diagnostic with a fault."""

    Params = Params

    def measure(self, view, batch, names):
        raise ValueError("two\\\\nlines \\\\x1b[31m of a message")


@register("benchmark", "faulty_scenes")
class FaultyScenes(PlainScenes):
    """A benchmark with a fault."""

    def items(self):
        raise AttributeError("no such attribute")
'''
RECIPE = """\
name: x
model: {{path: {model}, layer: 1}}
plugins: [faulty.py]
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
steering: [none, static]
evaluate: {{controls: [], strengths: [1], directions: [text], batch_size: 8, max_new_tokens: 1}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty.py").write_text(PLUGINS.replace("\\\\", "\\"))
    path = folder / "x.yaml"
    path.write_text(RECIPE.format(model=saved_tiny(folder / "model"), root=folder / "runs"))
    return str(path)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)


FAULTS = [
    (
        "steering.1={type: faulty, as: mine, at: fit}",
        1,
        "error: steering 'mine' toward text: fit raised KeyError: 'no such key' (faulty.py:29); --debug shows",
    ),
    ("steering.1={type: faulty, as: mine}", 1, "error: steering 'mine' toward text: delta raised RuntimeError: "),
    ("steering.1={type: faulty, at: nothing}", 2, "toward text: fit should return named tensors, as in {'v': …}"),
    ("steering.1={type: faulty, at: x, worth: 1e308}", 2, "toward text: fit gave NaN or infinite values in 'v'"),
    ("steering.1={type: faulty, at: one row}", 2, "'faulty': delta should return a tensor ["),
    (
        "diagnostics=[faulty_probe]",
        1,
        r"error: diagnostic 'faulty_probe': measure raised ValueError: two lines \x1b[31m of a message",
    ),
    ("benchmarks=[faulty_scenes]", 1, "error: benchmark 'faulty_scenes': items raised AttributeError: no such"),
]


@pytest.mark.parametrize(
    ("command", "override", "code", "said"),
    [("run", *fault) for fault in FAULTS] + [("plan", *fault) for fault in FAULTS if "fit" not in fault[0]],
)
def test_a_plugin_that_raises_is_told_in_one_line(command, override, code, said, recipe, capsys):
    assert main([command, recipe, override]) in (code, 0 if command == "plan" else code)
    err = capsys.readouterr().err
    if command == "run" or err:
        assert "Traceback" not in err and "\x1b" not in err
        assert sum(line.startswith("error: ") for line in err.splitlines()) == 1
    if command == "run":
        assert said in err


def test_debug_shows_the_traceback(recipe, capsys):
    with pytest.raises(KeyError):
        main(["run", recipe, "steering.1={type: faulty, at: fit}", "--debug"])
    assert os.environ[DEBUG] == "1"


def test_a_disk_that_is_full_is_one_line_wherever_it_is_met(recipe, capsys, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    monkeypatch.setattr("eval_suite.report.html.page", full)
    assert main(["run", recipe]) == 2
    err = capsys.readouterr().err
    assert "\nerror: the disk is full" in f"\n{err}" and "finished work is kept" in err
    monkeypatch.undo()
    assert main(["run", recipe]) == 0


def test_a_folder_in_the_place_of_a_picture_of_samples_is_one_line(recipe, capsys):
    assert main(["run", recipe]) == 0
    [run] = [path for path in Path(recipe).with_name("runs").iterdir() if (path / "report").is_dir()]
    picture = run / "report" / "pictures" / "scenes_test.png"
    picture.unlink()
    picture.mkdir()
    capsys.readouterr()
    assert main(["run", recipe]) == 2
    assert f"{picture}: cannot write: a folder stands" in capsys.readouterr().err
    picture.rmdir()

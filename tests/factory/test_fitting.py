"""``--batch auto``: the largest batch that memory allows, halved where the device runs out; the answers stay."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from factory.cli import main
from factory.errors import UserError
from factory.recipe import load
from factory.run.fitting import largest_batch, with_batch
from factory.run.plan.estimate import estimate, memory
from tests.tiny import saved_tiny, tiny_view

GREEDY = '''\
"""A method that a device of little memory stands in for: of more than MOST prompts it runs out."""
import torch
from factory.registry import register
from factory.steer import Steerer

MOST, SEEN = 4, []


@register("steering", "greedy_memory")
class Greedy(Steerer):
    """Adds nothing much."""

    def fit(self, states):
        return {"v": states.toward.mean(0) - states.away.mean(0)}

    def delta(self, h, state, ctx):
        SEEN.append(len(h))
        if len(h) > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")
        return state["v"].expand_as(h)
'''
RECIPE = """\
name: small
plugins: [greedy_memory.py]
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 2}}}}
steering: [none, greedy_memory]
evaluate: {{strengths: [1], batch_size: 4, max_new_tokens: 2}}
collect: {{batch_size: 4}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A plugin's name is taken once, so that all tests share its file."""
    folder = tmp_path_factory.mktemp("fitting")
    (folder / "model").mkdir()
    (folder / "greedy_memory.py").write_text(GREEDY)
    (folder / "small.yaml").write_text(RECIPE.format(folder=saved_tiny(folder / "model")))
    return folder


@pytest.fixture
def recipe(there, monkeypatch):
    monkeypatch.chdir(there)
    return there / "small.yaml"


def outcomes(name):
    rows = json.loads(Path("runs", name, "results.json").read_text())["rows"]
    return [(r["split"], r["task"], r["method"], r["direction"], r["metrics"], r["n"]) for r in rows]


def test_out_of_memory_halves_the_batch_and_the_answers_stay(recipe, capsys):
    assert main([str(recipe), "name=fixed"]) == 0
    assert main([str(recipe), "name=auto", "--batch", "auto"]) == 0
    told = "".join(capsys.readouterr())
    assert "going on with 8 prompts at once" in told and "going on with 4 prompts at once" in told
    assert "with 2 prompts" not in told
    assert outcomes("auto") == outcomes("fixed")


def test_a_batch_fits_into_the_memory_that_the_plan_counts(recipe):
    asked = load(recipe)
    found = estimate(asked)
    most = largest_batch(asked, free=1e15)
    assert most == 16  # test has 16 prompts
    usual = tiny_view().encode([found.data.prompt]).input_ids.shape[1]
    tokens = usual, math.ceil(usual * found.data.longest / found.data.words)
    for rows in (1, 2, 4, 8):
        room = memory(with_batch(asked, rows), found.model, tokens, found.data.prompts)
        assert (largest_batch(asked, free=room), largest_batch(asked, free=room - 1)) == (rows, max(1, rows // 2))
    assert largest_batch(asked, free=0) == 1


def test_what_no_batch_is_found_for_is_one_line(recipe, capsys):
    with pytest.raises(UserError, match="is for one process"):
        largest_batch(load(recipe, ["launch.processes=2"]))
    assert main(["tune_tiny", "--batch", "auto"]) == 2
    assert "finds the batch of recipes that steer" in capsys.readouterr().err
    assert main([str(recipe), "--batch", "0"]) == 2 and "--batch" in capsys.readouterr().err

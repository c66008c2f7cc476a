"""What a tuner's settings change, on made answers whose changes are known; numbers of diagnostics over seeds."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval_suite.compare import over_seeds
from factory.run.tuners.contest_settings import change_of, in_setting, settings_summary
from factory.run.tuners.contest_summary import widen


def answers(values, task="color"):
    return [{"sample": f"s{i}", "value": v, "tasks": [task, "odd" if i % 2 else "even"]} for i, v in enumerate(values)]


def test_a_change_is_the_mean_of_the_pairs():
    change = change_of(answers([1, 1, 1, 0, None]), answers([0, 1, 0, 0, 1]))
    assert change.mean == pytest.approx(-0.5) and change.n == 4
    assert change.low <= -0.5 <= change.high and change.low == pytest.approx(-1.0)
    assert change_of(answers([None]), answers([1])) is None
    same = change_of(answers([1, 0] * 10), answers([1, 0] * 10))
    assert same.mean == same.low == same.high == 0.0 and same.p == 1.0


def test_a_part_that_matters_on_one_benchmark_alone_is_told_so():
    kept = {
        ("conflict", "mine"): answers([1] * 40),
        ("alone", "mine"): answers([1] * 40),
        ("conflict", in_setting("mine", "without-a")): answers([0, 1] * 20),
        ("alone", in_setting("mine", "without-a")): answers([1] * 40),
    }
    summary = settings_summary("mine", ["without-a"], ["conflict", "alone"], lambda *key: kept.get(key, []))
    [finding] = summary.findings
    assert finding.values == {"without-a/conflict": -0.5, "without-a/alone": 0.0}
    assert finding.text.startswith("mine, without-a: -50.0 (")
    by_name = {table.name: table for table in summary.tables}
    assert by_name["settings"].columns == ("setting", "conflict", "alone")
    assert by_name["conflict-settings"].columns == ("setting", "color", "even", "odd")
    [[_, _, even, odd]] = by_name["conflict-settings"].rows
    assert even.startswith("-100.0") and odd.startswith("+0.0")
    nothing = settings_summary("mine", ["without-a"], ["other"], lambda *key: [])
    assert not nothing.findings, "a harness that keeps no answers is left out"


def test_an_interval_over_seeds_is_students():
    found = over_seeds.over("partition", "share", [0.2, 0.4, 0.9])
    spread = math.sqrt(((0.3**2) + (0.1**2) + (0.4**2)) / 2)
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.mean == pytest.approx(4.302653 * spread / math.sqrt(3), rel=1e-4)
    assert over_seeds.over("partition", "share", [0.2, 0.4]).low is None
    # of 15 and of 120 degrees of freedom, from printed tables
    assert over_seeds.t_975(15) == pytest.approx(2.1314, abs=2e-3)
    assert over_seeds.t_975(120) == pytest.approx(1.9799, abs=1e-4)


def write(folder, made_from, value):
    folder.mkdir()
    finding = {"text": "", "holds": None, "values": {"share": value, "said": "no number", "extra": 1.0}}
    results = {
        "schema": 1,
        "run": {"name": folder.name, "made_from": made_from},
        "rows": [],
        "diagnostics": {"partition": {"title": "", "findings": [finding], "tables": []}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_numbers_over_seeds_are_those_of_one_recipe(tmp_path):
    runs = [write(tmp_path / f"seed{i}", "one", 0.1 * i) for i in range(3)]
    share, _ = over_seeds.numbers(runs)
    assert (share.name, share.least, share.most, share.n) == ("share", 0.0, pytest.approx(0.2), 3)
    path = over_seeds.write(over_seeds.numbers(runs), tmp_path)
    assert "| partition | share | 0.1000 |" in path.read_text()
    assert over_seeds.numbers([*runs, write(tmp_path / "other", "two", 0.3)]) == []
    assert over_seeds.numbers(runs[:1]) == []


@pytest.mark.parametrize("widened", [False, True])
def test_ticks_of_parameters_that_lie_close_keep_apart(widened):
    figure = Figure(figsize=(3.4, 3))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([24576, 25344], [0.5, 0.6], "o")
    axes.set_xscale("log")
    if widened:
        widen(axes)
    figure.draw_without_rendering()
    labels = [label for label in axes.get_xticklabels(which="both") if label.get_text()]
    low, high = axes.get_xlim()
    shown = sorted(
        (label.get_window_extent() for label in labels if low <= label.get_position()[0] <= high),
        key=lambda box: box.x0,
    )
    assert shown and all(left.x1 < right.x0 for left, right in pairwise(shown)) == widened

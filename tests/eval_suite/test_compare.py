"""Comparing runs: paired tests with correction, protocols kept apart, and a whole comparison recipe."""

from __future__ import annotations

import csv
import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from eval_suite.commands.compare import Compare
from eval_suite.compare.load import load
from eval_suite.compare.plots import draw
from eval_suite.compare.significance import Test, bootstrap_p, compare, holm
from eval_suite.compare.table import build
from eval_suite.report import style
from factory.cli import main
from factory.run import rundir
from tests.tiny import interrupts, saved_tiny


def a_test(p):
    return Test("t", 0.1, 0.0, 0.2, 10, p)


def test_holm_is_the_step_down_correction():
    assert [t.adjusted for t in holm([a_test(p) for p in (0.01, 0.04, 0.03, 0.005)])] == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    assert [t.adjusted for t in holm([a_test(0.9), a_test(0.8)])] == [1.0, 1.0]


def test_bootstrap_p_holds_its_level_and_sees_a_shift():
    rng = np.random.default_rng(0)
    null = [bootstrap_p(rng.normal(size=60)) for _ in range(60)]
    assert np.mean(np.array(null) < 0.05) <= 0.15 and np.mean(null) == pytest.approx(0.5, abs=0.15)
    assert bootstrap_p(rng.normal(size=60) + 1) < 0.001 + 1 / 2001


def test_graded_scores_are_not_put_to_mcnemar():
    a = {str(i): (i % 10) / 10 for i in range(50)}
    assert compare(a, {k: v / 2 for k, v in a.items()}).name == "paired bootstrap"
    assert (
        compare({k: float(v > 0.5) for k, v in a.items()}, {k: float(v > 0.2) for k, v in a.items()}).name == "McNemar"
    )
    assert compare(a, {"x": 1.0}) is None


def test_questions_that_hang_together_are_resampled_together():
    """Ten pictures of twenty questions each, on which two arms differ picture by picture: ten observations, not two
    hundred.
    """
    rng = np.random.default_rng(0)
    shift = {f"{u}": rng.normal() for u in range(10)}
    a = {f"{u}/{i}": 0.5 + shift[f"{u}"] for u in range(10) for i in range(20)}
    b, units = dict.fromkeys(a, 0.5), {s: s.split("/")[0] for s in a}
    alone, together = compare(a, b), compare(a, b, units)
    assert together.name == "sign-flip test over units" and alone.difference == together.difference
    slow = [np.mean([shift[u] for u in rng.choice(list(shift), 10)]) for _ in range(4000)]
    assert (together.low, together.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.1)
    assert together.high - together.low > 3 * (alone.high - alone.low) and together.p > alone.p
    right, wrong = {s: 1.0 for s in a}, {s: 0.0 for s in a}
    assert compare(right, wrong).name == "McNemar"
    assert compare(right, wrong, units).name == "sign-flip test over units"
    many = {f"{u}/{i}": u % 7 / 7 for u in range(60) for i in range(2)}
    by_picture = {s: s.split("/")[0] for s in many}
    assert compare(many, dict.fromkeys(many, 0.4), by_picture).name == "paired bootstrap over units"


@pytest.mark.parametrize("n", [4, 8])
def test_few_units_are_not_told_apart_by_chance(n):
    """Of comparisons without a difference no more than the level, give or take three standard errors, are rejected."""
    rng, runs = np.random.default_rng(n), 200
    p, bootstrapped = np.empty(runs), np.empty(runs)
    for i in range(runs):
        a = {str(k): float(x) for k, x in enumerate(rng.normal(size=n))}
        p[i] = compare(a, dict.fromkeys(a, 0.0)).p
        bootstrapped[i] = bootstrap_p(list(a.values()))
    assert (p < 0.05).mean() <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert n > 4 or (bootstrapped < 0.05).mean() > 0.12  # what it is spared


def test_a_difference_is_seen_with_few_units_too():
    a = {str(k): 0.5 + 0.05 * k for k in range(8)}
    test = compare(a, dict.fromkeys(a, 0.4))
    assert test.name == "sign-flip test" and test.p == 2 / 2**8


def run_folder(
    root: Path, name: str, methods: dict[str, list[float]], protocol="pope/random/llava-1.5", seed=0, **more
) -> Path:
    """A finished run with one question benchmark, as the suite writes it."""
    rows = []
    for method, values in methods.items():
        share = sum(values) / len(values)
        rows.append(
            {
                "benchmark": "pope",
                "label": "pope",
                "split": "random",
                "task": "all",
                "direction": None,
                "method": method,
                "strength": None if method == "none" else 1.0,
                "seed": seed,
                "n": len(values),
                "metrics": {"f1": share},
                "ci": {"f1": [share - 0.05, share + 0.05]},
                "protocol": protocol,
                "scorer": "pope/1",
                "main": "f1",
                "parse_failure_rate": 0.0,
                "chosen": True,
                **more,
            }
        )
        lines = [json.dumps({"sample": str(i), "value": v}) for i, v in enumerate(values)]
        path = root / name / "predictions" / "pope" / f"{method}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    (root / name / "results.json").write_text(
        json.dumps({"schema": 1, "run": {"name": name, "seed": seed}, "rows": rows})
    )
    return root / name


def drawn(share, n=400, seed=0):
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


def flipped(values, share, seed):
    """The same answers with a share of them turned round."""
    rng = random.Random(seed)
    return [1 - v if rng.random() < share else v for v in values]


def table_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "compare.csv").open()))


def test_a_real_difference_is_significant_and_a_null_one_is_not(tmp_path, capsys):
    base = drawn(0.5)
    worse = [0.0 if i % 4 == 0 else v for i, v in enumerate(base)]
    a = run_folder(tmp_path, "a", {"none": base, "amps": flipped(base, 0.2, 1)})
    b = run_folder(tmp_path, "b", {"none": flipped(base, 0.2, 2), "amps": worse})
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 0
    rows = {(r["run"], r["method"], r["reference"]): r for r in table_of(tmp_path / "out")}
    assert (
        rows["b", "amps", "none"]["verdict"] == rows["b", "amps", "a"]["verdict"] == "worse"
        and float(rows["b", "amps", "none"]["p_holm"]) < 0.05
    )
    assert rows["a", "amps", "none"]["verdict"] == rows["b", "none", "a"]["verdict"] == ""
    assert rows["a", "none", ""]["test"] == "" and rows["b", "amps", "a"]["pairs"] == "400"
    assert "▼" in capsys.readouterr().out and "▼" in (tmp_path / "out" / "compare.md").read_text()
    assert r"\blacktriangledown" in (tmp_path / "out" / "compare.tex").read_text()
    assert (tmp_path / "out" / "figures" / "scores_1.png").stat().st_size > 1000
    assert "resizebox" in (tmp_path / "out" / "compare.tex").read_text()


def test_a_figure_of_twenty_arms_names_each_on_its_axis_and_warns_of_nothing(tmp_path, monkeypatch, recwarn):
    base, panels = drawn(0.5, n=60), []
    monkeypatch.setattr(style, "finish", lambda canvas, *_: panels.append(canvas.axes[0]))
    names = ["none", *(f"a_rather_long_method_{i}" for i in range(19))]
    run = run_folder(tmp_path, "a", {name: flipped(base, 0.02 * i, i) for i, name in enumerate(names)})
    draw(build([*load([run])]))
    scores, differences = panels
    for ax in panels:
        ax.figure.draw_without_rendering()
        shown = [tick.get_window_extent() for tick in ax.get_yticklabels()]
        assert all(below.y1 <= above.y0 for above, below in pairwise(shown)) and all(box.x0 >= 0 for box in shown)
        assert "f1 (%), right is better" in ax.get_xlabel() and not ax.figure.legends
    assert [tick.get_text() for tick in scores.get_yticklabels()] == names
    assert [tick.get_text() for tick in differences.get_yticklabels()] == names[1:]
    assert not recwarn.list


def test_seeds_are_averaged_sample_by_sample(tmp_path):
    base = drawn(0.5)
    folders = [
        run_folder(
            tmp_path,
            f"x-seed{s}",
            {"none": base, "amps": [max(v, float(i % (5 + s) == s)) for i, v in enumerate(base)]},
            seed=s,
        )
        for s in (0, 1)
    ]
    Compare.over(folders, tmp_path / "out")
    rows = {r["method"]: r for r in table_of(tmp_path / "out")}
    assert (
        rows["amps"]["seeds"] == "2"
        and rows["amps"]["test"] == "paired bootstrap"
        and rows["amps"]["verdict"] == "better"
    )
    assert rows["none"]["run"] == "x"
    share = sum(base) / len(base)
    assert float(rows["none"]["low"]) == pytest.approx(share - 1.96 * (share * (1 - share) / 400) ** 0.5, abs=0.01), (
        "two equal seeds tell no more than one"
    )
    assert "; seeds " in (tmp_path / "out" / "compare.md").read_text()


@pytest.mark.parametrize("other", [{"protocol": "pope/random/plain"}, {"scorer": "pope/2"}])
def test_scores_of_different_protocols_never_share_a_column(tmp_path, capsys, other):
    a = run_folder(tmp_path, "a", {"none": drawn(0.5)})
    b = run_folder(tmp_path, "b", {"none": drawn(0.5)}, **other)
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.strip()
    assert "must not stand in one column" in told and "\n" not in told and not (tmp_path / "out").exists()


def test_two_versions_of_a_scorer_are_refused_in_one_column(tmp_path, capsys):
    a = run_folder(tmp_path, "a", {"none": drawn(0.5)})
    b = run_folder(tmp_path, "b", {"none": drawn(0.5)}, scorer="pope/2")
    seeds = [run_folder(tmp_path, f"c-seed{i}", {"none": drawn(0.5)}, seed=i, scorer=f"pope/{i}") for i in (1, 2)]
    for runs in ([a, b], seeds):
        assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err.strip()
        assert "pope/1" in told and "pope/2" in told and "\n" not in told and not (tmp_path / "out").exists()


def test_unequal_samples_are_refused_or_scored_in_common(tmp_path, capsys):
    base = drawn(0.5)
    a = run_folder(tmp_path, "a", {"none": base, "amps": flipped(base, 0.2, 1)})
    b = run_folder(tmp_path, "b", {"none": base[:100], "amps": [1.0] * 100})
    out = tmp_path / "out"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 2
    told = capsys.readouterr().err.strip()
    assert (
        "a/none was scored on 400 answers and b/none on 100, with 100 samples in common" in told
        and "--common" in told
        and "\n" not in told
        and not out.exists()
    )
    assert main(["compare", str(a), str(b), "--out", str(out), "--common"]) == 0
    rows = {(r["run"], r["method"], r["reference"]): r for r in table_of(out)}
    assert {r["n"] for r in rows.values()} == {"100"} and float(rows["a", "none", ""]["value"]) == pytest.approx(
        np.mean(base[:100])
    )
    assert rows["b", "none", "a"]["difference"] == "0.0" and rows["b", "amps", "none"]["verdict"] == "better"
    low, high = (float(rows["a", "none", ""][key]) for key in ("low", "high"))
    assert low < np.mean(base[:100]) < high and high - low > 0.15, "the interval is that of a hundred answers"
    for text in (capsys.readouterr().out, (out / "compare.md").read_text(), (out / "compare.tex").read_text()):
        assert "on the 100 samples that all arms share" in " ".join(text.split())


def test_samples_in_common_are_no_way_out_for_scores_that_are_no_means(tmp_path, capsys):
    base = drawn(0.5)
    a = run_folder(tmp_path, "a", {"none": base}, metrics={"f1": 0.123})
    b = run_folder(tmp_path, "b", {"none": base[:100]})
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out"), "--common"]) == 2
    assert "f1 is no mean over samples" in capsys.readouterr().err
    c = run_folder(tmp_path, "c", {"none": base})
    (c / "predictions/pope/none.jsonl").write_text(
        "".join(json.dumps({"sample": f"other{i}", "value": v}) + "\n" for i, v in enumerate(base))
    )
    assert main(["compare", str(b), str(c), "--out", str(tmp_path / "out"), "--common"]) == 2
    assert "0 samples in common" in capsys.readouterr().err


def test_a_folder_without_results_is_told(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "has no results.json" in capsys.readouterr().err


def test_published_numbers_stand_beside_measured_ones_of_the_same_protocol(tmp_path):
    same = run_folder(
        tmp_path,
        "a",
        {"none": drawn(0.5)},
        protocol="textvqa/val/llava-1.5/ocr",
        main="accuracy",
        metrics={"accuracy": 0.5},
        label="textvqa",
    )
    Compare.over([same], tmp_path / "out")
    shown = (tmp_path / "out" / "compare.md").read_text()
    assert "published: LLaVA-1.5-13B" in shown and "published scores are of 5,000 samples, those here of 400" in shown
    without = run_folder(
        tmp_path,
        "b",
        {"none": drawn(0.5)},
        protocol="textvqa/val/llava-1.5/no-ocr",
        main="accuracy",
        metrics={"accuracy": 0.5},
        label="textvqa",
    )
    Compare.over([without], tmp_path / "out")
    assert "published" not in (tmp_path / "out" / "compare.md").read_text()


def test_a_papers_table_stands_beside_the_run_of_its_recipe_alone(tmp_path):
    more = {
        "protocol": "gqa/testdev_balanced/llava-1.5",
        "main": "accuracy",
        "metrics": {"accuracy": 0.5},
        "label": "gqa",
    }
    Compare.over([run_folder(tmp_path, "mores_table1", {"none": drawn(0.5)}, **more)], tmp_path / "out")
    shown = (tmp_path / "out" / "compare.md").read_text().replace("\\", "")
    assert "| published: mores_h [LLaVA Steering, table 1] | — | 51.8 |" in shown
    Compare.over([run_folder(tmp_path, "mine", {"none": drawn(0.5)}, **more)], tmp_path / "out")
    assert "LLaVA Steering" not in (tmp_path / "out" / "compare.md").read_text()
    Compare.over(
        [
            run_folder(
                tmp_path, "mores_table1", {"none": drawn(0.5)}, **more | {"protocol": "gqa/val_balanced/llava-1.5"}
            )
        ],
        tmp_path / "out",
    )
    assert "LLaVA Steering" not in (tmp_path / "out" / "compare.md").read_text(), "another split is another protocol"


RECIPE = """\
name: every
seeds: [0, 1]
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
steering: [none, instruction, static, vcd]
benchmarks: [
  {{type: plain_scenes, per_task: 2}}, {{type: fluency, new_tokens: 3, prompts: ["what is it?", tell me more]}}
]
evaluate: {{controls: [], strengths: [1], batch_size: 8, max_new_tokens: 2}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A comparison recipe over two seeds that was run."""
    home = tmp_path_factory.mktemp("every")
    recipe = home / "every.yaml"
    recipe.write_text(RECIPE.format(folder=saved_tiny(home / "model"), root=home / "runs"))
    assert main([str(recipe)]) == 0
    return recipe, home / "runs"


def test_a_comparison_recipe_makes_the_table(every):
    rows = table_of(every[1] / "every")
    assert {(r["method"], r["benchmark"]) for r in rows} >= {
        (m, b) for m in ("none", "static", "instruction", "vcd") for b in ("scenes", "plain_scenes", "fluency")
    }
    assert {r["direction"] for r in rows} == {"vision", "text"} and {r["seeds"] for r in rows} == {"2"}
    assert {r["parameters"] for r in rows if r["method"] == "static"} == {"48"}
    assert {r["metric"] for r in rows if r["benchmark"] == "fluency"} == {
        "sound",
        "perplexity",
        "distinct_2",
        "repetitive",
        "empty",
    }


@pytest.mark.parametrize("stop", [12])
def test_a_killed_comparison_ends_with_the_same_results(every, tmp_path, stop):
    with rundir.watched_stores(interrupts(stop)):
        assert main([str(every[0]), f"run.root={tmp_path}"]) == 130
    assert main([str(every[0]), f"run.root={tmp_path}"]) == 0
    for seed in (0, 1):
        name = f"every-seed{seed}/results.json"
        assert (tmp_path / name).read_bytes() == (every[1] / name).read_bytes()


def test_an_artefact_is_examined_against_the_model_as_it_is(every, tmp_path):
    recipe = tmp_path / "examine.yaml"
    model = json.dumps(str(every[0].parent / "model"))
    saved = every[1] / "every-seed0" / "artefacts" / "static-vision"
    recipe.write_text(
        f"name: examine\nmodel: {{path: {model}}}\nartefacts: [{saved}]\nbenchmarks: [{{type: plain_scenes, per_task:"
        f" 1}}]\nrun: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    assert main([str(recipe)]) == 0
    comparison = tmp_path / "runs" / "examine" / "comparison"
    rows = table_of(comparison)
    assert [(r["method"], r["reference"]) for r in rows] == [("none", ""), ("static-vision", "none")]
    assert not (comparison / "figures").exists(), "the recipe says report.plots: false"


def test_a_missing_artefact_is_told_before_the_model_is_read(every, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("factory.run.pipeline.load", None)
    assert main([str(every[0]), f"artefacts=[{tmp_path}]", "seeds=[]"]) == 2
    assert "not a steering artefact" in capsys.readouterr().err

"""What a run's MCR says: the paired test of its shift against every assignment of signs, and its test-retest."""

from __future__ import annotations

from itertools import product
from statistics import correlation

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from factory.diagnose.claims import judged
from factory.diagnose.summary import Figure
from factory.registry import lookup
from tests.tiny import conflict_prompts, tiny_view

Mcr = lookup("diagnostic", "mcr")


def rows_of(prompt: str, values: np.ndarray, metric: str = "R_V", form: str = "order1") -> list[dict]:
    """One row a sample; ``values`` [n]."""
    return [
        {
            "sample": f"s{i}",
            "task": "color",
            "split": "test",
            "form": form,
            "prompt": prompt,
            "metric": metric,
            "value": float(v),
        }
        for i, v in enumerate(values)
    ]


def test_the_shift_is_tested_in_pairs_and_corrected_for_three_comparisons():
    rng = np.random.default_rng(1)
    base = rng.uniform(0.3, 0.6, 11)
    vision, text = base + rng.normal(0.1, 0.05, 11), base + rng.normal(0.005, 0.05, 11)
    rows = rows_of("base", base) + rows_of("vision", vision) + rows_of("text", text)
    findings = judged({"mcr": Mcr(Mcr.Params()).summary(rows)})["mcr"].findings

    def exact(d: np.ndarray) -> float:
        flipped = [
            abs(sum(sign * x for sign, x in zip(signs, d, strict=True))) for signs in product((1, -1), repeat=11)
        ]
        return sum(total >= abs(d.sum()) - 1e-9 for total in flipped) / len(flipped)

    p = [exact(vision - text), exact(vision - base), exact(text - base)]
    assert [f.values["p"] for f in findings] == pytest.approx(p)
    order = np.argsort(p)
    holm = np.maximum.accumulate(np.minimum(1, np.sort(p) * [3, 2, 1]))
    assert [findings[i].values["p_holm"] for i in order] == pytest.approx(list(holm))
    assert findings[0].values["difference"] == pytest.approx((vision - text).mean())
    assert [f.holds for f in findings] == [True, True, False]
    assert all(f.values["samples"] == 11 for f in findings)


def test_forms_of_a_sample_are_one_unit_and_what_lacks_a_partner_is_left_out():
    vision = rows_of("vision", [0.5, 0.7, 0.9]) + rows_of("vision", [0.7, 0.9, np.nan], form="order2")
    base = rows_of("base", [0.4, 0.4]) + rows_of("base", [0.4, 0.4, 0.4], form="order2")
    (shift,) = Mcr(Mcr.Params()).summary(vision + base).findings
    assert shift.values["samples"] == 2 and shift.values["difference"] == pytest.approx((0.2 + 0.4) / 2)


def drawn(figure: Figure) -> Canvas:
    canvas = Canvas(figsize=figure.size, layout="constrained")
    figure.draw(canvas)
    return canvas


def test_its_figures_show_each_test_sample_once_by_task_and_by_prompt():
    rng = np.random.default_rng(3)
    first, second, vision = rng.uniform(0, 1, (3, 9))
    first[0] = np.nan  # such a sample has one form less
    rows = [
        {**row, "task": "color" if row["sample"] < "s5" else "sport_recognition"}
        for metric in ("R_V", "R_V_sum", "R_V_mean_per_token")
        for row in (
            *rows_of("base", first, metric),
            *rows_of("base", second, metric, form="order2"),
            *rows_of("vision", vision, metric),
            *({**row, "split": "dev"} for row in rows_of("base", np.full(30, 0.9), metric)),
        )
    ]
    base = np.where(np.isnan(first), second, (first + second) / 2)
    by_task, by_prompt = Mcr(Mcr.Params()).summary(rows).figures
    assert (by_task.name, by_prompt.name) == ("by_task", "by_prompt")
    assert "9 test samples" in by_task.caption and "Left as published" in by_prompt.caption
    (ax,) = drawn(by_task).axes
    medians = sorted(line.get_ydata()[0] for line in ax.lines if line.get_linewidth() == 1.2)
    tasks = slice(0, 5), slice(5, 9)
    assert medians == pytest.approx(sorted(np.median(of[task]) for of in (base, vision) for task in tasks))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Color", "Sport\nrecognition"]
    for ax in drawn(by_prompt).axes:
        assert [text.get_text() for text in ax.texts] == [f"{vision.mean():.2f}", f"{base.mean():.2f}"]


def test_without_a_second_prompt_or_run_there_is_no_claim():
    once = Mcr(Mcr.Params()).summary(rows_of("base", [0.1, 0.2, 0.3]))
    assert (once.findings, once.tables, [f.name for f in once.figures]) == ((), (), ["by_task"])
    (predictor,) = once.predictors
    assert predictor.metric == "R_V" and predictor.toward(0.25, "vision") == 0.25 == predictor.toward(0.75, "text")
    assert Mcr(Mcr.Params()).summary([]) is None


def test_retest_gives_correlations_of_runs_and_the_spread_within_a_sample():
    rng = np.random.default_rng(2)
    first = rng.uniform(0, 1, 20)
    second, third = first + rng.normal(0, 0.1, 20), first + rng.normal(0, 0.1, 20)
    rows = rows_of("base", first) + rows_of("base", second, "R_V_again_1") + rows_of("base", third, "R_V_again_2")
    (retest,) = Mcr(Mcr.Params(repeats=3)).summary(rows).findings
    pairs = [(first, second), (first, third), (second, third)]
    assert retest.values["pearson"] == pytest.approx(np.mean([correlation(*pair) for pair in pairs]))
    assert retest.values["spearman"] == pytest.approx(
        np.mean([correlation(*(np.argsort(np.argsort(run)).astype(float) for run in pair)) for pair in pairs])
    )
    variances = [((x - np.mean(x)) ** 2).sum() / 2 for x in zip(first, second, third, strict=True)]
    assert retest.values["within_sample_sd"] == pytest.approx(np.mean(variances) ** 0.5)
    low, high = retest.values["pearson_ci"]
    assert low < retest.values["pearson"] < high and retest.values["samples"] == 20


def test_a_ratio_that_does_not_vary_has_no_correlation():
    rows = rows_of("base", np.ones(4)) + rows_of("base", np.ones(4), "R_V_again_1")
    (retest,) = Mcr(Mcr.Params(repeats=2)).summary(rows).findings
    assert retest.values["pearson"] is None and "not defined" in retest.text
    assert retest.values["within_sample_sd"] == 0


def test_a_repeat_is_the_measurement_under_the_next_seed():
    view, prompts = tiny_view(), conflict_prompts(3)
    keys = [str(i) for i in range(len(prompts))]

    def measured(**params) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for row in Mcr(Mcr.Params(draws=1, **params)).measure(view, view.encode(prompts), keys):
            found.setdefault(row["metric"], []).append(row["value"])
        return found

    three, first, second, third = measured(seed=5, repeats=3), *(measured(seed=seed) for seed in (5, 6, 7))
    assert three.pop("R_V_again_1") == second["R_V"] != first["R_V"]
    assert three.pop("R_V_again_2") == third["R_V"]
    assert three == first

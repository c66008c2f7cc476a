"""Relative uncertainty: entropies, lens and oscillations against slow references; the curve's fits against planted and
brute-force truth.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from eval_suite.benchmarks.scenes import ColorSet, Scenes, ScenesParams
from factory.bench import Bench
from factory.data.prompt import Role
from factory.registry import lookup
from factory.statistics.association import auroc, bootstrap, interval, spearman
from plugins.diagnostics.relative_uncertainty import first_tokens, logit_difference, oscillations
from plugins.diagnostics.relative_uncertainty.curve import (
    balance_point,
    isotonic,
    isotonic_crossing,
    relative_uncertainty,
)
from tests.tiny import tiny_view

CLS = lookup("diagnostic", "relative_uncertainty")


def bench(scoring: str = "open_ended") -> Bench:
    return Bench(tiny_view(), Scenes(ScenesParams(scoring=scoring)), 1, 3)


def measured(b: Bench, n: int = 4) -> tuple[list, dict]:
    samples = b.benchmark.samples("test")[:: len(b.benchmark.samples("test")) // n][:n]
    rows = CLS(CLS.Params()).on_samples(b, samples)
    return samples, {(r["sample"], r["form"], r["metric"], r["layer"]): r["value"] for r in rows}


def test_a_benchmark_says_what_one_side_alone_is():
    class Apart(Scenes):
        def alone(self, sample, form, modality):
            return super().alone(sample, form, modality).without(Role.OPTIONS)

    b = Bench(tiny_view(), Apart(ScenesParams(scoring="open_ended")), 1, 3)
    samples, found = measured(b)
    for sample in samples:
        for metric, gone in (("H_v", Role.CONTEXT), ("H_t", Role.IMAGE)):
            batch = b.view.encode([b.benchmark.prompt(sample, "open").without(gone, Role.OPTIONS)])
            with torch.no_grad():
                p = b.view.model(**batch).logits[0, -1].double().softmax(-1)
            expected = -sum(float(x) * math.log(float(x)) for x in p if x > 0)
            assert found[sample.id, "open", metric, None] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scoring", ["open_ended", "both_orders"])
def test_measures_are_those_of_single_prompts_run_whole(scoring):
    b = bench(scoring)
    view = b.view
    samples, found = measured(b)
    for sample, form in product(samples, b.benchmark.forms):
        prompt, H = b.benchmark.prompt(sample, form), {}
        for setting, gone in (("v", Role.CONTEXT), ("t", Role.IMAGE), ("both", Role.SYSTEM)):
            batch = view.encode([prompt.without(gone)])
            with torch.no_grad():
                out = view.model(**batch, output_hidden_states=True)
            p = out.logits[0, -1].double().softmax(-1)
            H[setting] = -sum(float(x) * math.log(float(x)) for x in p if x > 0)
        get = lambda metric, layer=None, key=(sample.id, form): found[(*key, metric, layer)]
        assert get("H_v") == pytest.approx(H["v"], abs=1e-4) and get("H_t") == pytest.approx(H["t"], abs=1e-4)
        assert get("dH_rel") == pytest.approx(2 * (H["t"] - H["v"]) / (H["t"] + H["v"]), abs=1e-4)
        assert get("confidence") == pytest.approx(float(p.max()), abs=1e-5)
        answers = [first_tokens(view, b.benchmark.example(sample, form, d)) for d in ("vision", "text")]
        said = []
        for layer in range(view.depth):
            h = out.hidden_states[layer + 1][0, -1]
            z = view.unembed(h if layer == view.depth - 1 else view.norm(h))
            assert get("logit_difference", layer) == pytest.approx(
                max(float(z[i]) for i in answers[1]) - max(float(z[i]) for i in answers[0]), abs=1e-3
            )
            said += [name for name, ids in zip("vt", answers, strict=True) if int(z.argmax()) in ids]
        assert get("oscillations") == sum(a != c for a, c in pairwise(said))


def test_an_answer_may_begin_with_any_spelling():
    view, b = tiny_view(), bench()
    sample = next(s for s in b.benchmark.samples("test") if s.answer_vision == "red")
    said = {view.tokenizer.decode([i]) for i in first_tokens(view, b.benchmark.example(sample, "open", "vision"))}
    assert said == {"re", " re", "R"}, "a token of white space alone begins no answer"


@pytest.mark.parametrize(
    "top, switches", [([1, 1, 2, 9, 2], 1), ([1, 9, 2, 9, 1], 2), ([9, 9], 0), ([2, 1, 2, 1], 3), ([3, 1, 3, 1], 0)]
)
def test_layers_that_say_neither_are_left_out(top, switches):
    layers = [torch.nn.functional.one_hot(torch.tensor(t), 10).float() for t in top]
    assert oscillations(layers, {1, 3}, {2, 3}) == switches


def test_answers_that_begin_alike_have_no_difference():
    assert (
        math.isnan(logit_difference(torch.zeros(5), {1}, {1}))
        and logit_difference(torch.arange(5.0), {1, 3}, {3, 4}) == 3
    )


def test_relative_uncertainty_by_hand():
    assert relative_uncertainty(np.array([1.0, 0.0, 2.0, 0.0]), np.array([3.0, 0.0, 0.0, 1.0])).tolist() == [
        1.0,
        0.0,
        -2.0,
        2.0,
    ]


def planted(balance: float, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, n)
    return x, (rng.random(n) < 1 / (1 + np.exp(3 * (x - balance)))).astype(float)


@pytest.mark.parametrize("balance", [-0.8, 0.0, 0.6])
def test_a_planted_balance_point_is_found(balance):
    x, y = planted(balance)
    assert balance_point(x, y) == pytest.approx(balance, abs=0.15) and isotonic_crossing(x, y) == pytest.approx(
        balance, abs=0.3
    )


def test_a_curve_that_never_crosses_has_no_balance_point():
    x, _ = planted(0.0)
    assert math.isnan(balance_point(x, (x < 9).astype(float) * 0.9)) and math.isnan(
        isotonic_crossing(x, np.ones_like(x))
    )
    assert math.isnan(balance_point(*[planted(0.0)[0], 1 - planted(0.0)[1]])), "a rising curve"


def test_the_isotonic_curve_is_the_nearest_decreasing_one():
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 0.0, 1.0, 0.0])
    grid = np.linspace(0, 1, 11)
    best = min(
        (c for c in product(grid, repeat=4) if all(a >= b for a, b in pairwise(c))),
        key=lambda c: ((np.array(c) - y) ** 2).sum(),
    )
    assert isotonic(x, y)[1].tolist() == pytest.approx(list(best))


def rows_of(x: np.ndarray, text: np.ndarray, known: np.ndarray | None = None, control: str | None = None) -> list[dict]:
    rows = []
    for i in range(len(x)):
        near, scale = abs(x[i]) < 0.5, 1 + i % 3
        values = {
            "H_v": scale * (1 - x[i] / 2),
            "H_t": scale * (1 + x[i] / 2),
            "dH_rel": x[i],
            "known": 1.0 if known is None else known[i],
            "text": text[i],
            "confidence": 0.5,
            "oscillations": 2.0 * near,
        }
        about = {"sample": f"{control}{i // 2}", "form": f"order{i % 2}", **({"control": control} if control else {})}
        rows += [{**about, "metric": k, "layer": None, "value": float(v)} for k, v in values.items()]
        rows += [{**about, "metric": "logit_difference", "layer": layer, "value": float(layer)} for layer in range(3)]
    return rows


def told(rows: list[dict]):
    summary = CLS(CLS.Params(draws=100)).summary(rows)
    json.dumps(summary.record(), allow_nan=False)
    return summary


def test_the_summary_tells_the_balance_with_its_interval_and_tests_the_law():
    x, y = planted(0.3)
    summary = told(rows_of(x, y) + rows_of(np.zeros(6), np.ones(6), control="irrelevant_text"))
    balance = next(f for f in summary.findings if f.text.startswith("balance point"))
    low, high = balance.values["interval"]
    assert low < 0.3 < high and high - low < 0.5 and "leans to text" in balance.text
    assert [f.holds for f in summary.findings if f.holds is not None] == [True, True, True]
    assert any("control 'irrelevant_text'" in f.text and "6 prompts" in f.text for f in summary.findings)
    assert {t.name for t in summary.tables} == {"following_curve", "oscillations"} and len(summary.figures) == 2
    assert sum(r[1] for r in next(t for t in summary.tables if t.name == "following_curve").rows) == 600


def test_the_summary_draws(tmp_path):
    from matplotlib.figure import Figure

    for figure in told(rows_of(*planted(0.3, 80))).figures:
        canvas = Figure(figsize=figure.size)
        figure.draw(canvas)
        canvas.savefig(tmp_path / f"{figure.name}.png", dpi=20)


def test_only_conflicts_known_from_either_modality_count():
    x, y = planted(0.3)
    rng = np.random.default_rng(1)
    known = (rng.random(600) < 0.5).astype(float)
    y = np.where(known == 1, y, 1 - y)
    summary = told(rows_of(x, y, known))
    assert f"{int(known.sum())} of 600" in summary.findings[0].text and summary.findings[1].holds


def test_none_in_range_and_too_few_are_said():
    x, _ = planted(0.0, 80)
    follows = (np.random.default_rng(5).random(80) < 0.9).astype(float)
    assert any(
        "none in range" in f.text and "text throughout" in f.text
        for f in told(rows_of(x, np.maximum(follows, x > 0))).findings
    )
    assert any("balance point is unknown" in f.text for f in told(rows_of(x[:4], follows[:4])).findings)
    assert any("balance point is unknown" in f.text for f in told([]).findings)


def test_it_works_on_the_colour_set_with_its_controls():
    benchmark = Scenes(ScenesParams(scoring="open_ended", colors=ColorSet(train=2, dev=2, test=4, controls=1)))
    rows = CLS(CLS.Params()).on_samples(Bench(tiny_view(), benchmark, 1, 2), benchmark.samples("test"))
    assert {r.get("control") for r in rows} == {None, "irrelevant_text", "irrelevant_image"} and len(
        {r["sample"] for r in rows}
    ) == 6
    told([{**r, "split": "test"} for r in rows])


def test_association_by_counting_pairs():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[label] for b in score[~label]]
    assert auroc(score, label) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc(score, np.ones(40, bool)))
    x, y = rng.normal(size=30), rng.normal(size=30)
    d = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
    assert spearman(x, y) == pytest.approx(1 - 6 * (d**2).sum() / (30 * (900 - 1))) and math.isnan(
        spearman(x, np.full(30, np.inf))
    )


def test_the_bootstrap_keeps_clusters_together_and_covers():
    values = np.repeat([0.0, 1.0], 20)
    drawn = bootstrap(lambda i: values[i].mean(), ["a"] * 20 + ["b"] * 20, 200)
    assert set(drawn.tolist()) == {0.0, 0.5, 1.0}
    low, high = interval(bootstrap(lambda i: values[i].mean(), range(40), 500))
    assert low < 0.5 < high and 0.2 < high - low < 0.45
    assert interval(np.array([np.nan, np.nan, 1.0])) is None

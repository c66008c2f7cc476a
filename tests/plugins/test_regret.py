"""Parts of ``diagnostic: regret`` against plain loops and planted effects: RDS, groups, GIC, probes, curve, rows."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from factory.registry import lookup
from factory.statistics.association import auroc
from plugins.diagnostics.regret.curve import best_m, m_depth, scatter_ratio, shape
from plugins.diagnostics.regret.keywords import OURS, RELEASED, Keyword, Keywords
from plugins.diagnostics.regret.measure import Measured
from plugins.diagnostics.regret.neurons import GROUPS, VALUES, gic, groups, impacts, rds
from plugins.diagnostics.regret.probe import (
    Mlp,
    auroc_within,
    aurocs_within,
    balanced_accuracies,
    balanced_accuracy,
    fit_linear,
    folds,
    held_out,
    resampled,
)

Regret = lookup("diagnostic", "regret")
PLANTED = 7


def drawn(n: int = 80, units: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """States of no meaning, but for one unit that is high in regret."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 5 < 2
    x = torch.randn(n, units, generator=rng)
    x[y, PLANTED % units] += 3
    return x, y


def test_rds_is_the_released_ratio_and_scaled_the_same_of_units_in_0_to_1():
    x, y = drawn(12, 4)
    for unit in range(4):
        r = [float(v) for v, label in zip(x[:, unit], y, strict=True) if label]
        n = [float(v) for v, label in zip(x[:, unit], y, strict=True) if not label]
        plain = np.mean(r) / (np.mean(r) + np.mean(n) + 1e-8)
        assert float(rds(x[y], x[~y], scaled=False)[unit]) == pytest.approx(plain, rel=1e-5)
        low, high = min(r + n), max(r + n)
        r, n = ([(v - low) / (high - low) for v in values] for values in (r, n))
        scaled = np.mean(r) / (np.mean(r) + np.mean(n))
        assert float(rds(x[y], x[~y], scaled=True)[unit]) == pytest.approx(scaled, rel=1e-5)


def test_a_unit_that_never_varies_has_a_number():
    x, y = drawn(12, 4)
    x[:, 1] = 5
    assert torch.isfinite(rds(x[y], x[~y], True)).all()


@pytest.mark.parametrize("tau", [0.01, 0.5, 2.0])
def test_groups_are_what_lies_tau_deviations_from_the_mean(tau):
    scores = torch.tensor([0.1, 0.4, 0.5, 0.5, 0.6, 0.9, 0.45]).double()
    mu = sum(scores.tolist()) / 7
    sigma = math.sqrt(sum((s - mu) ** 2 for s in scores.tolist()) / 7)
    for score, group in zip(scores.tolist(), groups(scores, tau).tolist(), strict=True):
        wanted = "RegretD" if score > mu + tau * sigma else "NonRegretD" if score < mu - tau * sigma else "DualD"
        assert GROUPS[group] == wanted


def test_gic_is_equation_3():
    assert gic(0.6, [0.6], 0.8) == pytest.approx(0.75)
    assert gic(0.5, [0.6, 0.8], 0.9) == pytest.approx(0.5 / 0.7)


@pytest.mark.parametrize("scaled", [True, False])
def test_impacts_are_those_of_a_plain_loop_over_folds_groups_and_values(scaled):
    x, y = drawn(40, 6)
    fold = folds([str(i // 2) for i in range(40)], 2, 0)
    fit = partial(fit_linear, ridge=1e-2)
    probes = {k: fit(x[fold != k], y[fold != k]) for k in range(2)}
    found = {(i.tau, i.value, i.names): i for i in impacts(x, y, fold, fit, (0.2, 1.0), 3, scaled, 0)}
    assert len(found) == 2 * 3 * 6

    def accuracy(names: tuple[str, ...], tau: float, value: str) -> float:
        right: dict[bool, list[bool]] = {True: [], False: []}
        for k in range(2):
            train = [i for i in range(40) if fold[i] != k]
            scores = rds(x[[i for i in train if y[i]]], x[[i for i in train if not y[i]]], scaled).tolist()
            mu, sigma = np.mean(scores), np.std(scores)
            for i in range(40):
                if fold[i] != k:
                    continue
                state = x[i].clone()
                for unit, score in enumerate(scores):
                    is_r, is_n = score > mu + tau * sigma, score < mu - tau * sigma
                    name = "RegretD" if is_r else "NonRegretD" if is_n else "DualD"
                    if name in names:
                        state[unit] = x[train, unit].mean() if value == "mean" else float(value)
                right[bool(y[i])].append((float(probes[k](state[None])[0]) > 0) == bool(y[i]))
        return (np.mean(right[True]) + np.mean(right[False])) / 2

    for tau in (0.2, 1.0):
        for value in VALUES:
            for names in (("RegretD",), ("RegretD", "DualD")):
                mine, whole = found[tau, value, names], accuracy((), tau, value)
                combined = accuracy(names, tau, value)
                assert mine.accuracy == pytest.approx(combined)
                alone = [accuracy((name,), tau, value) for name in names]
                wanted = combined / whole if len(names) == 1 else combined / (sum(alone) / len(alone))
                assert mine.gic == pytest.approx(wanted)
                assert len(mine.random) == 3


def test_a_planted_unit_ranks_first_and_its_group_does_what_random_ones_do_not():
    x, y = drawn(200, 24)
    scores = rds(x[y], x[~y], True)
    assert int(scores.argmax()) == PLANTED and groups(scores, 0.5)[PLANTED] == 0
    fold = folds([str(i) for i in range(200)], 5, 0)
    found = list(impacts(x, y, fold, partial(fit_linear, ridge=1e-2), (1.0,), 20, True, 0))
    for value in VALUES:
        own = next(i for i in found if i.names == ("RegretD",) and i.value == value)
        assert own.gic < own.random.mean() - 1.5 * own.random.std() and own.gic < 0.75


def slow_logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Gradient descent on the loss as it is written, both classes weighed to one half."""
    w, b = np.zeros(x.shape[1]), 0.0
    weights = [0.5 / (y.sum() if label else (~y).sum()) for label in y]
    for _ in range(6000):
        gw, gb = ridge * w, 0.0
        for row, label, c in zip(x, y, weights, strict=True):
            sign = 1 if label else -1
            pull = -sign * c / (1 + math.exp(sign * (row @ w + b)))
            gw, gb = gw + pull * row, gb + pull
        w, b = w - 1.0 * gw, b - 1.0 * gb
    return w, b


def test_the_linear_probe_is_the_minimum_that_gradient_descent_finds():
    x, y = drawn(16, 3)
    z = (x - x.mean(0)) / x.std(0, unbiased=False)
    w, b = slow_logistic(z.double().numpy(), y.numpy(), 0.1)
    assert np.allclose(fit_linear(x, y, 0.1)(x).numpy(), z.double().numpy() @ w + b, atol=1e-4)


def test_the_mlp_probe_learns_is_seeded_and_leaves_the_draws_alone():
    x, y = drawn(120, 10)
    both = torch.cat([x, x.flip(0)]), torch.cat([y, y.flip(0)])
    small = Mlp(hidden=(16, 8), learning_rate=1e-2, epochs=40)
    before = torch.get_rng_state()
    first, again = (small.fit(*both)(x) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)
    assert balanced_accuracy(first.numpy(), y.numpy()) > 0.9
    shapes = Mlp().hidden, Mlp().learning_rate, Mlp().weight_decay, Mlp().epochs, Mlp().batch_size
    assert shapes == ((2048, 1024, 512), 1e-4, 0.01, 100, 256)  # SPEC 7.8


def test_no_row_of_an_item_is_seen_where_the_item_is_held_out():
    items = [str(i // 3) for i in range(60)]
    fold = folds(items, 5, 0)
    for item in set(items):
        assert len({int(k) for k, name in zip(fold, items, strict=True) if name == item}) == 1
    assert fold.bincount().tolist() == [12] * 5
    # states that name their item and nothing else: a probe that saw the item would be perfect
    y = torch.tensor([int(i) % 2 == 0 for i in items])
    x = torch.eye(20)[[int(i) for i in items]]
    score = held_out(x, y, fold, partial(fit_linear, ridge=1e-3))
    assert balanced_accuracy(score.numpy(), y.numpy()) < 0.6
    assert balanced_accuracy(fit_linear(x, y, 1e-3)(x).numpy(), y.numpy()) == 1


def test_auroc_within_counts_pairs_of_one_cell_alone():
    rng = np.random.default_rng(0)
    cell = np.array(["a", "b"]).repeat(20)
    label = np.concatenate([rng.random(20) < 0.8, rng.random(20) < 0.2])
    score = rng.normal(size=40) + 5 * (cell == "a")
    wins = pairs = 0.0
    for i in range(40):
        for j in range(40):
            if label[i] and not label[j] and cell[i] == cell[j]:
                wins, pairs = wins + (score[i] > score[j]), pairs + 1
    assert auroc_within(score, label, cell) == pytest.approx(wins / pairs)
    assert auroc(score, label) > auroc_within(score, label, cell) + 0.1
    counts = resampled([str(i // 2) for i in range(40)], 5, 0)
    for found, rightly, count in zip(
        aurocs_within(score, label, cell, counts), balanced_accuracies(score, label, counts), counts, strict=True
    ):
        rows = np.arange(40).repeat(count.astype(int))
        assert found == pytest.approx(auroc_within(score[rows], label[rows], cell[rows]))
        told = score[rows] > 0
        shares = [(told == side)[label[rows] == side].mean() for side in (True, False)]
        assert rightly == pytest.approx(np.mean(shares))
    assert counts[0].tolist() == [1] * 40 and all(count[0::2].tolist() == count[1::2].tolist() for count in counts)


def test_the_scatter_ratio_is_that_of_a_plain_loop_and_of_counted_rows():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, 5, generator=rng), torch.arange(12) < 5
    counts = torch.tensor([[1] * 12, [2, 0, 1, 1, 3, 0, 1, 1, 1, 2, 0, 1]])
    found = scatter_ratio(x, y, counts)
    for draw, count in enumerate(counts.tolist()):
        rows = [i for i, n in enumerate(count) for _ in range(n)]
        for layer in range(3):
            r = [x[i, layer].double() for i in rows if y[i]]
            n = [x[i, layer].double() for i in rows if not y[i]]
            means = [sum(part) / len(part) for part in (r, n)]
            within = sum(
                sum(float((v - mean) @ (v - mean)) for v in part) / len(part)
                for part, mean in zip((r, n), means, strict=True)
            )
            apart = float((means[0] - means[1]) @ (means[0] - means[1]))
            assert float(found[draw, layer]) == pytest.approx(math.log(apart / within), abs=1e-3)


def layered(shape_of: list[float], n: int = 300) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """States whose classes lie ``shape_of`` [layers] apart."""
    rng = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 2 == 0
    x = torch.randn(n, len(shape_of), 8, generator=rng)
    x[y] += torch.tensor(shape_of)[None, :, None]
    return x, y, [str(i) for i in range(n)]


def test_an_m_is_found_where_there_is_one_and_not_where_the_curve_only_rises_or_is_flat():
    m = shape(*layered([0.3, 1.5, 0.3, 1.5, 0.3]), draws=100, seed=0)
    assert m.layers == (1, 2, 3) and m.m_between is not None and m.m_between[0] > 0.5
    rising = shape(*layered([0.2, 0.4, 0.8, 1.2, 1.6]), draws=100, seed=0)
    assert rising.m_between is not None and rising.m_between[1] < 0 and rising.rises == pytest.approx(1)
    flat = shape(*layered([0.5] * 7), draws=100, seed=0)
    assert flat.m_between is not None and flat.m_between[0] < 0
    assert max(m.floor) < min(m.curve) - 1, "shuffled labels lie together"
    assert best_m(np.array([0.0, 1.0, 0.0, 1.0])) is None
    assert m_depth(np.array([0.0, 3.0, 1.0, 2.0, 0.5]), (1, 2, 3)) == 1.0


def test_words_are_found_whole_the_longest_first_with_their_severity_and_place():
    ours = Keywords(OURS)
    assert ours.first("It is red. I APOLOGIZE, it is blue") == Keyword("i apologize", "moderate", 11)
    assert ours.first("You’re right, I was wrong") == Keyword("you're right", "moderate", 0)
    assert ours.first("The lorry is sorrylike") is None
    released = Keywords(RELEASED)
    assert released.first("regretfully retract") == Keyword("regretfully retract", "severe", 0)
    assert released.first("It is incorrect")[0] == "incorrect"  # not "correct"
    assert sum(map(len, RELEASED.values())) == 97 and len(released.severity) == 97


def measured(**params: Any) -> list[dict[str, Any]]:
    """Rows of planted dialogues: block 2 tells regret from two tokens ahead on, block 0 the task, block 1 nothing."""
    n, rng = 160, torch.Generator().manual_seed(3)
    words = ("i apologize", "sorry")
    back = [i % 5 < 2 for i in range(n)]
    dialogue = lambda i: SimpleNamespace(
        sample=SimpleNamespace(id=str(i // 2)), kind="hint", toward=("vision", "text")[i % 2]
    )
    replies = [
        SimpleNamespace(
            dialogue=dialogue(i),
            act="back" if back[i] else "stays",
            keyword=Keyword(words[(i // 2) % 2], "mild", 4) if back[i] or i % 3 == 0 else None,
            token=3,
            ids=(5, 6, 7, 8, 9),
        )
        for i in range(n)
    ]
    states = torch.randn(n, 4, 3, 16, generator=rng)
    y = torch.tensor(back)
    states[y, :3, 2, PLANTED] += 4
    first = torch.randn(n, 3, 16, generator=rng)
    odds = torch.zeros(n, 4)
    odds[:, 1] = y.float()
    p = Regret.Params(before=3, resamples=50, folds=4, taus=(0.5,), draws=20, **params)
    return list(Measured(p, replies, [3] * n, states, odds, first, 2).rows())


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return measured()


def value(rows: list[dict[str, Any]], metric: str, **facts: Any) -> float:
    (found,) = (r for r in rows if r["metric"] == metric and all(r[k] == v for k, v in facts.items()))
    return found["value"]


def test_probes_find_the_planted_block_and_unit_and_nothing_elsewhere(rows):
    for contrast in ("stays", "first", "same_word"):
        assert value(rows, "probe_auroc", contrast=contrast, layer=2) > 0.97
        assert 0.3 < value(rows, "probe_auroc", contrast=contrast, layer=1) < 0.7
    assert max((r for r in rows if r["metric"] == "rds"), key=lambda r: r["value"])["unit"] == PLANTED
    (own,) = (r for r in rows if r["metric"] == "gic" and r["group"] == "RegretD" and r["deactivated"] == "mean")
    assert own["value"] < own["random"] - own["random_sd"] and own["random_below"] < 0.2


def test_early_signs_end_where_they_were_planted_and_the_baselines_know_what_they_know(rows):
    told = lambda before, source: value(rows, "early_auroc", before=before, source=source)
    assert told(2, "probe") > 0.97 and 0.3 < told(3, "probe") < 0.7
    assert told(1, "logit") == 1 and told(2, "logit") == 0.5
    assert told(0, "keyword") > 0.6 and told(1, "keyword") == 0.5
    assert 0.3 < told(1, "words") < 0.7  # all answers have the same tokens
    assert value(rows, "early_by_layer", before=0, layer=2) == pytest.approx(told(0, "probe"))


def test_a_planted_sign_goes_over_to_other_words_and_answers_can_be_told_by_words(rows):
    assert value(rows, "transfer_auroc", trained="sorry", tested="i apologize") > 0.97
    by_words = measured(label="keyword")
    n = {r["what"]: r["value"] for r in by_words if r["metric"] == "positives"}
    assert n["regret"] > 64 and n["regret"] + n["none"] == 160
    assert value(by_words, "early_auroc", before=0, source="keyword") == 1


def test_too_few_are_counted_and_no_probe_is_held_out():
    p = Regret.Params()
    few = SimpleNamespace(
        dialogue=SimpleNamespace(sample=SimpleNamespace(id="a"), kind="hint", toward="vision"),
        act="back",
        keyword=None,
        token=None,
        ids=(1,),
    )
    found = list(Measured(p, [few], [0], torch.zeros(1, 6, 2, 4), torch.zeros(1, 6), torch.zeros(1, 2, 4), 1).rows())
    assert [(r["metric"], r["value"]) for r in found] == [("positives", 1.0), ("positives", 0.0)]
    told = Regret(p).summary([{**r, "split": "test"} for r in found])
    assert told is not None and "None of 0" in told.findings[0].text

"""Influence of training prompts on a steering's network and on a probe, against training again and slow references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from factory.data.prompt import Role
from factory.diagnose import Known
from factory.errors import UserError
from factory.recipe import loads
from factory.registry import lookup
from factory.statistics.association import auroc, spearman
from factory.steer import States, Steering, steer
from factory.steer.regressor import NAMES, RegressorParams, each_loss, fit_g
from plugins.diagnostics.influence.learners import Network, Probe, margin_of, slope
from tests.anchor import scenes_bench
from tests.contract.cases import known, random_states

N, D = 48, 8
NET = {
    "hidden": 3,
    "learning_rate": 1e-2,
    "epochs": 800,
    "batch_size": N,
    "schedule": "cosine",
    "warmup": 0,
    "validation": 0,
    "keep": "last",
    "weight_decay": 0.05,
}


def some_states(seed: int, n: int = N) -> States:
    """States whose difference is a direction that they share and one that depends on the state, with noise."""
    rng, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(9)
    base = torch.randn(n, D, generator=rng)
    push = torch.randn(D, generator=shared) + torch.tanh(base[:, :3]) @ torch.randn(3, D, generator=shared)
    noise = 0.3 * torch.randn(2, n, D, generator=rng)
    return States("vision", base, push + noise[0], -push + noise[1], {}, ["a"] * n, 0)


def network(of: str = "l2s", **net: Any) -> Network:
    cls = lookup("steering", of)
    method, held_out = cls(cls.Params.model_validate({"net": NET | net})), some_states(1)
    h, v = held_out.base.double(), method.targets(held_out).double()
    return Network(method, some_states(0), lambda theta: each_loss(theta, h, v, method.net).mean(), 4)


@pytest.mark.parametrize("more", [{}, {"loss": "l2s_code"}, {"batch_size": 8, "optimizer": "sam"}, {"balance": "task"}])
def test_a_prompt_of_weight_0_teaches_nothing_and_weights_are_relative(more):
    states, params = some_states(0), RegressorParams.model_validate(NET | {"epochs": 5, "init": "random"} | more)
    v, tasks = states.toward - states.away, ["a", "b"] * (N // 2)
    learn = lambda v, weights: fit_g(states.base, v, params, 0, tasks, weights)
    same = lambda a, b: all(torch.allclose(a[k], b[k], atol=1e-6) for k in NAMES)
    plain, ones = learn(v, None), torch.ones(N)
    assert same(learn(v, ones), plain)
    assert params.batch_size < N or same(learn(v, 3 * ones), plain)
    ones[7] = 0
    other = v.clone()
    other[7] = 100
    assert same(learn(other, ones), learn(v, ones)) and not same(learn(v, ones), plain)
    assert not same(learn(other, None), plain)


@pytest.mark.parametrize("loss", ["mse", "l2s_code"])
def test_a_network_s_losses_are_what_it_is_trained_on(loss):
    net = network(loss=loss, epochs=3)
    w = net.fit(None, None)
    theta = net.theta(w)
    predicted = torch.tanh(net.h.double() @ theta["encoder.weight"].T + theta["encoder.bias"])
    apart = predicted @ theta["decoder.weight"].T - net.v.double()
    truth = apart.square().mean(1)
    if loss == "l2s_code":
        cosine = F.cosine_similarity(apart + net.v.double(), net.v.double(), dim=1)
        truth = truth + apart.abs().mean(1) - 0.1 * cosine
    assert torch.allclose(net.trained(w, None).losses(w, torch.arange(N)), truth[net.taught])


def test_amps_is_taught_its_scaled_targets():
    cls = lookup("steering", "amps")
    method, states = cls(cls.Params(beta=0.5, beta_policy="fixed", anchor="global")), random_states()
    r = states.measured["R_V"]
    s = (1 + 0.5 * (r - r.mean()) / r.mean()).clamp(0, 2)
    assert torch.allclose(method.targets(states), s[:, None] * (states.toward - states.away), atol=1e-5)


@pytest.mark.parametrize("apply_to", ["all", "last_and_generated"])
def test_the_margin_is_that_of_whole_prompts_one_by_one_and_so_is_its_slope(apply_to):
    bench, samples = scenes_bench()
    samples, states = samples[:3], random_states()
    cls = lookup("steering", "l2s")
    method = cls(cls.Params.model_validate({"net": {"hidden": 3, "epochs": 2}, "apply_to": apply_to}))
    state = method.fit(states)
    net = Network(method, states, margin_of(bench, method, state, samples, "vision", 2.0, 2), 2)
    w = net.fit(None, None)

    def slowly(w: torch.Tensor) -> float:
        own = {name: t.float() for name, t in net.theta(w).items()}
        steering = Steering(method, own, method.placed(own, bench.layer), 2.0)
        total = 0.0
        for sample in samples:
            for side, sign in (("vision", 1), ("text", -1)):
                batch = bench.view.encode([bench.benchmark.example(sample, "open", side)])
                with torch.no_grad(), steer(bench.view, steering):
                    p = bench.view.model(**batch).logits[0].double().log_softmax(-1)
                said = (batch.roles[0] == Role.ANSWER).nonzero()[:, 0].tolist()
                total += sign * float(sum(p[t - 1, batch.input_ids[0, t]] for t in said))
        return total / len(samples)

    assert float(net.score(w)) == pytest.approx(slowly(w), abs=1e-4)
    gradient = slope(net, w)
    step = 0.0005 * gradient / gradient.norm()
    assert float(gradient @ step) == pytest.approx((slowly(w + step) - slowly(w - step)) / 2, rel=0.05)


def told(states: Mapping[str, States], **params: Any) -> tuple[Any, list[dict[str, Any]]]:
    """The diagnostic and its rows, of prompts of one form with given states."""
    bench, samples = scenes_bench()
    few = [type(samples[0])(**{**vars(samples[0]), "id": f"s{i}"}) for i in range(len(states["train"].base))]
    cls = lookup("diagnostic", "influence")
    diagnostic = cls(cls.Params.model_validate({"score": "error", "damping": 0.0, **params}))
    diagnostic.acquaint(Known({"train": few, "dev": few}, lambda direction, split: states[split], 0))
    return diagnostic, [{**row, "split": "train"} for row in diagnostic.on_samples(bench, few)]


def of(rows: list[dict[str, Any]], metric: str) -> dict[str, float]:
    return {row["sample"]: row["value"] for row in rows if row["metric"] == metric}


@pytest.fixture(scope="module")
def found():
    states = {"train": some_states(0), "dev": some_states(1)}
    net = NET | {"optimizer": "sam", "rho": 0.05}
    return told(states, of={"type": "l2s", "net": net}, retrainings=16, removed=0.1, draws=3)


def test_a_network_s_influences_are_what_training_again_shows(found):
    _, rows = found
    truth = of(rows, "left_out")
    assert len(truth) == 16
    for form, least in (("total", 0.9), ("frozen", 0.8), ("plain", 0.8), ("trajectory", 0.3)):
        adds = of(rows, form)
        assert len(adds) == N
        assert spearman(np.array([adds[k] for k in truth]), np.array(list(truth.values()))) > least
    assert of(rows, "residual.total")["s0"] < 1e-8 and of(rows, "end.moves")["s0"] < 1


def test_what_is_planted_is_found_and_groups_do_what_was_told(found):
    _, rows = found
    planted = of(rows, "planted")
    assert sum(planted.values()) == round(0.1 * N)
    harm = of(rows, "harm.total")
    assert auroc(np.array([harm[k] for k in planted]), np.array(list(planted.values()))) > 0.95
    groups = {row["group"]: {} for row in rows if row["group"]}
    for row in rows:
        if row["group"]:
            groups[row["group"]][row["metric"]] = row["value"]
    assert set(groups) == {"top", "bottom", "random 0", "random 1", "random 2"}
    random = [g["group.adds"] for name, g in groups.items() if name.startswith("random")]
    assert groups["top"]["group.adds"] > max(random) and groups["bottom"]["group.adds"] < min(random)
    assert all(g["group.edit_error"] < 0.5 for g in groups.values())
    assert all(abs(g["group.edited"] - g["group.adds"]) < 0.5 * abs(g["group.adds"]) + 0.01 for g in groups.values())


def test_the_summary_leads_with_who_adds_and_who_takes(found):
    diagnostic, rows = found
    summary = diagnostic.summary(rows)
    adds = of(rows, "total")
    most, least = max(adds, key=adds.get), min(adds, key=adds.get)
    first = summary.findings[0]
    assert first.text.startswith(f"{sum(v > 0 for v in adds.values())} of {N} training prompts raise the error on dev")
    assert f"{most} adds most" in first.text and f"{least} takes most" in first.text
    ranks = next(f for f in summary.findings if "Spearman" in f.text)
    truth = of(rows, "left_out")
    expected = spearman(np.array([adds[k] for k in truth]), np.array(list(truth.values())))
    assert ranks.values["n"] == 16 and ranks.values["total"] == pytest.approx(expected)
    assert ranks.values["total_low"] <= expected <= ranks.values["total_high"]
    assert any("AUROC" in f.text for f in summary.findings)
    assert next(f for f in summary.findings if f.text.startswith("trained without")).holds
    assert [row[1] for row in summary.tables[0].rows][:1] == [most] and len(summary.tables[0].rows) == 20
    assert len(summary.figures) == 1


def test_it_warns_where_training_had_not_ended():
    states = {"train": some_states(0, 8), "dev": some_states(1, 8)}
    net = NET | {"epochs": 2, "weight_decay": 0.0}
    diagnostic, rows = told(states, of={"type": "l2s", "net": net}, retrainings=0, removed=0, planted=0, again="anew")
    assert {row["metric"] for row in rows if "." not in row["metric"]} == {"plain", "trajectory", "score"}
    texts = [f.text for f in diagnostic.summary(rows).findings]
    assert "not to be trusted here: training had not ended" in texts[1]


def test_a_held_out_prompt_teaches_nothing():
    states = {"train": some_states(0, 10), "dev": some_states(1, 10)}
    net = NET | {"epochs": 5, "validation": 0.2}
    _, rows = told(states, of={"type": "l2s", "net": net}, retrainings=10, removed=0, planted=0, again="anew")
    held_out = {k for k, v in of(rows, "plain").items() if np.isnan(v)}
    assert len(held_out) == 2 and set(of(rows, "left_out")) == set(of(rows, "plain")) - held_out


def test_a_probe_s_influences_are_what_training_again_shows():
    states = {"train": some_states(0), "dev": some_states(1)}
    _, rows = told(states, what="probe", retrainings=N, removed=0.1, draws=2, planted=0.2)
    truth, adds = of(rows, "left_out"), of(rows, "plain")
    assert spearman(np.array([adds[k] for k in truth]), np.array(list(truth.values()))) > 0.99
    planted, harm = of(rows, "planted"), of(rows, "harm.plain")
    assert auroc(np.array([harm[k] for k in planted]), np.array(list(planted.values()))) > 0.9


def test_a_probe_is_trained_to_its_end():
    probe = Probe(some_states(0), some_states(1), 0.1)
    weights = torch.ones(N)
    weights[3] = 0
    w = probe.fit(weights, None).requires_grad_()
    kept = [x[weights.bool()] for x in probe.pairs]
    loss = (F.softplus(-(kept[0] @ w)).mean() + F.softplus(kept[1] @ w).mean()) / 2 + 0.05 * w @ w
    assert torch.autograd.grad(loss, w)[0].norm() < 1e-8


def test_dattri_tells_the_plain_form_too():
    pytest.importorskip("dattri")
    states = {"train": some_states(0), "dev": some_states(1)}
    _, rows = told(states, what="probe", ridge=0.1, retrainings=0, removed=0, planted=0, dattri=["explicit", "cg"])
    plain = of(rows, "plain")
    for solver in ("explicit", "cg"):
        assert of(rows, f"dattri.{solver}") == pytest.approx(plain, rel=1e-4)
        assert of(rows, f"residual.dattri.{solver}")["s0"] < 1e-6


def test_dattri_s_linear_score_is_that_of_trainings_on_halves():
    pytest.importorskip("dattri")
    states = {"train": some_states(0), "dev": some_states(1)}
    diagnostic, rows = told(states, what="probe", ridge=0.1, retrainings=0, removed=0, planted=0, subsets=12)
    told_to_add = torch.tensor(list(of(rows, "plain").values()))
    rng, sums, truth = torch.Generator().manual_seed(2), [], []
    for _ in range(12):
        kept = torch.randperm(N, generator=rng)[: N // 2]
        few = some_states(0)
        few = replace(few, base=few.base[kept], toward=few.toward[kept], away=few.away[kept], tasks=["a"] * len(kept))
        probe = Probe(some_states(0), states["dev"], 0.1)  # scales states by those of all prompts
        probe.pairs, probe.taught = probe._read(few), torch.arange(len(kept))
        truth.append(float(probe.score(probe.fit(None, None))))
        sums.append(float(told_to_add[kept].sum()))
    expected = spearman(np.array(sums), np.array(truth))
    assert of(rows, "lds.plain")["s0"] == pytest.approx(expected, abs=1e-6)
    finding = next(f for f in diagnostic.summary(rows).findings if "linear datamodelling score" in f.text)
    assert finding.values["plain_low"] <= expected <= finding.values["plain_high"] and finding.values["n"] == 12


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{type: influence, of: static}", "needs a method with a trained network, as l2s or amps; got 'static'"),
        ("{type: influence, of: {type: l2s, net: {balance: task}}}", "has no loss of each sample"),
        ("{type: influence, what: probe}", "a probe steers nothing: its score is 'error'"),
    ],
)
def test_what_it_cannot_tell_is_refused_when_the_recipe_is_read(node, message):
    text = f"{{name: r, model: {{zoo: tiny}}, data: scenes, steering: [none], diagnostics: [{node}]}}"
    with pytest.raises(UserError, match=message):
        loads(text)


def test_without_a_run_it_says_what_it_needs():
    bench, samples = scenes_bench()
    cls = lookup("diagnostic", "influence")
    with pytest.raises(UserError, match="needs the run's training samples"):
        cls(cls.Params()).on_samples(bench, samples)
    without = cls(cls.Params.model_validate({"of": {"type": "amps", "net": {"epochs": 1}}}))
    of_run = known(samples)
    unmeasured = lambda direction, split: replace(of_run.states(direction, split), measured={})
    without.acquaint(of_run._replace(states=unmeasured))
    with pytest.raises(UserError, match="amps needs R_V of each training prompt"):
        without.on_samples(bench, samples)

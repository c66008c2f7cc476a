"""What stands beside a steering table: every method's vectors turned at random, and strengths matched at equal KL."""

from __future__ import annotations

import json
import math

import pytest
import torch

from factory.cli import main
from factory.registry import Params, lookup
from factory.steer import Context, Steerer, steer
from factory.steer.turned import Turned, turn
from tests.tiny import saved_tiny, tiny_view

RECIPE = """\
name: beside
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 2, dev: 1, test: 1}}}}
steering: [none, instruction, static, vcd, {{type: dose, doses: [1, 2], of: static}}]
evaluate: {{strengths: [1, 8], max_new_tokens: 2, batch_size: 8, controls: [], kl_budget: {budget}, random_control: 5}}
run: {{root: {root}}}
report: {{plots: false}}
"""


class Given(Steerer):
    """Vectors W h."""

    def delta(self, h, state, ctx):
        return h @ state["W"]


def test_turned_vectors_are_as_long_and_point_anywhere():
    h = torch.randn(400, 48, generator=torch.Generator().manual_seed(0))
    W = torch.randn(48, 48, generator=torch.Generator().manual_seed(1))
    W[:, :24] = 0
    own = h @ W
    turned = [Turned(Given(Params())).delta(h, {"W": W, **turn(48, seed)}, Context(1)) for seed in (0, 1)]
    for r in turned:
        assert torch.allclose(r.norm(dim=-1), own.norm(dim=-1), rtol=1e-5)
        assert abs(float(torch.cosine_similarity(r, own, dim=-1).mean())) < 0.2
    assert abs(float(torch.cosine_similarity(*turned, dim=-1).mean())) < 0.2, "another seed, another direction"
    many = [Turned(Given(Params())).delta(h[:1], {"W": W, **turn(48, seed)}, Context(1))[0] for seed in range(300)]
    mean = torch.stack(many).mean(0).norm() / own[0].norm()
    assert float(mean) < 3 / math.sqrt(300), "no direction is preferred"
    assert Turned(Given(Params())).delta(h * 0, {"W": W, **turn(48, 0)}, Context(1)).abs().max() == 0
    inner = lookup("steering", "l2s")(lookup("steering", "l2s").Params(apply_to="last_and_generated"))
    assert Turned(inner).where() == inner.where()


def slow_kl(view, prompts, steering=()):
    """Mean KL(p_s || p_0) of each prompt's first token, one prompt and one token of the vocabulary at a time."""
    total = 0.0
    for prompt in prompts:
        batch, p = view.encode([prompt]), []
        for own in ((), steering):
            with torch.no_grad(), steer(view, own):
                p.append(view.model(**batch).logits[0, -1].double().softmax(-1).tolist())
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(*p, strict=True))
    return total / len(prompts)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("beside")
    recipe = root / "beside.yaml"
    recipe.write_text(RECIPE.format(folder=saved_tiny(root / "model"), root=root / "runs", budget=0.2))
    assert main([str(recipe)]) == 0
    return root / "runs/beside", recipe


def tables(run):
    found = json.loads((run[0] / "results.json").read_text())["diagnostics"]
    return {
        name: [dict(zip(t["columns"], row, strict=True)) for row in t["rows"]]
        for name, d in found.items()
        for t in d["tables"]
    }


def test_every_method_that_adds_vectors_stands_beside_itself_turned(run, capsys):
    rows = tables(run)["beside-random"]
    assert {(r["toward"], r["method"]) for r in rows} == {
        (way, method) for way in ("vision", "text") for method in ("static", "dose")
    }
    assert all(r["questions"] == 5 and 0 <= r["from"] <= r["turned: follows"] <= r["to"] <= 1 for r in rows)
    page = (run[0] / "report/index.html").read_text()
    assert "A random direction" in page and "Strengths at equal KL" in page
    assert main(["verify", str(run[0])]) == 0
    assert " 0 numbers differ" in capsys.readouterr().out
    before = (run[0] / "results.json").read_text()
    assert main([str(run[1])]) == 0 and (run[0] / "results.json").read_text() == before, "nothing is drawn anew"


def test_strengths_within_the_budget_are_those_of_a_slow_kl(run):
    from factory.recipe import load
    from factory.steer import Steering, artefact

    view = tiny_view()
    benchmark = load(run[1]).data.make().agreeing
    prompts = [benchmark.prompt(s, form) for s in benchmark.samples("dev") for form in benchmark.forms]
    choices = json.loads((run[0] / "results.json").read_text())["run"]["choices"]
    rows = {(r["method"], r["toward"]): r for r in tables(run)["beside-divergence"]}
    assert set(rows) == {(c["method"], c["direction"]) for c in choices} and ("vcd", "text") in rows
    for way in ("vision", "text"):
        row = rows["static", way]
        saved = artefact.load(run[0] / "artefacts" / f"static-{way}", view)
        for strength, told in ((row["strength at equal errors"], "its KL"), (row["strength at equal KL"], "KL")):
            again = Steering(saved.steerer, saved.state, saved.where, strength)
            assert row[told] == pytest.approx(slow_kl(view, prompts, again), rel=1e-3)
        both = {s: slow_kl(view, prompts, Steering(saved.steerer, saved.state, saved.where, s)) for s in (1.0, 8.0)}
        within = [s for s, kl in both.items() if kl <= 0.2]
        assert row["strength at equal KL"] in (within or [min(both, key=both.get)])
    assert any(r["its KL"] > 0 for r in rows.values())

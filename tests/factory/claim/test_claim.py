"""Tests of a claim's run: the planted model is a model, the control wins and its shuffled twin loses, and a run goes
from recipe to verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from factory.cli import main
from factory.model.load import load as load_model
from factory.model.prefix import prefill
from factory.recipe import load
from factory.registry import lookup
from factory.run.claim.draw import Draw, shuffled
from factory.run.claim.entrants import Displaced
from factory.run.claim.numbers import against, corrected
from factory.run.rundir import RunDir
from factory.steer import States, Steering, steer
from tests.tiny import conflict_prompts, saved_tiny, tiny_view

RECIPE = """\
name: claim
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: order1, per_task: {{train: 2, dev: 1, test: 2}}}}
diagnostic: {{type: mcr, draws: 1}}
collect: {{batch_size: 16}}
steering: [{{type: amps, betas: [0, 1], net: {{hidden: 4, epochs: 2}}}}]
evaluate: {{strengths: [1, 4], batch_size: 16, max_new_tokens: 2}}
claim:
  null: beta=0
  share: R_V
  draws: [0, 3]
  scorings: [order1]
  seeds: [0, 1]
  asks: [toward, away]
  looked_at: 0.5
  predictors: [{{type: mcr, as: kl, divergence: kl_xz, draws: 1}}]
  planted: {{law: beta=1, variants: [beta=1], effects: [1]}}
run: {{root: {root}}}
"""


LIMIT = ("--limit", "8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("claim")
    (root / "r.yaml").write_text(RECIPE.format(folder=saved_tiny(root / "model"), root=root / "runs"))
    return root / "r.yaml"


def test_it_runs_from_recipe_to_verdict_and_goes_on(recipe, capsys):
    assert main(["run", str(recipe), "claim.draws=[0]", "claim.seeds=[1]", "report.plots=false", *LIMIT]) == 0
    folder = recipe.parent / "runs" / "claim-limit8"
    first = json.loads((folder / "results.json").read_text())["claim"]
    capsys.readouterr()
    assert main(["run", str(recipe), *LIMIT]) == 0
    said = "".join(capsys.readouterr())
    assert "order1-0-seed1-test: done before" in said and "order1-3-seed1-test: 0/" in said
    told = json.loads((folder / "results.json").read_text())
    claim = told["claim"]
    key = lambda a: (a["scoring"], a["direction"], a["family"], a["about"]["draw"], a["about"]["seed"])
    of = lambda found: {key(a): a["difference"] for a in found["single"]}
    assert of(first).items() <= of(claim).items(), "what was there is not computed anew"
    assert len(claim["pooled"]) == 2 * 2 and len(claim["single"]) == 2 * 2 * 2 * 2
    assert {a["family"] for a in claim["planted"]} == {"learned", "own", "shuffled"}
    assert all(a["n"] == 16 for a in claim["pooled"])
    page = (folder / "report" / "index.html").read_text()
    assert page.index("Does amps beat beta=0?") < page.index("A planted effect")
    [verdict, *_] = told["diagnostics"]["Does amps beat beta=0?"]["findings"]
    assert verdict["text"].split(":")[0] in ("Yes", "No", "Not shown", "In part")
    assert (folder / "report" / "claim-single.csv").is_file()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("claim.null=beta=7", "claim.null: 'amps' has no variant 'beta=7'; it has beta=0, beta=1"),
        ("claim.planted.law=beta", "'amps' has no variant 'beta'"),
        ("claim.scorings=[aloud]", "'scenes' cannot be asked so"),
        ("steering=[l2s]", "'l2s' has no variants"),
        ("steering=[none, amps]", "needs 'data', a 'diagnostic' and one method"),
        ("benchmarks=[fluency]", "has no use beside 'claim'"),
        ("steering.0.predict_from=per_token", "a planted model is steered from the last one"),
    ],
)
def test_what_cannot_be_tested_is_said_by_run_and_plan_alike(recipe, capsys, override, said):
    for command in ("run", "plan"):
        assert main([command, str(recipe), override]) == 2
        assert said in " ".join("".join(capsys.readouterr()).split())


def test_the_plan_counts_passes(recipe, capsys):
    assert main(["plan", str(recipe)]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "2 draws, 2 seeds" in said and "planted: test" in said and "prompt passes" in said


def test_a_displaced_model_is_one_whose_block_gives_something_else():
    """Against two steerings in order: the first is the displacement, and the second reads its states."""
    view, amps = tiny_view(), lookup("steering", "amps")
    method = amps(amps.Params(beta_policy="fixed", beta=0.0))
    rng = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=rng)
    g, own = ({"encoder.weight": randn(6, 48), "encoder.bias": randn(6), "decoder.weight": randn(48, 6)} for _ in "ab")
    g, own = ({**theta, "sign": torch.tensor(1.0)} for theta in (g, own))
    batch = view.encode(conflict_prompts(3))
    shift, alpha, where = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 2.0, 0.5]), method.placed(g, 1)
    with torch.no_grad(), steer(view, [Steering(method, g, where, shift), Steering(method, own, where, alpha)]):
        slow, _ = prefill(view, batch)
    with torch.no_grad(), steer(view, Steering(Displaced(method, g, shift, method, alpha), own, where, 1.0)):
        fast, _ = prefill(view, batch)
    seen = batch.attention_mask.bool()
    torch.testing.assert_close(fast[seen], slow[seen], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        plain, _ = prefill(view, batch)
    assert not torch.allclose(plain[seen], slow[seen], atol=1e-2)


def test_shuffled_numbers_stay_within_their_task():
    r, tasks = torch.arange(40.0), ["a", "b"] * 20
    states = States("vision", torch.zeros(40, 2), torch.zeros(40, 2), torch.zeros(40, 2), {"R_V": r}, tasks, 1)
    mixed = shuffled(states).measured["R_V"]
    assert sorted(mixed.tolist()) == r.tolist() and not torch.equal(mixed, r)
    assert torch.equal(mixed % 2, r % 2), "odd numbers are task b's"
    assert torch.equal(shuffled(states).measured["R_V"], mixed)


@pytest.mark.slow
def test_a_planted_effect_is_found_and_its_shuffled_twin_is_not(tmp_path):
    """On the shipped model, with real R_V: a constant strength is wrong for most prompts there, a scaled one is not."""
    overrides = [
        "data.per_task={train: 48, dev: 12, test: 48}",
        "steering.0.betas=[0, 1, 2]",
        "evaluate.directions=[vision]",
        "evaluate.strengths=[2, 3]",
        "claim.planted.variants=[beta=1, beta=2]",
    ]
    recipe = load(Path(__file__).parents[3] / "recipes" / "amps_claim.yaml", overrides)
    about = recipe.source_path, recipe.text, recipe.resolved()
    with RunDir.open(tmp_path, recipe.name, *about) as folder:
        draw = Draw(recipe, folder, load_model(recipe.model), 0, "open_ended", None)
        plain = draw.run(0)
        planted = draw.planted(recipe.claim.planted, plain, 2.0)
    found = {f: corrected([against([planted], "vision", f)])[0] for f in ("learned", "own", "shuffled")}
    assert found["learned"].wins and found["own"].wins and not found["shuffled"].wins
    assert found["learned"].difference > found["shuffled"].high

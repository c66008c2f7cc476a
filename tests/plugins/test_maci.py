"""MACI against a slow forward head by head: what silencing each head does, and which prompts have heads suppressed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from factory.cli import main
from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.heads import SILENCED
from factory.model.prefix import at_last, prefill
from factory.recipe import Recipe
from factory.registry import lookup
from factory.run.methods.study import study_aside
from factory.steer import Context, Steering, artefact, steer
from tests.anchor import scenes_bench, slow_forward
from tests.contract.cases import random_states
from tests.tiny import conflict_prompts, saved_tiny, shown, tiny_view
from tests.tiny_families import family_view

Maci, Silencing = lookup("steering", "maci"), lookup("diagnostic", "silencing")


def chosen(view):
    return (1, 0), (1, view.heads - 1), (view.depth - 1, 1)


def finals(view, prompts, steerings=()):
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steerings):
        return at_last(prefill(view, batch)[0], batch.attention_mask)


def slow_final(view, prompt, heads=()):
    batch = view.encode([prompt])
    last = batch.input_ids.shape[1] - 1
    return slow_forward(view, batch, lambda *_: False, {(layer, head, last) for layer, head in heads})[-1]


def block_states(view, prompts, layer=0):
    """The block's output at each prompt's last token, prompt by prompt."""
    found = []
    hook = view.layers[layer].register_forward_hook(lambda m, args, output: found.append(output[0, -1].float()))
    for prompt in prompts:
        view.core(**view.encode([prompt]), use_cache=False)
    hook.remove()
    return torch.stack(found)


def detecting(view, prompts, layer=0):
    """A steering that suppresses some heads in the half of the prompts of largest g."""
    h = block_states(view, prompts, layer)
    w = torch.randn(view.width, generator=torch.Generator().manual_seed(0))
    score = h @ w
    tau = score.sort().values[len(prompts) // 2 - 1 : len(prompts) // 2 + 1].mean()
    c = torch.ones(view.depth, view.heads)
    for layer_, head in chosen(view):
        c[layer_, head] = 0
    method = Maci(Maci.Params())
    state = {"coefficient": c, "detector.w": w, "detector.b": torch.tensor(0.0), "detector.tau": tau}
    return Steering(method, state, method.placed(state, layer), 1.0), score > tau


@pytest.mark.parametrize("family", [None, "gpt2", "structural_text"])
def test_heads_are_suppressed_at_the_last_token_of_the_prompts_that_show_a_conflict(family, tmp_path):
    """Heads that share keys two by two, and heads of one projection for queries, keys and values."""
    view = family_view(family) if family else tiny_view()
    prompts = shown(view, conflict_prompts(4))
    steering, fires = detecting(view, prompts)
    assert sorted(fires.tolist()) == [False, False, True, True]
    steered, plain = finals(view, prompts, steering), finals(view, prompts)
    for i, prompt in enumerate(prompts):
        expected = slow_final(view, prompt, chosen(view) if fires[i] else ())
        assert torch.allclose(steered[i], expected, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(steered[i], plain[i]) != bool(fires[i])
    loaded = artefact.load(artefact.save(tmp_path, steering, view), view)
    assert loaded.where.decided == 0 and loaded.where.layers == tuple(sorted({layer for layer, _ in chosen(view)}))
    assert torch.equal(finals(view, prompts, loaded), steered)
    for step in (0.5, torch.tensor([0.0, 1.0, 1.0, 0.0])):  # a strength of the caller's goes through the detector too
        steering.strength = step
        assert [torch.equal(a, b) for a, b in zip(finals(view, prompts, steering), plain, strict=True)] == [
            not (fires[i] and (step if isinstance(step, float) else step[i])) for i in range(4)
        ]


def test_the_gain_is_kept_for_the_answer():
    view, prompts = tiny_view(), conflict_prompts(3)
    steering, _ = detecting(view, prompts)
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steering):
        tokens = view.model.generate(**batch, max_new_tokens=3, do_sample=False)[:, -3:]
    for prompt, answer in zip(prompts, tokens, strict=True):
        alone = view.encode([prompt])
        with torch.no_grad(), steer(view, steering):
            again = view.model.generate(**alone, max_new_tokens=3, do_sample=False)[0, -3:]
        assert torch.equal(again, answer)


def test_silencing_is_a_slow_forward_without_the_head():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    rows = Silencing(Silencing.Params()).on_samples(bench, samples[:2])
    assert {r["layer"] for r in rows} == {2}, "heads above the run's layer, which is 1"
    dictionary = Dictionary(view.tokenizer, DictionaryParams())
    for sample in samples[:2]:
        pair = dictionary.pair(sample.answer_vision, sample.answer_text)
        prompt = bench.benchmark.prompt(sample, "open")

        def margin(h, pair=pair):
            z = view.logits(h)
            return z[list(pair.comply)].max() - z[list(pair.compete)].max()

        before = margin(slow_final(view, prompt))
        own = [r for r in rows if r["sample"] == sample.id]
        assert len(own) == 2 * view.heads
        for r in own:
            moved = float(margin(slow_final(view, prompt, [(r["layer"], r["head"])])) - before)
            assert r["value"] == pytest.approx(moved if r["direction"] == "vision" else -moved, abs=2e-4)


def planted(n=200, d=48):
    """States of which one direction shows a conflict, and effects of six heads of which two drive the other source."""
    rng, states = torch.Generator().manual_seed(1), random_states()
    axis = torch.zeros(d)
    axis[3] = 4.0
    draw = lambda: torch.randn(n, d, generator=rng)
    effects = {(1, 0): -1.0, (1, 1): 3.0, (1, 2): -2.0, (2, 0): 0.0, (2, 1): 2.0, (2, 2): -4.0}
    found = [
        {"sample": "s", "metric": SILENCED, "direction": way, "layer": layer, "head": head, "value": sign * e}
        for (layer, head), e in effects.items()
        for way, sign in (("vision", 1), ("text", -1))
    ]
    return replace(states, base=draw() + axis, found=found, agreeing={"train": draw(), "dev": draw()}), axis, draw


def test_it_takes_the_heads_that_drive_the_other_source_and_rarely_fires_without_a_conflict():
    states, axis, draw = planted()
    method = Maci(Maci.Params(top=4, coefficient=0.25, false_alarms=0.1))
    state = method.fit(states)
    assert (state["coefficient"] == 0.25).nonzero().tolist() == [[1, 1], [2, 1]], "toward the image, those with e > 0"
    toward_text = method.fit(replace(states, direction="text"))
    assert (toward_text["coefficient"] == 0.25).nonzero().tolist() == [[1, 0], [1, 2], [2, 2]]
    fires = lambda h: float(method.gain(h, state, Context(1)).mean())
    assert fires(states.agreeing["dev"]) <= 0.1
    assert fires(torch.cat([draw() for _ in range(20)])) == pytest.approx(0.1, abs=0.04)
    assert fires(torch.cat([draw() + axis for _ in range(5)])) > 0.9
    always = Maci(Maci.Params(conditional=False)).fit(replace(states, agreeing={}))
    assert set(always) == {"coefficient"}


def test_without_silenced_heads_it_says_what_to_add():
    states, *_ = planted()
    with pytest.raises(UserError, match="add `silencing` to the recipe's `diagnostics:`"):
        Maci(Maci.Params()).fit(replace(states, found=[]))
    assert "silencing" in Maci(Maci.Params()).unfit("mcr", ["liae"])
    assert Maci(Maci.Params()).unfit(None, ["silencing"]) is None


RECIPE = {
    "name": "agreeing",
    "model": {"path": "."},
    "data": {"type": "scenes", "scoring": "open_ended", "per_task": {"train": 1, "dev": 1, "test": 1}},
    "collect": {"layer": 1, "batch_size": 16},
    "diagnostics": ["silencing"],
    "steering": ["maci"],
}


def test_a_study_gives_it_the_same_prompts_without_their_conflict():
    view = tiny_view()
    with study_aside(Recipe.model_validate(RECIPE), view) as study:
        found = study.states("vision").agreeing
        asked = study.benchmark.agreeing
        for split in ("train", "dev"):
            samples = [s for s in asked.samples(split) if s.id in {own.id for own in study.samples[split]}]
            prompts = [asked.prompt(s, "open") for s in samples]
            assert len(prompts) == len(found[split]) == 8
            assert torch.allclose(found[split], block_states(view, prompts, 1), atol=1e-4)
        conflicts = [study.benchmark.prompt(s, "open") for s in study.samples["train"]]
        assert not torch.allclose(found["train"], block_states(view, conflicts, 1), atol=1e-2)


def test_a_recipe_chooses_its_strength_on_dev_and_scores_it(tmp_path):
    text = {**RECIPE, "model": {"path": str(saved_tiny(tmp_path / "model"))}, "run": {"root": str(tmp_path / "runs")}}
    always = {"type": "maci", "as": "always", "conditional": False}
    text |= {"steering": ["none", "maci", always], "report": {"plots": False}}
    text["evaluate"] = {"strengths": [0.5, 1], "max_new_tokens": 2, "batch_size": 8, "controls": [], "kl_budget": 0.5}
    (tmp_path / "agreeing.yaml").write_text(json.dumps(text))
    assert main([str(tmp_path / "agreeing.yaml")]) == 0
    found = json.loads((tmp_path / "runs/agreeing/results.json").read_text())
    scored = {r["method"] for r in found["rows"] if r["split"] == "test" and r["task"] == "all"}
    assert scored == {"none", "maci", "always"}
    assert "Silenced heads" in (tmp_path / "runs/agreeing/report/index.html").read_text()

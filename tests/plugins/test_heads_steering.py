"""Head steering: its arithmetic, how heads are chosen, and the intervention curves."""

from __future__ import annotations

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.heads import HeadScaler, choose_heads, coefficients, scores
from factory.instruments.instructed import InstructedParams, instructed
from factory.model.prefix import at_last, decode_texts, prefill
from factory.registry import lookup
from factory.steer import Steering, artefact, steer
from tests.anchor import mixed_items, scenes_bench, slow_forward
from tests.contract.cases import answers, random_states
from tests.tiny import tiny_view

Heads, Intervention = lookup("steering", "heads"), lookup("diagnostic", "intervention")


def scaled(view, c: float, heads=((0, 1), (2, 3)), role="instruction") -> Steering:
    scaler, state = HeadScaler(role=role), coefficients(heads, c, (view.depth, view.heads))
    return Steering(scaler, state, HeadScaler(role=role).where().model_copy(update={"layers": (0, 1, 2)}))


def last_states(view, prompts, steerings):
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steerings):
        return at_last(prefill(view, batch)[0], batch.attention_mask)


def test_coefficient_one_has_the_bits_of_no_steering():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    batch = view.encode([item.prompt for item in mixed_items(bench, samples)])
    with torch.no_grad():
        plain = view.model(**batch).logits
        with steer(view, scaled(view, 1.0, role="all")):
            assert torch.equal(view.model(**batch).logits.view(torch.int32), plain.view(torch.int32))
        with steer(view, scaled(view, 1.5, role="all")):
            assert not torch.equal(view.model(**batch).logits, plain)


def test_blocking_is_a_zero_head_output_at_instruction_tokens():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:3]
    states = last_states(view, [item.prompt for item in items], scaled(view, 0.0))
    for state, item in zip(states, items, strict=True):
        batch = view.encode([item.prompt])
        tokens = [i for i, r in enumerate(batch.roles[0].tolist()) if r == Role.INSTRUCTION]
        silent = {(layer, head, t) for layer, head in ((0, 1), (2, 3)) for t in tokens}
        expected = slow_forward(view, batch, lambda *_: False, silent)[-1]
        assert torch.allclose(state, expected, atol=1e-5 * float(expected.abs().max()))


def test_chosen_heads_come_back_from_their_artefact(tmp_path):
    view, scaler = tiny_view(), Heads(Heads.Params())
    bench, samples = scenes_bench(view)
    prompts = [item.prompt for item in mixed_items(bench, samples)[:2]]
    state = coefficients([(0, 1), (2, 3)], 2.0, (view.depth, view.heads))
    saved = Steering(scaler, state, scaler.placed(state, 1), 1.5)
    loaded = artefact.load(artefact.save(tmp_path / "whole", saved, view), view)
    assert loaded.where.layers == (0, 2)
    assert torch.equal(last_states(view, prompts, loaded), last_states(view, prompts, saved))
    of_a_shallower_model = Steering(scaler, {"coefficient": state["coefficient"][:2]}, saved.where, 1.5)
    with pytest.raises(UserError, match="its tensors do not fit a model of width 48"):
        artefact.load(artefact.save(tmp_path / "cut", of_a_shallower_model, view), view)


def test_heads_are_the_top_random_others_or_shared():
    found = random_states().found
    by_direction = {d: scores(found, d) for d in ("vision", "text")}
    tops = {}
    for d, s in by_direction.items():
        tops[d] = choose_heads(by_direction, d, 5)
        assert [float(s[h]) for h in tops[d]] == sorted((float(v) for v in s.flatten()), reverse=True)[:5]
    random = choose_heads(by_direction, "vision", 5, "random")
    assert len(set(random)) == 5 and not set(random) & set(tops["vision"])
    assert (
        random
        == choose_heads(by_direction, "vision", 5, "random")
        != choose_heads(by_direction, "vision", 5, "random", seed=1)
    )
    assert set(choose_heads(by_direction, "text", 5, "shared")) == set(tops["vision"]) & set(tops["text"])


def test_only_prompts_that_follow_are_ranked():
    rows = [
        {"metric": "head_margin", "direction": "text", "outcome": o, "layer": 0, "head": h, "value": v}
        for o, h, v in (("follow", 0, 1.0), ("follow", 1, 2.0), ("compete", 0, 50.0), ("compete", 1, 0.0))
    ]
    assert scores(rows, "text").tolist() == [[1.0, 2.0]]
    assert scores(rows[2:], "text").tolist() == [[50.0, 0.0]] and not scores(rows, "vision").numel()


def test_without_an_attribution_it_says_what_to_add():
    states = random_states()
    with pytest.raises(UserError, match="diagnostics"):
        Heads(Heads.Params()).fit(type(states)(**{**vars(states), "found": ()}))
    with pytest.raises(UserError, match="heads"):
        Intervention(Intervention.Params()).learn([])


def test_it_composes_with_a_vector_method():
    """Heads below a vector: what the vector method reads is the state that the heads have changed."""
    view = tiny_view()
    bench, samples = scenes_bench(view)
    prompts = [item.prompt for item in mixed_items(bench, samples)[:2]]
    amps = lookup("steering", "amps")
    method = amps(amps.Params(beta_policy="fixed"))
    vector = Steering(method, method.fit(random_states()), method.where().model_copy(update={"layer": 1}), 2.0)
    both = last_states(view, prompts, [vector, scaled(view, 4.0)])
    assert torch.equal(both, last_states(view, prompts, [scaled(view, 4.0), vector]))
    for single in (vector, scaled(view, 4.0)):
        assert not torch.allclose(both, last_states(view, prompts, single), atol=1e-3)


def test_interventions_equal_steering_whole_prompts():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    params = Intervention.Params(counts=(2, 12), amplified=3, coefficients=(1, 4), coefficient=4)
    diagnostic = Intervention(params)
    diagnostic.learn(random_states().found)
    rows = diagnostic.on_samples(bench, samples)
    items = {(i.sample.id, i.form, i.direction): i for i in mixed_items(bench, samples)}
    checked = [r for r in rows if r["metric"] == "follows" and r["coefficient"] == 4][:6]
    assert checked, "random models follow nothing, so heads are amplified"

    plain = {
        (i.sample.id, i.form, i.direction): i
        for i in instructed(bench, samples, InstructedParams(), Dictionary(view.tokenizer, DictionaryParams()))[0]
    }
    assert plain.keys() == items.keys()

    for r in checked:
        item = plain[r["sample"], r["form"], r["direction"]]
        chosen = choose_heads(diagnostic.scores, r["direction"], r["heads"], r["choice"])
        tokens = answers(view, [item.prompt], scaled(view, 4.0, chosen), n=bench.max_new_tokens)

        text = decode_texts(view, torch.tensor(tokens))[0]
        assert r["value"] == float(bench.benchmark.judge(item.sample, item.form, text) == r["direction"])
    assert {r["value"] for r in rows if r["coefficient"] == 1 and r["action"] == "amplify"} <= {0.0}, (
        "a coefficient of 1 changes no answer"
    )
    assert diagnostic.summary(rows).tables[0].rows

"""Steering of each prompt's last token alone: what is run is that token, and what comes out is what whole runs give."""

from __future__ import annotations

import time

import pytest
import torch

from eval_suite.speed.plan import Measured
from factory.data.prompt import Role, Segment
from factory.model.prefix import at_last, prefill
from factory.recipe import load
from factory.run.methods.cost import decoder_work
from factory.run.plan.estimate import estimate
from factory.steer import steer
from factory.steer.sweep import look_ahead, run_cell, run_trunk
from tests.contract.cases import Case, answers, close, logits, make, steering
from tests.elsewhere import spread
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts, tiny_view

LAST = ("of", (("type", "l2s"), ("apply_to", "last_and_generated")))
DOSE = Case("dose", (LAST, ("alone", "last"), ("conflicts_only", False)))
DOSES = len(make(DOSE).trial_strengths)
LOOKS, HEARD, RUN = DOSES + 2, 2, 1  # none and backwards too; either modality unheard; and the dose that is given
RECIPE = """\
name: last
model: {zoo: tiny2}
data: {type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}
collect: {batch_size: 8}
steering:
  - none
  - {type: l2s, apply_to: last_and_generated, net: {epochs: 1}}
  - {type: dose, alone: last, doses: [0.5, 1, 2], gate_epochs: 2,
      of: {type: l2s, apply_to: last_and_generated, net: {epochs: 1}}}
evaluate: {strengths: [0.5, 1], batch_size: 16, max_new_tokens: 1}
report: {plots: false}
"""


def tokens_run(view, run) -> float:
    """Tokens times the share of blocks that process them, padding included."""
    with decoder_work(view) as calls:
        run()
    return sum(call.tokens for call in calls) / view.depth


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_prompt_costs_one_pass_and_some_tokens(layer):
    view, prompts = tiny_view(), conflict_prompts(4)
    batch, given = view.encode(prompts), steering(DOSE, layer)
    found = tokens_run(view, lambda: logits(view, prompts, given))
    above = (view.depth - layer - 1) / view.depth
    assert found == pytest.approx(batch.input_ids.numel() + 4 * (HEARD + (LOOKS + RUN) * above))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_cell_and_its_looks_run_the_last_token(layer, side):
    view, prompts = tiny_view(), mixed_prompts()
    trunk, above = run_trunk(view, view.encode(prompts, side), layer), (view.depth - layer - 1) / view.depth
    cell: list[torch.Tensor] = []
    told = tokens_run(view, lambda: cell.append(run_cell(view, trunk, steering(DOSE, layer), 1)))
    assert told == pytest.approx(4 * (HEARD + (LOOKS + RUN) * above))
    assert tokens_run(view, lambda: look_ahead(view, trunk, steering(DOSE, layer))) == pytest.approx(
        4 * (HEARD + LOOKS * above)
    )
    assert cell[0].tolist() == answers(view, prompts, steering(DOSE, layer), side, 1)
    assert run_cell(view, trunk, steering(DOSE, layer), 4).tolist() == answers(
        view, prompts, steering(DOSE, layer), side, 4
    )


def scores(view, prompts, beams: int, **how) -> tuple[torch.Tensor, ...]:
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steering(DOSE, 1)):
        out = view.model.generate(
            **batch,
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
            num_beams=beams,
            output_logits=True,
            return_dict_in_generate=True,
            **how,
        )
    return out.logits


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("whole", [{"use_cache": False}, {"output_hidden_states": True}])
def test_it_generates_as_where_whole_prompts_are_looked_ahead_on(whole, beams):
    """Without a cache, or where every block's states are asked for, prompts run whole."""
    view, prompts = tiny_view(), conflict_prompts(3)
    for own, others in zip(scores(view, prompts, beams), scores(view, prompts, beams, **whole), strict=True):
        assert close(own, others, 2e-5)


def test_a_begun_answer_is_steered_too():
    view, prompts = tiny_view(), conflict_prompts(2)
    begun = [p.append(Segment(Role.ANSWER, "the answer")) for p in prompts]
    batch = view.encode(begun)
    with torch.no_grad(), steer(view, steering(DOSE, 1)):
        cached = view.logits(at_last(prefill(view, batch)[0], batch.attention_mask))
    with steer(view, steering(DOSE, 1)):  # where gradients are taken prompts run whole
        whole = view.logits(at_last(prefill(view, batch)[0], batch.attention_mask))
    assert close(cached, whole.detach()) and not close(cached, logits(view, begun), 1e-3)


def test_a_prompt_that_is_not_steered_keeps_its_bits_beside_others():
    view, (conflict, *_) = tiny_view(), conflict_prompts(1)
    prompts = [conflict, conflict.without(Role.IMAGE), conflict.without(Role.CONTEXT)]
    given = steering(Case("dose", (LAST, ("alone", "last"))), 1)
    plain, steered = logits(view, prompts), logits(view, prompts, given)
    assert torch.equal(steered[1:], plain[1:]) and not torch.equal(steered[0], plain[0])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_spread_model_is_steered_alike(layer):
    expected = logits(tiny_view(), mixed_prompts(), steering(DOSE, layer))
    with spread(fresh_view()) as view:
        assert close(logits(view, mixed_prompts(), steering(DOSE, layer)).cpu(), expected, 1e-4)


def test_the_plan_counts_what_the_run_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.yaml").write_text(RECIPE)
    recipe = load(tmp_path / "last.yaml", [])
    told = {s.name: s.passes for s in estimate(recipe).stages if s.passes}
    found = Measured(recipe, None, time.process_time).passes
    assert told == pytest.approx({name: found[name] for name in told}, rel=0.02), "a prompt's length is guessed"
    assert sum(told.values()) == pytest.approx(sum(found[name] for name in told), rel=0.01)
    assert told["trials"] > 8, "looks and cells are counted, as the share of a prompt that they are"
    prompts = {"trials": 8, "dev": 8, "test": 8}
    assert all(told[name] < 2.5 * n for name, n in prompts.items()), "one pass, and one of `none`, for all cells"

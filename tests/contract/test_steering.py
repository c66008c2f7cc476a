"""The contract of steering methods, on every registered one."""

from __future__ import annotations

import random

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.prefix import at_last, prefill
from factory.registry import lookup
from factory.steer import Steering, artefact, steer
from tests.contract import cases
from tests.contract.cases import Case, answers, close, logits, steering
from tests.tiny import conflict_prompts, mixed_prompts, tiny_view


def same_bytes(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_there_are_methods_to_hold_to_the_contract():
    found = {case.method for case in cases.steerer_cases()}
    assert {"static", "l2s", "amps"} <= found
    assert {"none", "instruction", "cot", "few_shot"} <= set(cases.prompt_methods())
    assert Case("amps", (("predict_from", "per_token"),)) in cases.steerer_cases(with_options=True)


def test_strength_zero_is_no_steering_bit_for_bit(view, site):
    batch = view.encode(mixed_prompts())
    with torch.no_grad():
        plain = view.model(**batch).logits
        text = view.model.generate(**batch, max_new_tokens=3, do_sample=False)
        with steer(view, steering(*site, torch.zeros(4))):
            assert torch.equal(view.model(**batch).logits, plain)
        with steer(view, steering(*site, 0.0)):
            assert torch.equal(view.model(**batch).logits, plain)
            assert torch.equal(view.model.generate(**batch, max_new_tokens=3, do_sample=False), text)


def test_other_strengths_change_the_answer(view, site):
    prompts = mixed_prompts()
    batch = view.encode(prompts)

    def scores(steerings) -> torch.Tensor:
        with torch.no_grad(), steer(view, steerings):
            out = view.model.generate(
                **batch, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.stack(out.logits)

    assert (scores(steering(*site)) - scores([])).abs().amax(-1).amax(0).min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_its_zero(case, dtype):
    view = tiny_view(dtype=dtype, spread=1.0)
    prompts = conflict_prompts(2)
    assert torch.equal(logits(view, prompts, steering(case, 1, 0.0)), logits(view, prompts))
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steering(case, 1)):
        assert view.model(**batch).logits.dtype == dtype
    assert not torch.equal(logits(view, prompts, steering(case, 1)), logits(view, prompts))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_is_the_same_alone_and_in_a_batch(view, site, side):
    prompts, exact = (
        mixed_prompts(),
        tiny_view(dtype=torch.float64),
    )  # in float32 a method may blow up the rounding of the blocks below it
    together = logits(exact, prompts, steering(*site), side)
    tokens = answers(view, prompts, steering(*site), side, 4)
    for i, prompt in enumerate(prompts):
        assert close(logits(exact, [prompt], steering(*site)), together[i : i + 1], 1e-6)
        alone = answers(view, [prompt], steering(*site), n=4)[0]
        assert tokens[i][: len(alone)] == alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_strengths_per_row_are_separate_runs(view, case, side):
    prompts, strengths = mixed_prompts(), [0.0, 0.5, -2.0, 4.0]
    together = logits(view, prompts, steering(case, 1, torch.tensor(strengths)), side)
    for i, strength in enumerate(strengths):
        assert close(logits(view, prompts, steering(case, 1, strength), side)[i], together[i])
    assert torch.equal(together[0], logits(view, prompts, side=side)[0])


def test_cached_decoding_is_what_recomputing_gives(view, site):
    prompts = mixed_prompts()
    batch = view.encode(prompts)
    with torch.no_grad(), steer(view, steering(*site)):
        out = view.model.generate(
            **batch,
            do_sample=False,
            min_new_tokens=4,
            max_new_tokens=4,
            output_logits=True,
            return_dict_in_generate=True,
        )
    for i, prompt in enumerate(prompts):
        reference = cases.recompute(view, prompt, out.sequences[i, -4:], [steering(*site)])
        assert close(torch.stack([step[i] for step in out.logits]), reference, 2e-5)


@pytest.mark.parametrize("layers", [(1, 1), (0, 2), (2, 0)])
def test_several_methods_work_in_order(view, case, layers):
    prompts = mixed_prompts()[:2]
    other = Case("l2s", (("predict_from", "per_token"),))
    both = [(case, layers[0]), (other, layers[1])]
    together = logits(view, prompts, [steering(c, layer) for c, layer in both])
    looks_ahead = bool(
        cases.make(case).trial_strengths
    )  # its look is through the other method, which the reference leaves out
    for i, prompt in enumerate(prompts if not looks_ahead else []):
        token = torch.zeros(1, dtype=torch.long)
        assert close(
            cases.recompute(view, prompt, token, [steering(c, layer) for c, layer in both]), together[i : i + 1], 2e-5
        )
    with steer(view, steering(case, layers[0])):
        assert torch.equal(logits(view, prompts, steering(other, layers[1])), together)


def test_beams_of_a_prompt_share_its_steering(view, case):
    prompts, strengths = conflict_prompts(2), [-2.0, 4.0]

    def search(prompts, steerings):
        batch = view.encode(prompts)
        with torch.no_grad(), steer(view, steerings):
            out = view.model.generate(
                **batch,
                num_beams=3,
                do_sample=False,
                min_new_tokens=4,
                max_new_tokens=4,
                output_scores=True,
                return_dict_in_generate=True,
            )
        return out.sequences[:, -4:], out.sequences_scores

    tokens, scores = search(prompts, steering(case, 1, torch.tensor(strengths)))
    for i, prompt in enumerate(prompts):
        alone, score = search([prompt], steering(case, 1, strengths[i]))
        assert torch.equal(alone[0], tokens[i]) and close(score, scores[i : i + 1])
        assert not close(search([prompt], [])[1], scores[i : i + 1], 1e-4)


@pytest.mark.parametrize(
    "where",
    [
        {"role": "image"},
        {"role": "context"},
        {"role": "text", "take": "last:2"},
        {"role": "image", "take": "uniform:3"},
        {"role": "all", "take": "from:7"},
    ],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_chosen_tokens_are_steered(view, case, where, side):
    batch, seen = view.encode(mixed_prompts(), side), []
    for steerings in ([], [steering(case, 1, **{"take": "all", **where})]):
        with torch.no_grad(), steer(view, steerings):
            handle = view.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
            try:
                prefill(view, batch)
            finally:
                handle.remove()
    moved, expected = (
        (seen[0] != seen[-1]).any(-1),
        steering(case, 1, **{"take": "all", **where}).where.mask(batch.roles),
    )
    method, state = cases.fitted(case)
    if method.reads == "per_token":  # it may find that a token needs nothing
        expected = expected & (method.delta(seen[0].flatten(0, 1), state, cases.Context(1)) != 0).any(-1).view_as(
            expected
        )
    assert torch.equal(moved, expected)
    if where["role"] == "image" and method.reads == "last_prompt":
        assert moved.sum(-1).tolist() == [3, 3, 6 // 2, 0] if "take" in where else [16, 16, 32, 0]


def test_where_no_token_is_chosen_nothing_changes(view, case):
    prompts = mixed_prompts()
    plain = logits(view, prompts)
    steered = logits(view, prompts, steering(case, 1, role="image"))
    assert torch.equal(steered[3], plain[3]) and not torch.equal(steered[0], plain[0])
    assert torch.equal(logits(view, prompts, steering(case, 1, role="none")), plain)


def test_nothing_is_left_behind(case):
    view = cases.fresh_view()
    prompts = conflict_prompts(2)
    logits(view, prompts)
    before = cases.traces(view)
    answers(view, prompts, steering(case, 0))
    assert cases.traces(view) == before
    with pytest.raises(ZeroDivisionError), steer(view, [steering(case, 0), steering(case, 2)]):
        view.model(**view.encode(prompts))
        raise ZeroDivisionError
    assert cases.traces(view) == before

    def fail(*_):
        raise ZeroDivisionError

    broken = steering(case, 1)
    broken.strength = fail
    with pytest.raises(ZeroDivisionError):
        logits(view, prompts, [steering(case, 0), broken])
    assert cases.traces(view) == before
    with pytest.raises(UserError), steer(view, [steering(case, 0), steering(case, 3)]):
        pass
    assert cases.traces(view) == before


def leaves(case: Case) -> tuple[Steering, dict[str, torch.Tensor]]:
    s = steering(case, 1)
    own = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in s.state.items()}
    s.state = dict(own)
    return s, own


def gradients(view, case: Case) -> dict[str, torch.Tensor]:
    s, own = leaves(case)
    batch = view.encode(conflict_prompts(2))
    with steer(view, s):
        view.model(**batch, use_cache=False).logits[:, -1].logsumexp(-1).sum().backward()
    return {k: v.grad for k, v in own.items() if v.grad is not None}


def test_gradients_reach_the_method_and_nothing_else(view, acting_case):
    found = gradients(view, acting_case)
    assert found and all(torch.isfinite(g).all() for g in found.values())
    assert any(g.abs().max() > 0 for g in found.values())
    assert all(p.grad is None for p in view.model.parameters())


def test_checkpointing_gives_the_same_gradients(case):
    view = cases.fresh_view()
    plain = gradients(view, case)
    view.model.train()
    view.model.activation_checkpointing_enable({"use_reentrant": False})
    calls = []
    view.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    again = gradients(view, case)
    assert len(calls) >= 2, "the block was not run again in the backward pass"  # a controller may run it once more
    assert plain.keys() == again.keys() and all(close(again[k], plain[k]) for k in plain)


@pytest.mark.parametrize("direction", ["vision", "text"])
def test_the_same_seed_fits_the_same_bytes(case, direction):
    first = cases.fit(case, 3, direction)
    torch.manual_seed(123), random.seed(123)
    torch.randn(7)
    before = torch.get_rng_state(), random.getstate()
    assert same_bytes(cases.fit(case, 3, direction), first)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    with torch.no_grad():
        assert same_bytes(cases.fit(case, 3, direction), first)
    assert all(not t.requires_grad and torch.isfinite(t).all() for t in first.values())


def test_fitting_leaves_its_data_alone(case):
    states = cases.random_states()
    given = lambda: (states.base, states.toward, states.away, *states.tails, *states.measured.values())
    before = [t.clone() for t in given()]
    cases.make(case).fit(states)
    assert all(torch.equal(a, b) for a, b in zip(before, given(), strict=True))


def test_delta_is_pure_and_row_by_row(case):
    method, state = cases.fitted(case)
    h = torch.randn(6, 48, generator=torch.Generator().manual_seed(0))
    ahead = torch.randn(48, 30, generator=torch.Generator().manual_seed(1))
    moved = lambda strength: (h + strength[..., None] * method.delta(h, state, cases.Context(1))) @ ahead
    unheard = lambda role: (h * role[..., None, None]) @ ahead
    ctx, kept = cases.Context(1, False, moved, unheard, None, unheard), h.clone()
    whole, gain = method.delta(h, state, ctx), method.gain(h, state, ctx)
    assert whole.shape == h.shape and gain.shape == (6,) and torch.equal(h, kept)
    assert torch.equal(method.delta(h, state, ctx), whole)
    assert close(torch.cat([method.delta(row[None], state, ctx) for row in h]), whole)
    assert method.delta(h[:0], state, ctx).shape == (0, 48)


def test_variants_are_methods_of_the_same_kind(case):
    for name, variant in cases.make(case).variants().items():
        assert type(variant) is lookup("steering", case.method) and name
        assert variant.variants() == {}, "a variant has nothing left to decide"


def test_an_artefact_steers_as_the_method_did(view, option_case, tmp_path):
    prompts = conflict_prompts(2)
    expected = logits(view, prompts, steering(option_case, 1, 1.5))
    artefact.save(tmp_path, steering(option_case, 1, 1.5), view)
    loaded = artefact.load(tmp_path, view)
    assert torch.equal(logits(view, prompts, loaded), expected)
    assert same_bytes(loaded.state, cases.fitted(option_case)[1])
    with pytest.raises(UserError, match="another base model"):
        artefact.load(tmp_path, tiny_view(seed=1))


@pytest.mark.parametrize("direction", ["vision", "text"])
def test_prompt_methods_still_ask_the_question(prompt_method, direction):
    cls = lookup("steering", prompt_method)
    method = cls(cls.Params())
    prompt, *pool = conflict_prompts(5)
    examples = [cases.answered_example(p) for p in pool[: method.shots]]
    digests = [p.digest for p in (prompt, *examples)]
    changed = method.rewrite(prompt, direction, examples)
    assert [p.digest for p in (prompt, *examples)] == digests, "rewrite must not change what it is given"
    assert method.rewrite(prompt, direction, examples).digest == changed.digest
    rest, kept = iter(changed.segments), [s for s in prompt.segments if s in changed.segments]
    assert all(segment in rest for segment in kept), "what stays of the prompt stays in order"
    assert {s.role for s in prompt.segments} - {s.role for s in kept} <= {Role.IMAGE, Role.CONTEXT}, (
        "only a modality may be left out"
    )
    rest = iter(changed.segments)
    assert all(segment in rest for example in examples for segment in example.segments), (
        "so do the examples', answers too"
    )
    assert not changed.answered


def test_prompt_methods_leave_the_roles_of_the_prompt(view, prompt_method):
    cls = lookup("steering", prompt_method)
    method = cls(cls.Params())
    prompt, *pool = conflict_prompts(5)
    changed = method.rewrite(prompt, "vision", [cases.answered_example(p) for p in pool[: method.shots]])
    before, after = view.encode([prompt]), view.encode([changed])
    for role in {s.role for s in prompt.segments if s in changed.segments}:
        own = view.tokenizer.decode(before.input_ids[before.mask(role)]).strip()
        assert view.tokenizer.decode(after.input_ids[after.mask(role)]).strip().endswith(own)
    hidden, _ = prefill(view, after)
    assert torch.isfinite(view.logits(at_last(hidden, after.attention_mask))).all()

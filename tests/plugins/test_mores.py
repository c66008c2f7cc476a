"""MoReS: the equation, its constraint, the tokens and layers it steers, and its life outside training."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.data.prompt import Role
from factory.errors import UserError
from factory.registry import lookup
from factory.steer import Steering, Where, artefact, steer
from factory.steer.ahead import Ahead, spoken
from factory.steer.sweep import final_states, look_ahead, run_cell, run_trunk
from factory.tune.places import chosen_layers
from plugins.tuners.mores import MoReS, MoReSParams, Subspace
from tests.contract.cases import Case, answers, close, fresh_view, steering
from tests.contract.test_tuners import learn, logits
from tests.tiny import conflict_prompts, mixed_prompts, no_image


def trained(view, steps=3, **options) -> MoReS:
    tuner = MoReS(MoReSParams(**options))
    learn(view, tuner.apply(view), steps)
    return tuner


def outputs(view, batch, **more):
    """Each block's output [B, T, d]."""
    seen = {}
    handles = [
        block.register_forward_hook(lambda m, a, out, i=i: seen.__setitem__(i, out))
        for i, block in enumerate(view.layers)
    ]
    with torch.no_grad():
        view.model(**batch, **more)
    for handle in handles:
        handle.remove()
    return seen


def by_hand(view, prompt, take, layers, answer=()):
    """Next-token logits with h' = h + Rᵀ(W h + b - R h) written out token by token, in a model without the tuner."""
    weights = {layer: view.layers[layer].mores_image for layer in layers}
    batch = view.encode([prompt])
    roles = batch.roles[0].tolist()
    image = [t for t, role in enumerate(roles) if role == Role.IMAGE]
    steered = sorted({*image[: take[0]], *image[len(image) - take[1] :]}) if image else []
    base = fresh_view()

    def hook_of(layer):
        R, W, b = (x.detach().double() for x in (weights[layer].R, weights[layer].W, weights[layer].b))

        def hook(module, args, h):
            out = h.clone()
            for t in steered:
                x = h[0, t].double()
                out[0, t] = (x + R.T @ (W @ x + b - R @ x)).float()
            return out

        return hook

    handles = [base.layers[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    ids = torch.cat([batch.input_ids, torch.tensor([answer], dtype=torch.long)], 1)
    with torch.no_grad():
        out = base.model(
            **dict(batch) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False
        ).logits[0, -1]
    for handle in handles:
        handle.remove()
    return out


@pytest.mark.parametrize(
    "options, take, layers",
    [
        ({}, (4, 5), [0, 1, 2]),
        ({"rank": 3}, (4, 5), [0, 1, 2]),
        ({"take": "first:2+last:0"}, (2, 0), [0, 1, 2]),
        ({"take": "all"}, (999, 999), [0, 1, 2]),
        ({"layers": "every:2"}, (4, 5), [0, 2]),
        ({"layers": "deep"}, (4, 5), [2]),
    ],
)
def test_it_adds_the_papers_equation_to_the_right_tokens(options, take, layers):
    view = fresh_view()
    trained(view, **options)
    prompts = mixed_prompts()
    for prompt, found in zip(prompts, logits(view, prompts), strict=True):
        assert close(found, by_hand(view, prompt, take, layers), 1e-4)


def test_a_prompt_without_an_image_is_left_alone():
    view = fresh_view()
    trained(view)
    prompts = [no_image(p) for p in conflict_prompts(2)]
    assert torch.equal(logits(view, prompts), logits(fresh_view(), prompts))


def test_only_the_prompt_is_steered_while_an_answer_is_written():
    view = fresh_view()
    trained(view)
    prompt = conflict_prompts(1)[0]
    batch = view.encode([prompt])
    written = view.model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch.input_ids.shape[1] :].tolist()
    for n, token in enumerate(written):
        assert int(by_hand(view, prompt, (4, 5), [0, 1, 2], written[:n]).argmax()) == token


def test_rows_stay_orthonormal_under_weight_decay():
    torch.manual_seed(0)
    subspace = Subspace(64, MoReSParams(rank=4, dropout=0.0), torch.device("cpu"))
    optimiser = torch.optim.AdamW(subspace.parameters(), lr=1e-2, weight_decay=1.0)
    before, h, wanted = subspace.R.detach().clone(), torch.randn(50, 64), torch.randn(50, 64)
    for _ in range(100):
        optimiser.zero_grad()
        (subspace(h) - wanted).square().mean().backward()
        optimiser.step()
    R = subspace.R
    assert (R @ R.T - torch.eye(4)).abs().max() < 1e-5
    assert not torch.allclose(R, before, atol=1e-2), "it has moved"
    assert subspace.A.norm() < 0.9 * before.norm(), "weight decay has been at it"


@pytest.mark.parametrize("rank", [1, 8])
def test_nothing_of_the_width_squared_is_made(rank):
    D, made = 2560, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made.extend(
                x.numel() for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, torch.Tensor)
            )
            return out

    h = torch.randn(9, D)
    with Watch():
        subspace = Subspace(D, MoReSParams(rank=rank), torch.device("cpu"))
        subspace(h).sum().backward()
    assert max(made) <= 9 * D and not list(subspace.buffers())


def test_the_released_start_is_not_the_identity():
    view = fresh_view()
    torch.manual_seed(1)
    MoReS(MoReSParams(start="released")).apply(view)
    assert not torch.allclose(logits(view, conflict_prompts(2)), logits(fresh_view(), conflict_prompts(2)), atol=1e-4)


def test_without_the_constraint_rows_are_free():
    view = fresh_view()
    trained(view, steps=10, rank=2, orthonormal=False)
    R = view.layers[0].mores_image.R
    assert (R @ R.T - torch.eye(2)).abs().max() > 1e-3


def test_dropout_is_off_in_evaluation_and_on_in_training():
    view = fresh_view()
    tuner = trained(view, dropout=0.5)
    batch = view.encode(conflict_prompts(2))
    assert torch.equal(outputs(view, batch)[2], outputs(view, batch)[2])
    view.model.train()
    assert not torch.equal(outputs(view, batch)[2], outputs(view, batch)[2])
    view.model.eval()
    tuner.remove(view)


@pytest.mark.parametrize("low, high", [(0.1, 0.4), (0.5, 0.5), (1.0, 1.0), (0.0, 0.01)])
def test_the_dynamic_ratio_is_drawn_in_training_and_fixed_in_evaluation(low, high):
    view = fresh_view()
    block, around = view.layers[0], []
    tuner = MoReS(MoReSParams(ratio=(low, high), start="released"))  # no token that it steers stays as it is
    tuner.apply(view)
    for first in (True, False):
        block.register_forward_hook(lambda *given: around.append(given[-1].clone()), prepend=first)
    batch = view.encode(conflict_prompts(8))

    def counts():
        around.clear()
        outputs(view, batch)
        before, after = around
        return (before != after).any(-1).sum(-1).tolist()

    assert counts() == [math.ceil(16 * (low + high) / 2)] * 8
    view.model.train()
    drawn = [n for _ in range(20) for n in counts()]
    assert min(drawn) >= math.ceil(16 * low) and max(drawn) <= math.ceil(16 * high)
    assert len(set(drawn)) == math.ceil(16 * high) - math.ceil(16 * low) + (low == high) or len(set(drawn)) > 2
    with pytest.raises(UserError, match="dynamic ratio"):
        tuner.steerings(view)


def test_text_is_steered_where_the_prompts_words_are():
    view = fresh_view()
    tuner = MoReS(MoReSParams(modality="both", take="all", start="released"))
    torch.manual_seed(2)
    tuner.apply(view)
    *seen, blind = conflict_prompts(4, seed=77)  # ids that no other test has under other roles
    prompts = [*seen, no_image(blind)]
    batch = view.encode(prompts)
    plain = outputs(fresh_view(), batch)[0]
    moved = ~torch.isclose(outputs(view, batch)[0], plain, atol=1e-6).all(-1)
    words = batch.mask(Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.OPTIONS)
    assert torch.equal(moved, words)
    inputs, roles = dict(batch), batch.roles
    inputs["input_ids"] = torch.tensor(batch.input_ids.tolist())
    assert torch.equal(outputs(view, inputs)[0], outputs(view, batch)[0]), "a copy is known while its batch lives"
    del batch
    with pytest.raises(UserError, match="needs to know the prompt's words"):
        outputs(view, inputs)
    assert torch.equal(outputs(view, inputs, roles=roles)[0], outputs(view, view.encode(prompts))[0])


def test_an_answer_without_a_cache_is_that_with_one():
    view = fresh_view()
    torch.manual_seed(2)
    MoReS(MoReSParams(modality="both", take="all", start="released")).apply(view)
    batch = view.encode(mixed_prompts())
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        kept, anew = (view.model.generate(**batch, **options, use_cache=cache) for cache in (True, False))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(kept.logits, anew.logits, strict=True))


def test_first_and_last_tokens_may_have_weights_of_their_own():
    view = fresh_view()
    tuner = MoReS(MoReSParams(share_weights=False))
    tuner.apply(view)
    assert {name.split(".")[-2] for name in tuner.own} == {"mores_image", "mores_image1"}


@given(st.integers(2, 60), st.integers(1, 9))
def test_layer_choices_are_those_of_tables_10_and_11(depth, k):
    assert chosen_layers(f"every:{k}", depth) == [layer for layer in range(depth) if layer % k == 0]
    assert chosen_layers("all", depth) == list(range(depth))
    assert [chosen_layers(name, 32) for name in ("shallow", "middle", "deep")] == [
        list(range(16)),
        list(range(8, 24)),
        list(range(16, 32)),
    ]
    assert all(len(chosen_layers(name, depth)) == depth // 2 for name in ("shallow", "middle", "deep"))


@pytest.mark.parametrize("layers, reached", [("deep", 1), ("every:2", 3), ("shallow", 3)])
def test_the_backward_pass_stops_at_the_lowest_trained_layer(layers, reached):
    """Blocks whose output nothing trained stands before keep nothing for it: they are in no graph."""
    view = fresh_view()
    tuner = MoReS(MoReSParams(layers=layers))
    tuner.apply(view)
    in_graph = []
    handles = [
        block.register_forward_hook(lambda m, a, out: in_graph.append(out.requires_grad)) for block in view.layers
    ]
    view.model(**view.encode(conflict_prompts(2)), use_cache=False)
    for handle in handles:
        handle.remove()
    assert in_graph == [False] * (view.depth - reached) + [True] * reached
    tuner.remove(view)


def test_an_earlier_batch_that_is_run_on_from_a_block_is_steered_at_its_own_tokens():
    view = fresh_view()
    tuner = trained(view)
    prompts = mixed_prompts()
    batch, other = view.encode(prompts[:2]), view.encode([no_image(p) for p in prompts[:2]])
    cls = lookup("steering", "static")
    kept = Steering(cls(cls.Params()), {"v": torch.zeros(view.width)}, Where(layer=0), 1.0)
    trunk = run_trunk(view, batch, 0)
    run_trunk(view, other, 0)
    with torch.no_grad():
        assert close(final_states(view, trunk, kept), trunk.final)
    tuner.remove(view)


OF_LAST = ("of", (("type", "l2s"), ("apply_to", "last_and_generated")))


@pytest.mark.parametrize("options", [(), (OF_LAST,), (OF_LAST, ("alone", "last"))])
def test_a_controller_that_looks_ahead_is_told_of_its_own_batch(options):
    view, case = fresh_view(), Case("dose", (("conflicts_only", False), *options))
    tuner = trained(view)
    prompts = mixed_prompts()
    batch, other = view.encode(prompts), view.encode([no_image(p) for p in prompts[:2]])
    fresh = look_ahead(view, run_trunk(view, batch, 1), steering(case, 1))
    trunk = run_trunk(view, batch, 1)
    run_trunk(view, other, 1)
    assert close(look_ahead(view, trunk, steering(case, 1)), fresh)
    run_trunk(view, other, 1)
    assert run_cell(view, trunk, steering(case, 1), 3).tolist() == answers(view, prompts, steering(case, 1), "left", 3)
    tuner.remove(view)


def test_looks_ahead_of_a_tuned_model_are_its_own_runs():
    view = fresh_view()
    tuner = trained(view, modality="both", take="all")
    prompts = conflict_prompts(3)
    trunk = run_trunk(view, view.encode(prompts), 0)
    mask, roles = trunk.batch.attention_mask, trunk.batch.roles
    ahead = Ahead(view, 0, trunk.call, mask, roles, cache=trunk.prefix.cache)
    assert close(ahead.above_last(trunk.last[None])[0], logits(view, prompts))
    for role in (Role.IMAGE, Role.CONTEXT):
        hidden = ahead.hiding(spoken(roles, torch.tensor(float(role))), trunk.states)
        assert close(hidden, logits(view, [p.without(role) for p in prompts]))
    tuner.remove(view)


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"take": "some"}, {"ratio": [0.5, 0.1]}, {"ratio": [0.0, 0.0]}, {"layers": "top"}, {"ranks": 2}],
)
def test_options_out_of_bounds_are_refused(options):
    with pytest.raises(ValidationError):
        MoReSParams.model_validate(options)


def test_the_trained_method_steers_through_the_runtime_and_from_artefacts(tmp_path):
    view, prompts = fresh_view(), mixed_prompts()
    tuner = trained(view, rank=2)
    expected = logits(view, prompts)
    steerings = tuner.steerings(view)
    tuner.remove(view)
    assert not close(logits(view, prompts), expected, 1e-4)
    with steer(view, steerings):
        assert close(logits(view, prompts), expected)
    folders = [artefact.save(tmp_path / str(i), steering, view) for i, steering in enumerate(steerings)]
    with steer(view, [artefact.load(folder, view) for folder in folders]):
        assert close(logits(view, prompts), expected)

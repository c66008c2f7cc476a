"""Prompts that begin alike are run as one up to where they part: all that comes out is what whole prompts give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from factory.bench import answer_prompts
from factory.data.prompt import Prompt, Role, Segment
from factory.model.alike import alike, groups_of
from factory.model.encode import images_first
from factory.registry import lookup
from factory.steer import steer
from factory.steer.collect import Plan, collect
from factory.steer.sweep import look_ahead, run_cell, run_trunk, trunk_of_prompts
from tests.contract.cases import Case, close, steering
from tests.contract.test_families import NAMES
from tests.tiny import mixed_prompts, shown, tiny_view
from tests.tiny_families import family_view

ENDS = ("A. red\nB. blue", "A. blue\nB. red by the look of it", "Say it in one word.")


def asked(view, ends=ENDS):
    """The first prompts, each with its options in several orders; the last one stands alone."""
    first = images_first(view.writing)
    prompts = [p.images_first() if first else p for p in shown(view, mixed_prompts())[:3]]
    options = [[p.append(Segment(Role.OPTIONS, end)) for end in ends] for p in prompts[:2]]
    return [*options[0], *options[1], prompts[2]]


@pytest.fixture(params=["llava", *NAMES])
def view(request):
    return tiny_view() if request.param == "llava" else family_view(request.param)


def real(batch, states):
    return states[batch.attention_mask.bool()]


def near(a, b):
    """As equal as ratios of small shares are: a diagnostic enlarges rounding."""
    return torch.allclose(a, b, rtol=2e-3, atol=1e-4)


def test_what_is_run_once_for_several_prompts_is_what_each_gives_whole(view):
    prompts, layer = asked(view), 1
    whole = run_trunk(view, view.encode(prompts), layer)
    found = trunk_of_prompts(view, prompts, layer)
    assert (alike(view, prompts) is None) == view.whole_prompts
    for name in ("input_ids", "attention_mask", "roles", "position_ids"):
        assert torch.equal(getattr(found.batch, name), getattr(whole.batch, name))
    assert torch.equal(found.prefix.next_position, whole.prefix.next_position)
    assert close(real(whole.batch, found.states), real(whole.batch, whole.states))
    assert close(real(whole.batch, found.final), real(whole.batch, whole.final))
    if not view.whole_prompts:
        for mine, other in zip(found.prefix.cache.layers, whole.prefix.cache.layers, strict=True):
            for of in ("keys", "values"):
                pair = (real(whole.batch, getattr(each, of).transpose(1, 2)) for each in (mine, other))
                assert close(*pair)
    given = whole.call.get("inputs_embeds")
    assert found.call.keys() == whole.call.keys()
    assert given is None or close(real(whole.batch, found.call["inputs_embeds"]), real(whole.batch, given))


def test_steered_and_controlled_on_from_there_they_answer_alike(view):
    prompts, at = asked(view), steering(Case("l2s") if view.whole_prompts else Case("dose"), 1)
    whole, found = run_trunk(view, view.encode(prompts), 1), trunk_of_prompts(view, prompts, 1)
    if not view.whole_prompts:
        assert close(*(look_ahead(view, trunk, at) for trunk in (found, whole)))
    assert torch.equal(run_cell(view, found, at, 2), run_cell(view, whole, at, 2))
    assert answer_prompts(view, prompts, 2) == answer_prompts(view, prompts, 2, apart=True)


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl", "qwen2_5_vl", "llama"])
def test_collected_states_are_those_of_each_form_by_itself(name):
    view = tiny_view() if name == "llava" else family_view(name)
    prompts = asked(view)
    mcr = lookup("diagnostic", "mcr")
    plan, keys = Plan(1, diagnose=("base", "vision", "text"), tails=True), [str(i) for i in range(len(prompts))]
    states, rows = collect(view, prompts, plan, mcr(mcr.Params(draws=1)), keys)
    apart = [collect(view, [p], plan, mcr(mcr.Params(draws=1)), [k]) for p, k in zip(prompts, keys, strict=True)]
    for ask, found in states.items():
        assert near(found, torch.cat([each[0][ask] for each in apart])), ask
    for ask, told in rows.items():
        alone = [row for each in apart for row in each[1][ask]]
        assert [row["sample"] for row in told] == [row["sample"] for row in alone]
        assert near(*(torch.tensor([row["value"] for row in some]) for some in (told, alone)))


@pytest.mark.parametrize("name", ["llava", *NAMES])
def test_a_family_says_whether_its_decoder_is_called_plainly(name):
    view = tiny_view() if name == "llava" else family_view(name)
    batch = view.encode(shown(view, mixed_prompts())[:1])
    call = {k: v for k, v in run_trunk(view, batch, 0).call.items() if v is not None and not isinstance(v, bool)}
    told = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    plain = call.keys() <= {"input_ids", "inputs_embeds", *told} and all(
        isinstance(call[k], torch.Tensor) and torch.equal(call[k], t) for k, t in told.items()
    )
    assert plain == view.family.plain_calls or view.whole_prompts


def test_the_blocks_run_what_is_shared_once(monkeypatch):
    view, seen = tiny_view(), []
    prompts = asked(view)[:3]
    handle = view.layers[0].register_forward_hook(lambda module, args, out: seen.append(out.shape[:2]))
    answer_prompts(view, prompts, 1)
    handle.remove()
    lengths = [len(e.ids) for e in view.tokens(prompts, view.images_of(prompts)[1])]
    (one, head), (rows, tail) = seen
    assert (one, rows) == (1, 3) and head + tail == max(lengths) and head > tail


def test_what_must_not_be_cut_is_run_whole():
    """A prompt whose pictures come after what differs; and any prompt while somebody acts on its tokens by place."""
    view = tiny_view()
    prompts = asked(view)
    late = [Prompt((*p.segments[1:], p.segments[0])) for p in prompts[:2]]
    assert late[0].segments[-1].image is not None and alike(view, late) is None
    at = steering(Case("static"), 1)
    with steer(view, at):
        assert alike(view, prompts) is None
        told = answer_prompts(view, prompts, 2)
    with steer(view, at), torch.no_grad():
        batch = view.encode(prompts)
        alone = view.model.generate(**batch, max_new_tokens=2, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert told == [t.strip() for t in view.tokenizer.batch_decode(alone, skip_special_tokens=True)]
    assert alike(view, prompts) is not None


RED, SAME, BLUE = (Image.new("RGB", (4, 4), c) for c in ("red", "red", "blue"))
SEGMENTS = st.sampled_from(
    [
        *(Segment(Role.IMAGE, image=image) for image in (RED, SAME, BLUE)),
        *(Segment(role, text) for role in (Role.SYSTEM, Role.CONTEXT, Role.OPTIONS) for text in "ab"),
    ]
)


def begin_alike(prompts):
    """The definition, spelt out: some first segments are all prompts', with all pictures, and a user's among them."""
    texts = [[(s.role, s.text, s.image and s.image.tobytes()) for s in p.segments] for p in prompts]
    n = max(i for i in range(min(map(len, texts)) + 1) if all(t[:i] == texts[0][:i] for t in texts))
    later = [s for p in prompts for s in p.segments[n:]]
    return all(s.image is None for s in later) and any(s.role != Role.SYSTEM for s in prompts[0].segments[:n])


@given(st.lists(st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda s: Prompt(tuple(s))), min_size=1, max_size=6))
def test_groups_are_the_longest_runs_of_prompts_that_begin_alike(prompts):
    groups = groups_of(prompts)
    assert [i for group in groups for i in group] == list(range(len(prompts)))
    for group, after in zip(groups, [*(g[0] for g in groups[1:]), None], strict=True):
        assert len(group) == 1 or begin_alike([prompts[i] for i in group])
        assert after is None or not begin_alike([prompts[i] for i in (*group, after)])

"""Collection from one shared prefix against the slow obvious way: three whole prompts, each run by itself."""

from __future__ import annotations

import math
import re

import pytest
import torch

from factory.data.instructions import INSTRUCTIONS
from factory.data.prompt import Prompt, Role
from factory.diagnose import Diagnostic, Row
from factory.errors import UserError
from factory.model.prefix import prefill
from factory.recipe import loads
from factory.registry import Params, lookup
from factory.steer.collect import ASKS, Plan, asked, collect, joined, states_toward
from tests.contract.cases import close, traces
from tests.tiny import conflict_prompts, mixed_prompts, tiny_view

POSITIONS = ("last", "second_last", "last_user_token", "mean_prompt")
KEYS = ["a", "b", "c", "d"]


def mcr(**options):
    cls = lookup("diagnostic", "mcr")
    return cls(cls.Params(**options))


def reference(prompt: Prompt, ask: str, plan: Plan) -> torch.Tensor:
    """The state [d] of one prompt, run whole and alone."""
    view, seen = tiny_view(), []
    batch = view.encode([asked(prompt, ask, plan.style)])
    handle = view.layers[plan.layer].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        prefill(view, batch)
    handle.remove()
    h, roles = seen[0][0], batch.roles[0].tolist()
    if plan.position in ("last", "second_last"):
        return h[-1 if plan.position == "last" else -2]
    user = [i for i, r in enumerate(roles) if r in (Role.CONTEXT, Role.QUESTION, Role.OPTIONS, Role.INSTRUCTION)]
    p = [i for i, r in enumerate(roles) if r == Role.INSTRUCTION]
    return h[p].mean(0) if plan.position == "mean_prompt" and p else h[user[-1]]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("layer, style", [(0, "amps_eq9"), (1, "mc2"), (2, "amps_rq1")])
def test_states_are_those_of_whole_prompts(position, layer, style):
    prompts, plan = mixed_prompts(), Plan(layer, position, style)
    states, rows = collect(tiny_view(), prompts, plan, None, KEYS)
    assert set(states) == set(ASKS) and rows == {}
    for ask in ASKS:
        assert states[ask].shape == (4, 48) and states[ask].dtype == torch.float32 and states[ask].device.type == "cpu"
        assert close(states[ask], torch.stack([reference(p, ask, plan) for p in prompts]), 2e-5)
    assert not close(states["vision"], states["text"], 1e-2) or position == "second_last"


def test_tails_are_the_means_of_the_last_tokens():
    prompts, plan, view = mixed_prompts(), Plan(1, tails=True), tiny_view()
    states, _ = collect(view, prompts, plan, None, KEYS)
    assert set(states) == {*ASKS, *(f"{ask}.tail" for ask in ASKS)}
    for ask in ASKS:
        for i, prompt in enumerate(prompts):
            seen, batch = [], view.encode([asked(prompt, ask, plan.style)])
            handle = view.layers[1].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
            with torch.no_grad():
                prefill(view, batch)
            handle.remove()
            k = min(8, max(3, round(0.1 * batch.input_ids.shape[1])))
            assert close(states[f"{ask}.tail"][i], seen[0][0, -k:].mean(0), 2e-5)


class Several(Diagnostic):
    """Numbers once a prompt (of one, not of all), several times a prompt, by layer and by head."""

    def on_prefix(self, view, prefix, query, keys, hidden=None):
        row = lambda key, metric, value, layer=None, head=None: Row(
            sample=key, metric=metric, layer=layer, head=head, value=value
        )
        once = [row(key, "once", float(key[0] == "a")) for key in keys[::-1]]
        often = [row(key, "often", float(i)) for key in keys for i in range(2)]
        parts = [row(key, name, 3.0, 0, head) for key in keys for name, head in (("layered", None), ("of a head", 0))]
        return once + often + parts + [row(key, "seldom", 5.0) for key in keys if key[0] == "b"]


def test_what_a_diagnostic_gives_once_a_prompt_is_collected_under_its_name():
    prompts, view, plan = conflict_prompts(3), tiny_view(), Plan(1, diagnose=("base", "text"))
    parts = [collect(view, prompts[i:j], plan, Several(Params()), KEYS[i:j])[0] for i, j in ((0, 2), (2, 3))]
    found = joined(parts)
    assert set(found) == {*ASKS, "measured.once", "measured.seldom"}
    measured = states_toward("text", found, ["t"] * 3, 0).measured
    assert measured["once"].tolist() == [1.0, 0.0, 0.0]
    assert [math.isnan(v) or v for v in measured["seldom"].tolist()] == [True, 5.0, True]


def test_the_positions_are_different_states():
    found = [
        collect(tiny_view(), conflict_prompts(2), Plan(1, position), None, KEYS[:2])[0]["vision"]
        for position in POSITIONS
    ]
    assert all(not close(a, b, 1e-2) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("options", [{}, {"query_tokens": "question_suffix"}, {"query_tokens": "first_k_generated"}])
@pytest.mark.parametrize("diagnose", [("base",), ASKS])
def test_the_diagnosis_is_that_of_whole_prompts_and_changes_no_state(diagnose, options):
    view, prompts, plan = tiny_view(), conflict_prompts(3), Plan(1, diagnose=diagnose)
    states, found = collect(view, prompts, plan, mcr(**options), KEYS[:3])
    alone, _ = collect(view, prompts, plan, None, KEYS[:3])
    assert all(torch.equal(states[ask], alone[ask]) for ask in ASKS)
    assert tuple(found) == diagnose
    for ask in diagnose:
        whole = mcr(**options).measure(
            view, view.encode([asked(p, ask, plan.style) for p in prompts]), [f"{k}/{ask}" for k in KEYS[:3]]
        )
        assert [(r["sample"], r["metric"]) for r in found[ask]] == [(r["sample"], r["metric"]) for r in whole]
        assert all(math.isclose(a["value"], b["value"], rel_tol=2e-3) for a, b in zip(found[ask], whole, strict=True))
    assert len({r["value"] for rows in found.values() for r in rows if r["metric"] == "R_V"}) == 3 * len(diagnose)


def test_the_rows_of_a_batch_are_independent():
    prompts = mixed_prompts()
    together, _ = collect(tiny_view(), prompts, Plan(1), None, KEYS)
    for i, prompt in enumerate(prompts):
        alone, _ = collect(tiny_view(), [prompt], Plan(1), None, KEYS[:1])
        assert all(close(alone[ask][0], together[ask][i]) for ask in ASKS)


def test_the_prefix_runs_once_for_all_three_prompts():
    view, widths = tiny_view(), []
    handle = view.layers[0].register_forward_hook(lambda module, args, output: widths.append(tuple(output.shape[:2])))
    collect(view, conflict_prompts(2), Plan(1), None, KEYS[:2])
    handle.remove()
    longest = view.encode(conflict_prompts(2)).input_ids.shape[1]
    assert widths[0][0] == 2 and widths[0][1] < longest
    assert all(rows == 6 and width < 30 for rows, width in widths[1:]) and len(widths) == 2


def test_nothing_is_left_behind_when_it_fails(monkeypatch):
    view = tiny_view()
    collect(view, conflict_prompts(2), Plan(1), mcr(), KEYS[:2])
    before = traces(view)
    collect(view, conflict_prompts(2), Plan(1), mcr(), KEYS[:2])
    assert traces(view) == before
    monkeypatch.setattr("factory.steer.collect.extend", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(view, conflict_prompts(2), Plan(1), None, KEYS[:2])
    assert traces(view) == before


def test_asking_is_the_instruction_after_the_prompt():
    prompt = conflict_prompts(1)[0]
    assert asked(prompt, "base", "mc2") is prompt
    assert asked(prompt, "text", "mc2").segments[-1].text == INSTRUCTIONS["mc2"]["text"]
    assert asked(prompt, "vision", "mc2").segments[:-1] == prompt.segments


@pytest.mark.parametrize("position", ["last", "second_last", "mean_completion"])
def test_completions_are_read_as_begun_answers(position):
    """Against learn-to-steer's own way: the prompt and its completion in one plain forward, the tokens after the
    prompt's last one counted from the end (SPEC 2.4)."""
    view, prompts = tiny_view(), conflict_prompts(3)
    texts = {"vision": ["red, the image", "two, the image", "a dog"], "text": ["blue, the text", "three", "no, it is"]}
    states, _ = collect(view, prompts, Plan(1, position), None, KEYS[:3], texts)
    for i, prompt in enumerate(prompts):
        for ask in ASKS:
            base = view.encode([prompt])
            ids, seen = base.input_ids, []
            if ask != "base":
                more = view.tokenizer(f" {texts[ask][i]}", add_special_tokens=False, return_tensors="pt")["input_ids"]
                ids = torch.cat([ids, more], -1)
            handle = view.layers[1].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
            with torch.no_grad():
                view.model(input_ids=ids, pixel_values=base["pixel_values"])
            handle.remove()
            n = ids.shape[1] - base.input_ids.shape[1]
            wanted = {"last": seen[0][0, -1], "second_last": seen[0][0, -2]}
            wanted["mean_completion"] = seen[0][0, -n:].mean(0) if n else seen[0][0, -1]
            assert close(states[ask][i], wanted[position]), (ask, i)


@pytest.mark.parametrize(
    "said, told",
    [
        ("position: mean_completion", "mean_completion needs a completion"),
        ("completion: Yes", "should hold {answer}"),
        ("{completion: '{answer}', position: mean_prompt}", "is before the completion"),
    ],
)
def test_what_cannot_be_contrasted_is_refused_in_the_recipe(said, told, tmp_path):
    node = said if said.startswith("{") else "{" + said + "}"
    text = f"name: x\nmodel: {{zoo: tiny}}\ndata: {{type: scenes}}\nsteering: [static]\ncollect: {node}\n"
    with pytest.raises(UserError, match=re.escape(told)):
        loads(text, path=tmp_path / "x.yaml")

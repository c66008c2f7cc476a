"""Attention knockout and NSSD against a slow, obvious implementation, and what the diagnostic reports."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from factory.instruments.instructed import ask_instructed, instructed, told_left_out
from factory.instruments.lens import restricted
from factory.instruments.nssd import nssd
from factory.registry import lookup
from plugins.diagnostics.knockout import PATHWAYS, effects, windows
from tests.anchor import asked_mix, mixed_items, role_sets, scenes_bench, slow_forward
from tests.tiny import tiny_view

Knockout = lookup("diagnostic", "knockout")
SOME = (
    "compliant->instruction",
    "image->context",
    "instruction->generated",
    "context->format",
    "cues->generated",
    "instruction->instruction",
)


def slow_nssd(logits_before, logits_after, comply: list[int], compete: list[int], kl: str) -> float:
    """Eq. 4 entry by entry."""
    entries = [*comply, *compete]
    p, q = ([math.exp(float(x[e])) for e in entries] for x in (logits_before, logits_after))
    p, q = ([v / sum(x) for v in x] for x in (p, q))
    moved = sum(q[: len(comply)]) - sum(p[: len(comply)])
    if kl == "after_before":
        p, q = q, p
    return math.copysign(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), moved)


@pytest.mark.parametrize(("heads", "kv_heads", "kl"), [(4, 2, "before_after"), (4, 4, "after_before")])
def test_every_pathway_and_layer_equals_a_whole_prompt_run_head_by_head(heads, kv_heads, kl):
    view = tiny_view(heads=heads, kv_heads=kv_heads)
    _, asked = asked_mix(view)
    found = effects(view, asked, SOME, window=2, kl=kl, tokens=40)
    worst = 0.0
    for i, item in enumerate(asked.items):
        batch = view.encode([item.prompt])
        sets = role_sets(batch, item.direction)
        before = view.logits(slow_forward(view, batch, lambda *_: False)[-1])
        for pathway in SOME[i % 2 :: 2]:
            source, target = (sets[name] for name in pathway.split("->"))
            for centre in range(view.depth):
                cut = lambda layer, q, k, c=centre, s=source, t=target: layer in (c, c + 1) and q in t and k in s
                after = view.logits(slow_forward(view, batch, cut)[-1])
                expected = slow_nssd(before, after, item.answers.comply, item.answers.compete, kl)
                I, leads = (float(each[i, centre]) for each in found.by_pathway[pathway])
                worst = max(worst, abs(expected))
                assert I == pytest.approx(expected, abs=1e-5), (pathway, centre)
                assert bool(leads) == (
                    after[list(item.answers.comply)].exp().sum() > after[list(item.answers.compete)].exp().sum()
                )
            assert bool(found.there[pathway][i]) == any(k < q for k in source for q in target)
    assert worst > 1e-2, "some cut must do something"


def test_how_much_runs_at_once_and_how_prompts_are_padded_does_not_matter():
    view = tiny_view()
    bench, asked = asked_mix(view)
    whole = effects(view, asked, SOME, 1)
    pieces = effects(view, asked, SOME, 1, tokens=1)
    for i, item in enumerate(asked.items):
        alone = effects(view, ask_instructed(bench, [item]), SOME, 1)
        for pathway in SOME:
            assert torch.allclose(whole.by_pathway[pathway][0], pieces.by_pathway[pathway][0], atol=1e-5)
            assert torch.allclose(whole.by_pathway[pathway][0][i], alone.by_pathway[pathway][0][0], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_windows_are_centred_and_cut_off_at_the_ends(size):
    active = windows(6, size)
    for centre in range(6):
        lowest = centre - (size - 1) // 2
        assert active[:, centre].nonzero()[:, 0].tolist() == [
            layer for layer in range(lowest, lowest + size) if 0 <= layer < 6
        ]


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=8), st.lists(st.floats(-8, 8), min_size=8, max_size=8))
def test_nssd_is_zero_for_no_change_and_negative_when_mass_leaves_the_compliant_answer(before, noise):
    before = torch.tensor(before, dtype=torch.float64)
    K = len(before)
    complies = torch.arange(K) < 2
    p = restricted(before[:2], before[2:])
    assert nssd(p, p, complies).item() == 0.0
    away = before - 3.0 * complies
    q = restricted(away[:2], away[2:])
    assert nssd(p, q, complies).item() < 0 < nssd(q, p, complies).item()
    after = before + torch.tensor(noise[:K], dtype=torch.float64)
    assume((after.softmax(0)[:2].sum() - before.softmax(0)[:2].sum()).abs() > 1e-9)  # at a tie the sign is rounding's
    r = restricted(after[:2], after[2:])
    assert nssd(p, r, complies).item() == pytest.approx(
        slow_nssd(before, after, [0, 1], list(range(2, K)), "before_after"), abs=1e-9
    )


def test_rows_name_their_sample_direction_pathway_and_outcome():
    bench, samples = scenes_bench()
    diagnostic = Knockout(Knockout.Params(window=3))
    rows = diagnostic.on_samples(bench, samples)
    assert rows == diagnostic.on_samples(bench, samples)
    assert {r["direction"] for r in rows if r["metric"] == "nssd"} == {"vision", "text"}
    assert {r["sample"] for r in rows} == {s.id for s in samples}
    nssd_rows = [r for r in rows if r["metric"] == "nssd"]
    assert {r["pathway"] for r in nssd_rows} == set(PATHWAYS) and {r["layer"] for r in nssd_rows} == {0, 1, 2}
    summary = diagnostic.summary([{**r, "outcome": "follow"} for r in rows])
    assert (
        {f.values.get("direction") for f in summary.findings} >= {"vision", "text"}
        and summary.figures
        and len(summary.tables[0].rows) == 2 * len(PATHWAYS)
    )
    assert diagnostic.summary(rows).findings, "a model that never follows still gets a summary"


def test_a_smaller_share_is_part_of_a_larger_one():
    bench, samples = scenes_bench()
    shares = [
        {r["sample"] for r in Knockout(Knockout.Params(share=s)).on_samples(bench, samples)} for s in (0.4, 0.7, 1.0)
    ]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("layout", ["after_format", "before_format", "before_question"])
@pytest.mark.parametrize("system", ["none", "before", "between"])
def test_layouts_keep_roles_and_order(layout, system):
    bench, samples = scenes_bench()
    item = mixed_items(bench, samples[:1], Knockout.Params(layout=layout, system=system))[0]
    names = [s.role.name for s in item.prompt.segments]
    assert names.count("INSTRUCTION") == 1 and names.count("OPTIONS") == 1 + (system != "none")
    if layout == "before_question":
        assert names.index("INSTRUCTION") < names.index("QUESTION")
    if system == "between":
        texts = [s.text[:10] for s in item.prompt.segments if s.role.name in ("INSTRUCTION", "OPTIONS")]
        assert texts[1] == "You are a "


def test_left_out_samples_are_counted():
    bench, samples = scenes_bench()

    class Same:
        def pair(self, *_):
            return "overlap"

    items, rows = instructed(bench, samples, Knockout.Params(), Same())
    assert not items and [r["reason"] for r in rows] == ["overlap"] * len(samples)
    finding = told_left_out([*rows, {**rows[0], "reason": "no coverage"}])
    assert (
        finding.text.endswith(f"(no coverage 1, overlap {len(samples)})")
        and finding.values["left_out"] == len(samples) + 1
    )

"""Attention to the frames of a film: held against a plain loop over all weights, and a shift that is planted."""

from __future__ import annotations

import pytest
import torch

from factory.bench import Bench
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.nodes import read_node
from factory.registry import lookup
from plugins.diagnostics.frame_attention import TEXT, frames_of
from tests.tiny import tiny_view

PRESSED = {"type": "pressed", "of": {"type": "films", "per_task": 2, "frames": 3, "split": "dev"}}


def bench(data=PRESSED):
    return Bench(tiny_view(), read_node("benchmark", data).make(), 1, 4)


def made(**params):
    plugin = lookup("diagnostic", "frame_attention")
    return plugin(plugin.Params(**params))


def value(rows, **facts):
    (row,) = [r for r in rows if all(r[key] == wanted for key, wanted in facts.items())]
    return row["value"]


def by_loops(view, prompt, mean):
    """S [layer][frame] from the attention weights that transformers itself returns, number by number."""
    batch, before = view.encode([prompt]), view.model.config._attn_implementation
    view.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = view.model(**batch, output_attentions=True).attentions
    finally:
        view.model.set_attn_implementation(before)
    roles, frame, inside, of = batch.roles[0].tolist(), -1, False, []
    for role in roles:
        frame += role == Role.IMAGE and not inside
        inside = role == Role.IMAGE
        of.append(frame if inside else None)
    text = [q for q, role in enumerate(roles) if role in [int(r) for r in TEXT]]
    S = []
    for A in maps:
        heads = A.shape[1]
        sums = [0.0] * len(prompt.images)
        for h in range(heads):
            for q in text:
                for k, f in enumerate(of):
                    if f is not None:
                        sums[f] += float(A[0, h, q, k]) / heads
        S.append([s / len(text) if mean else s for s in sums])
    return S


@pytest.mark.parametrize("over", ["sum", "mean"])
def test_the_shift_is_that_of_a_plain_loop_over_all_weights(over):
    b = bench()
    sample = b.benchmark.samples("train")[0]
    rows = made(over=over).on_samples(b, [sample])
    S = {
        side: by_loops(b.view, b.benchmark.paired(sample, "pressed", side), over == "mean")
        for side in ("vision", "text")
    }
    for layer in range(b.view.depth):
        for side, of in S.items():
            for f in range(3):
                found = value(rows, metric=f"S_{f + 1}", prompt=side, layer=layer)
                assert found == pytest.approx(of[layer][f], rel=1e-4)
            at = sample.tags["at"]
            assert value(rows, metric="S_evidence", prompt=side, layer=layer) == pytest.approx(of[layer][at], rel=1e-4)
        delta = sum(abs(S["vision"][layer][f] - S["text"][layer][f]) for f in range(3)) / 3
        assert value(rows, metric="delta", layer=layer) == pytest.approx(delta, rel=1e-3, abs=1e-6)


def test_no_pressure_shifts_nothing():
    b = bench()
    sample = b.benchmark.samples("train")[0]

    class Calm(type(b.benchmark)):
        def paired(self, sample, form, direction):
            return super().paired(sample, form, "vision")

    rows = made().on_samples(Bench(b.view, Calm(b.benchmark.params), 1, 4), [sample])
    assert {r["value"] for r in rows if r["metric"] == "delta"} == {0.0}
    assert made().summary(rows).findings[0].values["delta"] == 0.0


def test_a_planted_shift_is_found_in_its_layer_with_its_sign():
    """Of 24 films the evidence is looked at by 1 less, in layer 1 alone; elsewhere there is noise of a tenth of it."""
    draw, rows = torch.Generator().manual_seed(0), []
    for i in range(24):
        noise = (0.1 * torch.randn(3, 2, generator=draw)).tolist()
        named = {"sample": str(i), "form": "open", "head": None}
        for layer, (one, two) in enumerate(noise):
            drop = float(layer == 1)
            side = {"vision": 2 + one, "text": 2 + two - drop}
            rows.append({**named, "prompt": "base", "metric": "delta", "layer": layer, "value": abs(one - two + drop)})
            rows += [
                {**named, "prompt": p, "metric": "S_evidence", "layer": layer, "value": v} for p, v in side.items()
            ]
    most, change = made().summary(rows).findings
    assert most.values["layer"] == 1 and most.values["delta"] == pytest.approx(1, abs=0.1)
    assert change.values["change"] == pytest.approx(-1, abs=0.1) and change.values["change_ci"][1] < -0.9
    assert change.p < 0.001


def test_pictures_whose_tokens_touch_are_told_apart_by_their_number():
    image, word = int(Role.IMAGE), int(Role.QUESTION)
    apart = frames_of(torch.tensor([image, image, word, image, word]), 2)
    assert apart.tolist() == [[True, True, False, False, False], [False, False, False, True, False]]
    touching = frames_of(torch.tensor([word, image, image, image, image]), 2)
    assert touching.tolist() == [[False, True, True, False, False], [False, False, False, True, True]]
    with pytest.raises(UserError, match="3 image tokens cannot be told apart as 2 pictures"):
        frames_of(torch.tensor([image, image, image]), 2)

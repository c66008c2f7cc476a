"""Answers generated while attention is cut, against whole runs of prompt and answer, head by head and without a
cache.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from factory.data.prompt import Role
from factory.errors import UserError
from factory.instruments.instructed import ask_instructed
from factory.instruments.resume import answers, deep_layers, held_back, severed
from factory.model.encode import Encoded
from factory.model.prefix import decode_texts
from factory.registry import lookup
from tests.anchor import mixed_items, role_sets, scenes_bench, slow_forward
from tests.tiny import tiny_view
from tests.tiny_families import family_view

AnswerKnockout = lookup("diagnostic", "answer_knockout")
PATHWAYS = ("instruction->generated", "cues->generated", "compliant->instruction", "image->context", "context->format")


def slow_answer(view, item, pathway: str, layers, n: int) -> str:
    """Greedy tokens, each from a run of the whole prompt and all that was answered before."""
    images, texts = view.images_of([item.prompt])
    (encoded,) = view.tokens([item.prompt], texts)
    sets = role_sets(view.encode([item.prompt]), item.direction)
    source, target = (sets[name] for name in pathway.split("->"))
    first, answer = len(encoded.ids), []
    while len(answer) < n and not (answer and answer[-1] in view.eos_ids.tolist()):
        batch = view.collate(
            [Encoded(encoded.ids + answer, encoded.roles + [int(Role.ANSWER)] * len(answer), "")], images
        )
        reached = target | (set(range(first, first + len(answer))) if pathway.endswith("generated") else set())
        hidden = slow_forward(
            view, batch, lambda layer, i, j, reached=reached: layer in layers and i in reached and j in source
        )
        answer.append(int(view.logits(hidden[-1:]).argmax()))
    return decode_texts(view, torch.tensor([answer]))[0]


@pytest.mark.parametrize(
    "view",
    [tiny_view(heads=4, kv_heads=2), tiny_view(heads=4, kv_heads=4), *map(family_view, ("qwen2_5_vl", "internvl"))],
    ids=["gqa", "mha", "qwen2_5_vl", "internvl"],
)
def test_answers_are_those_of_whole_runs(view):
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:3]
    asked, layers = ask_instructed(bench, items), range(1, 3)
    plain = answers(view, held_back(view, asked.stem, ["generated"], asked.directions), 4)
    changed = 0
    for pathway in PATHWAYS:
        rest = held_back(view, asked.stem, [pathway.split("->")[1]], asked.directions)
        with severed(view, rest, pathway, layers):
            found = answers(view, rest, 4)
        assert found == [slow_answer(view, item, pathway, layers, 4) for item in items], pathway
        changed += found != plain
        assert answers(view, rest, 4) == plain, "what was cut is whole again"
    assert changed, "some cut must change some answer"


def test_layers_are_the_upper_half_or_as_named():
    assert list(deep_layers(7, None)) == [3, 4, 5, 6] and list(deep_layers(7, (2, 4))) == [2, 3, 4]
    for wrong in ((3, 2), (5, 7), (-1, 2)):
        with pytest.raises(UserError, match="layers 0 to 6"):
            deep_layers(7, wrong)


def test_prompts_that_look_ahead_are_refused():
    bench, samples = scenes_bench(family_view("paligemma"))
    with pytest.raises(UserError, match="cannot be cut"):
        AnswerKnockout(AnswerKnockout.Params()).on_samples(bench, samples[:1])


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
def test_image_tokens_that_cannot_be_run_again_are_refused(name):
    """Gemma's see each other both ways, Qwen3-VL's are given more between blocks."""
    view = family_view(name)
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:2]
    held_back(view, ask_instructed(bench, items[:1]).stem, ["context"], ["vision"])
    with pytest.raises(UserError, match="put the image before"):
        held_back(view, ask_instructed(bench, items[1:]).stem, ["context"], ["text"])


def rows_of(strong: float, weak: float, n: int = 40) -> list[dict]:
    """``n`` prompts a direction that followed, of which these shares still follow with either pathway cut."""
    return [
        {
            "sample": str(i),
            "form": "open",
            "direction": d,
            "outcome": "follow",
            "metric": "follows",
            "pathway": path,
            "layer": None,
            "value": float(i < share * n),
        }
        for d in ("vision", "text")
        for path, share in (("instruction->generated", strong), ("cues->generated", weak))
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("strong", "weak", "holds"), [(0.2, 1.0, True), (0.6, 1.0, False), (0.2, 0.8, False), (1.0, 1.0, False)]
)
def test_the_claim_needs_a_dramatic_fall_beside_a_negligible_one(strong, weak, holds):
    params = AnswerKnockout.Params(pathways=("instruction->generated", "cues->generated"))
    summary = AnswerKnockout(params).summary(rows_of(strong, weak))
    assert [f.holds for f in summary.findings if f.part] == [holds, holds]
    assert summary.tables[0].rows[0][3] == pytest.approx(strong)


def test_a_window_gives_a_curve_by_layer_beside_the_deep_cut():
    bench, samples = scenes_bench()
    params = AnswerKnockout.Params(pathways=("cues->generated",), window=9, layers=(0, 2))
    rows = [r for r in AnswerKnockout(params).on_samples(bench, samples[:2]) if r["metric"] == "follows"]
    assert {r["layer"] for r in rows} == {None, 0, 1, 2}
    of = lambda layer: [r["value"] for r in rows if r["layer"] == layer]
    assert of(None) == of(1), "nine layers around the middle one are all three"
    figures = AnswerKnockout(params).summary([{**r, "outcome": "follow"} for r in rows]).figures
    assert [f.name for f in figures] == ["answer_knockout", "answer_knockout_by_layer"]


def test_a_model_whose_attention_stays_its_own_is_refused(monkeypatch):
    view = tiny_view()
    bench, samples = scenes_bench(view)
    rest = held_back(view, ask_instructed(bench, mixed_items(bench, samples)[:1]).stem, ["generated"], ["vision"])
    monkeypatch.setattr("factory.instruments.resume.attention", lambda view, attend: nullcontext())
    with pytest.raises(UserError, match="cannot be replaced"), severed(view, rest, "cues->generated", [1]):
        answers(view, rest, 2)

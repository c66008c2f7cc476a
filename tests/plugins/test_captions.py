"""Captions beside a misleading text: what is asked, how a caption is judged, and what is left out where nothing can
score it.
"""

from __future__ import annotations

import json

import pytest

from eval_suite.benchmarks.mc2 import Mc2, Mc2Params
from eval_suite.scorers.captions import Captions as Scorer
from factory.data.prompt import Role
from factory.errors import UserError
from factory.instruments.heads import chosen_heads
from factory.registry import lookup
from tests.anchor import scenes_bench
from tests.contract import cases
from tests.contract.cases import answers
from tests.tiny import tiny_view

Captions = lookup("diagnostic", "captions")


def made(**params) -> Captions:
    diagnostic = Captions(Captions.Params(**{"counts": (2,), "max_new_tokens": 3, **params}))
    diagnostic.learn(cases.random_states().found)
    return diagnostic


def test_the_picture_is_described_beside_the_misleading_text_under_a_vision_instruction():
    bench, samples = scenes_bench()
    prompt = made().prompt(bench, samples[0])
    assert [s.role for s in prompt.segments] == [Role.IMAGE, Role.CONTEXT, Role.QUESTION, Role.INSTRUCTION]
    assert (
        samples[0].context in prompt.segments[1].text
        and prompt.segments[2].text == "Describe the image in one sentence."
    )


def test_uncut_captions_are_plain_answers_and_amplified_ones_steered():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    diagnostic = made(counts=(6,), coefficient=50.0, max_new_tokens=6)
    rows = diagnostic.on_samples(bench, samples[:2])
    caption = lambda **facts: [
        r["caption"] for r in rows if r["metric"] == "follows" and all(r[k] == v for k, v in facts.items())
    ]
    prompts = [diagnostic.prompt(bench, s) for s in samples[:2]]
    decoded = lambda steerings: view.tokenizer.batch_decode(
        answers(view, prompts, steerings, n=6), skip_special_tokens=True
    )
    assert caption(action="none") == [t.strip() for t in decoded(())]
    assert caption(choice="top") == [
        t.strip() for t in decoded([chosen_heads(diagnostic.scores, "vision", 6, "top", 50.0)])
    ]
    assert caption(choice="top") != caption(action="none")


def test_a_caption_follows_where_it_names_the_pictures_answer_alone(monkeypatch):
    bench, samples = scenes_bench()
    one = samples[0]
    said = [f"it is {one.answer_vision}", f"it is {one.answer_text}", f"{one.answer_vision} or {one.answer_text}", ""]
    for text, follows, misled in zip(said, (1.0, 0, 0, 0), (0, 1.0, 0, 0), strict=True):
        monkeypatch.setattr("plugins.diagnostics.captions.answers", lambda *_, text=text: [text])
        rows = made(pathways=()).on_samples(bench, [one])
        assert {r["value"] for r in rows if r["metric"] == "follows"} == {follows}
        assert {r["value"] for r in rows if r["metric"] == "misled"} == {misled}


def test_the_table_has_scores_where_they_can_be_computed_and_says_so_where_not(monkeypatch):
    bench, samples = scenes_bench()
    rows = made().on_samples(bench, samples)
    monkeypatch.setattr(Scorer, "missing", staticmethod(lambda: "captions need pycocoevalcap"))
    bare = made().summary(rows)
    assert "METEOR" not in bare.tables[0].columns and any(
        "captions need pycocoevalcap" in f.text for f in bare.findings
    )

    monkeypatch.setattr(Scorer, "missing", staticmethod(lambda: None))
    monkeypatch.setattr(Scorer, "lacking", staticmethod(lambda: None))
    monkeypatch.setattr(
        Scorer,
        "score",
        staticmethod(
            lambda captions, references: {
                "METEOR": len(captions) / 100,
                "CIDEr": min(map(len, references.values())) / 100,
            }
        ),
    )
    table = made().summary(rows).tables[0]
    assert table.columns[-2:] == ("METEOR", "CIDEr") and len(table.rows) == len(made().cells)
    assert {row[-2:] for row in table.rows} == {(float(len(samples)), 6.0)}, (
        "every sample has its caption scored against its six references"
    )

    without = made().summary([{**r, "value": 0.0} if r["metric"] == "references" else r for r in rows])
    assert any("data.captions" in f.text for f in without.findings)


def verdicts(**shares: float) -> list[dict]:
    """Rows of forty samples of which these shares follow in each cell of two pathways."""
    cells = {"none": ("none", ""), "weak": ("cut", "image->context"), "strong": ("cut", "image->instruction")}
    rest = {"choice": "", "heads": 0, "coefficient": 1.0, "form": "caption", "caption": "x"}
    return [
        {
            **rest,
            "sample": str(i),
            "action": action,
            "pathway": path,
            "metric": metric,
            "value": float(i < shares[name] * 40 and metric == "follows"),
        }
        for name, (action, path) in cells.items()
        for metric in ("follows", "misled")
        for i in range(40)
    ]


@pytest.mark.parametrize(
    ("shares", "holds"),
    [
        ({"none": 0.9, "weak": 0.9, "strong": 0.2}, True),
        ({"none": 0.9, "weak": 0.2, "strong": 0.2}, False),
        ({"none": 0.2, "weak": 0.2, "strong": 0.2}, False),
    ],
)
def test_the_finding_compares_with_no_cut_and_with_another_one(shares, holds):
    params = {"pathways": ("image->context", "image->instruction"), "counts": ()}
    (finding,) = [f for f in made(**params).summary(verdicts(**shares)).findings if f.holds is not None]
    assert finding.holds == holds


def test_heads_can_be_left_out_and_are_asked_for_where_not():
    assert not any(cell.heads for cell in made(counts=()).cells)
    with pytest.raises(UserError, match="heads"):
        Captions(Captions.Params()).learn([])


def test_mc2_reads_cocos_captions(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(
        json.dumps(
            {
                "annotations": [
                    {"image_id": 42, "caption": "A red\nbox. "},
                    {"image_id": 42, "caption": "a box"},
                    {"image_id": 7, "caption": "x"},
                ]
            }
        )
    )
    benchmark = Mc2(Mc2Params(captions=(str(file),)))
    assert benchmark.captions == {42: ["A red box.", "a box"], 7: ["x"]}
    file.write_text("{}")
    with pytest.raises(UserError, match="data.captions"):
        _ = Mc2(Mc2Params(captions=(str(file),))).captions
    with pytest.raises(UserError, match="no such file"):
        Mc2(Mc2Params(captions=(str(tmp_path / "none.json"),)))

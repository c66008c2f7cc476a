"""The controllable colour set: its tiers, what the pictures show, and its controls."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from eval_suite.benchmarks.scenes import ColorSet, Scenes, ScenesParams
from eval_suite.scenes import color_set
from eval_suite.scenes.color_set import TIERS, VISUAL_TIERS, color_sample, color_samples
from eval_suite.scenes.draw import COLORS, SHAPES


def test_fourteen_visual_and_four_textual_tiers_each_equally_often():
    samples = color_samples("test", 2 * len(TIERS), 0, 0)
    counts = Counter((s.tags["visual_tier"], s.tags["text_tier"]) for s in samples)
    assert len(counts) == 14 * 4 and set(counts.values()) == {2} and len({s.id for s in samples}) == 112
    assert [(t.distractors, t.occlusion) for t in VISUAL_TIERS[5:]] == [
        (7, 0.5),
        (10, 0.8),
        (7, 0.5),
        (11, 0.8),
        (20, 0.3),
        (30, 0.6),
        (40, 0.5),
        (55, 0.6),
        (70, 0.7),
    ]


@pytest.mark.parametrize("tier", [0, 4, 5, 8, 13])
def test_the_target_has_its_colour_and_distractors_neither_answers_nor_shape(tier, monkeypatch):
    drawn = []
    shape_of = color_set.Canvas.shape
    monkeypatch.setattr(color_set.Canvas, "shape", lambda self, *a: drawn.append(a) or shape_of(self, *a))
    for seed in range(6):
        drawn.clear()
        sample = color_sample("test", seed, tier, 0)
        *others, (shape, color, x, y, r) = drawn
        assert color == sample.answer_vision and sample.tags["subject"] == f"the {shape}"
        assert all(o[0] != shape and o[1] not in (sample.answer_vision, sample.answer_text) for o in others)
        assert len(others) <= VISUAL_TIERS[tier].distractors and (
            tier == 5 or len(others) == VISUAL_TIERS[tier].distractors
        )
        assert all(max(abs(o[2] - x), abs(o[3] - y)) > r + o[4] for o in others)
        pixels = np.asarray(sample.load_image()).reshape(-1, 3).astype(int)
        near = lambda name, pixels=pixels: (np.abs(pixels - COLORS[name]).sum(-1) < 12).sum()
        assert (
            sample.load_image().size == (224, 224) and near(sample.answer_vision) > 0 and near(sample.answer_text) == 0
        )


def test_harder_tiers_show_less_of_the_target():
    def visible(tier: int) -> float:
        shares = []
        for seed in range(8):
            sample = color_sample("train", seed, tier, 0)
            pixels = np.asarray(sample.load_image()).reshape(-1, 3).astype(int)
            shares.append((np.abs(pixels - COLORS[sample.answer_vision]).sum(-1) < 12).mean())
        return float(np.mean(shares))

    assert visible(5) > visible(7) > visible(8) and visible(5) > visible(6)


def test_controls_keep_the_picture_and_ask_or_tell_of_another_shape():
    for seed in range(5):
        conflict, text, image = (
            color_sample("dev", seed, 3, 1, c) for c in (None, "irrelevant_text", "irrelevant_image")
        )
        assert conflict.load_image().tobytes() == text.load_image().tobytes() == image.load_image().tobytes()
        assert len({conflict.id, text.id, image.id}) == 3 and "control" not in conflict.tags
        asked = [next(s for s in SHAPES if s in x.question) for x in (conflict, text, image)]
        told = [next(s for s in SHAPES if s in x.context) for x in (conflict, text, image)]
        assert asked[0] == told[0] == asked[1] != told[1] == asked[2] == told[2]
        assert {x.answer_vision for x in (conflict, text, image)} == {conflict.answer_vision}


def test_the_benchmark_offers_it_and_is_unchanged_without():
    colors = Scenes(ScenesParams(colors=ColorSet(train=3, dev=2, test=5, controls=2)))
    assert [len(colors.samples(split)) for split in ("train", "dev", "test")] == [3, 2, 9]
    assert {s.task for s in colors.samples("test")} == {"color"}
    assert len({s.task for s in Scenes(ScenesParams()).samples("dev")}) == 8


def test_the_same_seed_draws_the_same_and_splits_differ():
    a, b, c = color_sample("test", 4, 9, 2), color_sample("test", 4, 9, 2), color_sample("train", 4, 9, 2)
    assert (
        a.load_image().tobytes() == b.load_image().tobytes() != c.load_image().tobytes()
        and a.context == b.context != c.context
    )

"""What an arm of a comparison answers, and what names it in the cache of answers."""

from __future__ import annotations

import pytest

from factory.registry import lookup
from factory.run.questions.arms import Arm
from factory.steer.logits import contrasted
from tests.tiny import conflict_prompts, tiny_view


def vcd(strength, direction="vision", **params):
    cls = lookup("steering", "vcd")
    return Arm("vcd", direction, strength, contrast=cls(cls.Params(**params)))


@pytest.mark.parametrize("direction", ["vision", "text"])
def test_a_decoding_time_method_answers_questions_at_its_strength(direction):
    view, prompts = tiny_view(), conflict_prompts(4)
    plain = Arm().answer(view, prompts, 4)
    arm = vcd(2.0, direction, noise_step=700, plausible=0.001)
    assert arm.answer(view, prompts, 4) == contrasted(view, arm.contrast, prompts, direction, [2.0], 4)[0] != plain
    assert vcd(0.0, direction).answer(view, prompts, 4) == plain
    assert not arm.lives_in_model and Arm().lives_in_model


def test_whatever_changes_its_answers_changes_what_the_cache_knows_it_by():
    arms = [vcd(1.0), vcd(2.0), vcd(1.0, "text"), vcd(1.0, noise_step=700), Arm()]
    assert len({repr(arm.about) for arm in arms}) == len(arms)

"""PEFT's tuners beside one another."""

from __future__ import annotations

import pytest

from factory.errors import UserError
from factory.registry import lookup
from tests.tiny import fresh_view


def made(name: str):
    cls = lookup("tuner", name)
    return cls(cls.Params())


@pytest.mark.parametrize("second", ["lora", "ia3"])
def test_a_second_one_does_not_replace_the_first_in_silence(second):
    view, first = fresh_view(), made("lora")
    before = {name: p.clone() for name, p in (first.apply(view)).items()}
    with pytest.raises(UserError, match=f"tuner '{second}': the model holds a trained part with PEFT's layers already"):
        made(second).apply(view)
    assert all((p == before[name]).all() for name, p in first.trainable.items()), "what was there is untouched"
    made("mores").apply(view)
    first.remove(view)
    made(second).apply(view)

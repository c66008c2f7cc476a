"""Answer dictionaries: forms, their first tokens, and what is left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.data.answers import Dictionary, DictionaryParams
from factory.errors import UserError
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(400)


def dictionary(**params) -> Dictionary:
    return Dictionary(TOKENIZER, DictionaryParams(**params))


@pytest.mark.parametrize(("answer", "expected"), [
    ("three", {"three", "3", "Three"}), ("3", {"3", "three"}), ("a red box", {"red box", "Red box"}), ("cats", {"cats", "cat", "Cats"}), ("box", {"box", "boxes"}),
])  # fmt: skip
def test_forms(answer, expected):
    forms = dictionary().forms(answer)
    assert expected <= set(forms) and len(forms) == len(set(forms)) <= 10


def test_a_users_own_forms_come_in_and_the_limit_holds(tmp_path):
    file = tmp_path / "forms.json"
    file.write_text(json.dumps({"red": ["rouge", "rot", "红"]}), encoding="utf-8")
    assert {"rouge", "rot", "红"} <= set(dictionary(file=str(file)).forms("a red"))
    assert dictionary(file=str(file), limit=2).forms("red") == ["red", "Red"]
    file.write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="object from answers"):
        dictionary(file=str(file))
    with pytest.raises(UserError, match="cannot be read"):
        dictionary(file=str(tmp_path / "none.json"))


def test_answers_that_begin_alike_or_say_nothing_are_refused():
    assert dictionary().pair("red", "red") == "overlap"
    assert dictionary().pair("the red", "red") == "overlap"
    assert dictionary().pair("red", " ") == "no coverage"


@given(st.sampled_from(["red", "blue", "three", "five", "striped", "running", "above"]), st.sampled_from(["green", "four", "left", "happy", "a tennis"]))
def test_pairs_are_disjoint_and_hold_the_canonical_first_token(comply, compete):
    words = dictionary()
    pair = words.pair(comply, compete)
    if pair == "overlap":
        assert set(words.tokens(words.forms(comply)[0])) & set(words.tokens(words.forms(compete)[0]))
        return
    assert not set(pair.comply) & set(pair.compete)
    for answer, entries in ((comply, pair.comply), (compete, pair.compete)):
        assert set(words.tokens(words.forms(answer)[0])) <= set(entries)
        assert all(TOKENIZER.decode([t]).strip() for t in entries)

"""Answer dictionaries: forms, their first tokens, and what is left out."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer(400)


def dictionary(**params) -> Dictionary:
    return Dictionary(TOKENIZER, DictionaryParams(**params))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("three", {"three", "3", "Three"}),
        ("3", {"3", "three"}),
        ("a red box", {"red box", "Red box"}),
        ("cats", {"cats", "cat", "Cats"}),
        ("box", {"box", "boxes"}),
        ("tennis", {"tennis", "Tennis", "tennises"}),
        ("party", {"party", "parties"}),
        ("parties", {"parties", "party"}),
        ("bus", {"bus", "buses"}),
    ],
)
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


class Lemma:
    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = (lambda: name), (lambda: count)


class Synset:
    def __init__(self, **counts: int) -> None:
        self.lemmas, self.lemma_names = (lambda: [Lemma(*each) for each in counts.items()]), (lambda: list(counts))


def test_synonyms_are_those_of_the_most_frequent_sense_and_come_after_the_rules(monkeypatch):
    senses = {
        "dog": [Synset(frank=0, dog=1), Synset(dog=42, domestic_dog=0, Canis_familiaris=0), Synset(chase=9, dog=2)]
    }
    wordnet = SimpleNamespace(ensure_loaded=lambda: None, synsets=lambda name: senses.get(name, []))
    monkeypatch.setitem(sys.modules, "nltk.corpus", SimpleNamespace(wordnet=wordnet))
    words = dictionary(wordnet=True)
    assert words.forms("a dog") == [
        "dog",
        "Dog",
        "dogs",
        "Dogs",
        "domestic dog",
        "Domestic dog",
        "Canis familiaris",
        "canis familiaris",
    ]
    assert words.forms("cat") == ["cat", "Cat", "cats", "Cats"]
    assert "domestic dog" not in dictionary().forms("dog")


def test_without_wordnet_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(UserError, match="pip install nltk"):
        dictionary(wordnet=True)


def test_answers_that_begin_alike_or_say_nothing_are_refused():
    assert dictionary().pair("red", "red") == "overlap"
    assert dictionary().pair("the red", "red") == "overlap"
    assert dictionary().pair("red", " ") == "no coverage"


@given(
    st.sampled_from(["red", "blue", "three", "five", "striped", "running", "above"]),
    st.sampled_from(["green", "four", "left", "happy", "a tennis"]),
)
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

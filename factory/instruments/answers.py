"""Answer dictionaries: the surface forms of an answer and the vocabulary entries that begin them (Instruction Anchor,
sec. 3.1, app. B).

The paper gathers up to ten forms of each answer from WordNet and two language models, in two languages. Here forms come
from rules (article, number, case, digits and number words), from WordNet where ``wordnet`` is on, and from the user's
own JSON (``{"red": ["crimson", "rouge"]}``), which is how other languages come in. Where an answer has several tokens
the first counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from factory.errors import UserError
from factory.registry import Params

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)


class DictionaryParams(Params):
    """``limit``: most surface forms of an answer; ``wordnet``: synonyms through nltk; ``file``: JSON from answers to
    lists of forms.
    """

    limit: PositiveInt = 10
    wordnet: bool = False
    file: str | None = None


@dataclass(frozen=True)
class Pair:
    """Token ids that begin the instruction-compliant answer (E_C) and the competing one (E_X)."""

    comply: tuple[int, ...]
    compete: tuple[int, ...]


class Dictionary:
    """Surface forms and their first tokens for one tokenizer. Raises ``UserError`` for a file or WordNet that cannot be
    read.
    """

    def __init__(self, tokenizer: Any, params: DictionaryParams) -> None:
        self.tokenizer, self.params = tokenizer, params
        self.own = _read(params.file) if params.file else {}
        self.wordnet = _wordnet() if params.wordnet else None
        self._tokens: dict[str, tuple[int, ...]] = {}
        self._synonyms: dict[str, tuple[str, ...]] = {}

    def forms(self, answer: str) -> list[str]:
        """At most ``limit`` surface forms, the canonical one (without its article) first."""
        canonical = ARTICLE.sub("", answer.strip())
        found = [
            canonical,
            *self.own.get(answer, self.own.get(canonical.lower(), ())),
            *_numbers(canonical),
            *_other_number(canonical),
        ]
        found += self._synonyms_of(canonical)
        cased = [variant for form in found for variant in (form, form.lower(), form[:1].upper() + form[1:])]
        return [form for form in dict.fromkeys(cased) if form][: self.params.limit]

    def _synonyms_of(self, word: str) -> tuple[str, ...]:
        if self.wordnet is not None and word not in self._synonyms:
            self._synonyms[word] = _synonyms(self.wordnet, word)
        return self._synonyms.get(word, ())

    def tokens(self, form: str) -> tuple[int, ...]:
        """Ids of the first token of ``form``, alone and after a space; none that is blank."""
        if form not in self._tokens:
            self._tokens[form] = tuple(
                dict.fromkeys(t for text in (form, f" {form}") if (t := self._first(text)) is not None)
            )
        return self._tokens[form]

    def _first(self, text: str) -> int | None:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return next((t for t in ids if self._text(t) and t != self.tokenizer.unk_token_id), None)

    def _text(self, token: int) -> str:
        return self.tokenizer.decode([token]).strip()

    def pair(self, comply: str, compete: str) -> Pair | str:
        """The first tokens of two answers, or why the sample must be left out: "no coverage" or "overlap".

        A variant's token that both answers have, or that is a single letter of a longer word, says nothing and is
        dropped; where the canonical forms begin alike the sample is left out.
        """
        canonical = [
            set(self.tokens(self.forms(answer)[0])) if self.forms(answer) else set() for answer in (comply, compete)
        ]
        if not all(canonical):
            return "no coverage"
        if canonical[0] & canonical[1]:
            return "overlap"
        sets = [core | self._variants(answer) for core, answer in zip(canonical, (comply, compete), strict=True)]
        shared = sets[0] & sets[1]
        return Pair(*(tuple(sorted(core | (all_ - shared))) for core, all_ in zip(canonical, sets, strict=True)))

    def _variants(self, answer: str) -> set[int]:
        forms = self.forms(answer)[1:]
        return {t for form in forms for t in self.tokens(form) if len(self._text(t)) > 1 or len(form) == 1}


def _read(file: str) -> Mapping[str, Sequence[str]]:
    try:
        own = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: the dictionary's file cannot be read as JSON ({error})") from error
    if not isinstance(own, dict) or not all(
        isinstance(v, list) and all(isinstance(s, str) for s in v) for v in own.values()
    ):
        raise UserError(
            f'{file}: a dictionary is one JSON object from answers to lists of forms, as in {{"red": ["crimson"]}}'
        )
    return own


def _numbers(word: str) -> Iterator[str]:
    if word.isdecimal() and int(word) < len(NUMBERS):
        yield NUMBERS[int(word)]
    elif word.lower() in NUMBERS:
        yield str(NUMBERS.index(word.lower()))


def _other_number(word: str) -> Iterator[str]:
    """Singular of a plural, plural of a singular, by the regular rules."""
    if not re.fullmatch(r"[A-Za-z]{3,}", word):
        return
    if word.endswith("ies"):
        yield word[:-3] + "y"
    elif re.search(r"(?:s|x|z|ch|sh)es$", word):
        yield word[:-2]
    elif re.search(r"(?:ss|is|us|x|z|ch|sh)$", word):
        yield word + "es"
    elif word.endswith("s"):
        yield word[:-1]
    elif re.search(r"[^aeiou]y$", word):
        yield word[:-1] + "ies"
    else:
        yield word + "s"


def _wordnet() -> Any:
    try:
        from nltk.corpus import wordnet

        wordnet.ensure_loaded()
    except (ImportError, LookupError, OSError) as error:
        raise UserError(
            "dictionary: wordnet: needs nltk and its corpus (pip install nltk; python -m nltk.downloader wordnet), or"
            " wordnet: false"
        ) from error
    return wordnet


def _synonyms(wordnet: Any, word: str) -> tuple[str, ...]:
    """Lemmas of the sense in which the word is most frequent in WordNet's counts."""
    name = word.replace(" ", "_")
    count = lambda synset: max(
        (lemma.count() for lemma in synset.lemmas() if lemma.name().lower() == name.lower()), default=0
    )
    sense = max(wordnet.synsets(name), key=count, default=None)
    return tuple(each.replace("_", " ") for each in sense.lemma_names()) if sense else ()

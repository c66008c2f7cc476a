"""CHAIR (Rohrbach et al., EMNLP 2018, arXiv 1809.02156): which objects does a caption name that are not in the picture?

    CHAIR_i = mentions of objects that are not there / mentions of objects          (section 2.1)
    CHAIR_s = captions that name an object that is not there / captions

From the code: an object is there where COCO's segments or one of its five captions have it; the words for each object
(the released synonyms.txt), compounds such as "hot dog" read whole, "baby elephant" and "passenger train" as no person,
"toilet seat" as no chair. Ours: a word's plural is made by rule (the code takes pattern's singularize), compounds of up
to three words are read whole, a caption that says nothing is not a true one, and recall stands beside.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import PositiveInt

from eval_suite.benchmark import AnswerBenchmark, Item, Sums
from eval_suite.coco import find
from eval_suite.released import Row, asked, entries_of, file
from eval_suite.scorers.reading import Reading
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import Params, register
from factory.run.samples import thin

ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
VEHICLES = ("jet", "train")
COMPOUNDS = {  # what they are read as; "" is no object
    **{f"{young} {animal}": animal for young in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in VEHICLES},
    "home plate": "",
    "bow tie": "tie",
    "toilet seat": "toilet",
}
LONGEST = 3  # words of a compound


class ChairParams(Params):
    """``root`` holds instances_val2014.json, captions_val2014.json and the released synonyms.txt; ``images`` COCO's
    pictures (default: root). ``take`` pictures are asked about, evenly spread. ``question`` asks for the caption.
    """

    root: RecipePath
    images: RecipePath | None = None
    take: PositiveInt = 500
    question: str = "Please describe this image in detail."


class Vocabulary(NamedTuple):
    """The object of each phrase."""

    objects: Mapping[str, str]

    @classmethod
    def read(cls, lines: Sequence[str]) -> Vocabulary:
        """From lines of synonyms, an object's own name first."""
        named = [[word.strip() for word in line.split(",")] for line in lines if line.strip()]
        singular = {word: line[0] for line in named for word in line if word}
        return cls({plural(word): of for word, of in singular.items()} | singular)

    def mentions(self, text: str) -> Iterator[str]:
        """The objects that a text names, one by one, in its order."""
        words, i = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()), 0
        while i < len(words):
            for n in range(LONGEST, 0, -1):
                phrase = " ".join(words[i : i + n])
                whole = len(words[i : i + n]) == n
                if whole and (phrase in COMPOUNDS_READ or phrase in self.objects):
                    read = COMPOUNDS_READ.get(phrase, phrase)
                    if read in self.objects:
                        yield self.objects[read]
                    break
            i += n


def plural(word: str) -> str:
    """An English noun's plural, by its last word."""
    if word.endswith("man"):
        return f"{word[:-2]}en"
    if word.endswith(("s", "x", "ch", "sh")):
        return f"{word}es"
    if word.endswith(("fe", "f")) and not word.endswith("ff"):
        return f"{word.rstrip('e')[:-1]}ves"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


COMPOUNDS_READ = COMPOUNDS | {plural(phrase): read for phrase, read in COMPOUNDS.items()}


class ObjectCaptions(AnswerBenchmark):
    """Captions read by CHAIR's rule; an item's gold are the objects on its picture."""

    scorer = "chair-by-rule/1"
    main = "true_captions"
    beside = ("chair_i", "recall")
    shares = {"true_captions": ("true", "n"), "chair_s": ("false", "n")}  # noqa: RUF012

    @property
    def vocabulary(self) -> Vocabulary:
        """The words for objects."""
        raise TypeError(f"{type(self).__name__} must define vocabulary")

    def read(self, item: Item, text: str) -> Reading:
        named = list(self.vocabulary.mentions(text))
        wrong, there = [each for each in named if each not in item.gold], set(item.gold)
        said = text.strip()
        sums = {
            "n": 1.0,
            "true": float(bool(said) and not wrong),
            "false": float(bool(wrong)),
            "wrong": float(len(wrong)),
            "named": float(len(named)),
            "found": float(len(there & set(named))),
            "there": float(len(there)),
        }
        return Reading(", ".join(named) if said else None, sums, sums["true"], failed=not said)

    def metrics(self, sums: Sums) -> dict[str, Any]:
        return {
            "true_captions": sums.ratio("true", "n"),
            "chair_s": sums.ratio("false", "n"),
            "chair_i": sums.ratio("wrong", "named"),
            "recall": sums.ratio("found", "there"),
            "objects": sums.ratio("named", "n"),
        }


@register("benchmark", "chair")
class Chair(ObjectCaptions):
    """CHAIR on COCO's validation pictures: the objects of long captions that are not there."""

    Params = ChairParams

    @property
    def split(self) -> str:
        return f"val2014-{self.params.take}"

    @property
    def protocol(self) -> str:
        return f"{super().protocol}/{self.params.question}"

    @property
    def new_tokens(self) -> int:
        return 512

    @cached_property
    def vocabulary(self) -> Vocabulary:
        path = file(self.params.root, "synonyms.txt")
        return Vocabulary.read(path.read_text(encoding="utf-8").splitlines())

    def items(self) -> Sequence[Item]:
        there = self._there()
        root = self.params.images or self.params.root
        folder = root.directory("images")
        items = []
        for number in thin(sorted(there), self.params.take):
            image = find(folder, f"{number:012d}") or folder / f"COCO_val2014_{number:012d}.jpg"
            prompt = asked(image, (Role.QUESTION, self.params.question))
            items.append(Item(str(number), prompt, sorted(there[number]), images=(image,)))
        return items

    def _there(self) -> dict[int, set[str]]:
        """The objects of each picture that has captions, by its number."""
        captions = file(self.params.root, "captions_val2014.json")
        instances = file(self.params.root, "instances_val2014.json")
        known, there = self.vocabulary, defaultdict[int, set[str]](set)
        for row in entries_of(captions, under="annotations"):
            there[row.whole("image_id")] |= set(known.mentions(row.text("caption")))
        names = {row.whole("id"): self._object(row) for row in entries_of(instances, under="categories")}
        for row in entries_of(instances, under="annotations"):
            number, of = row.whole("image_id"), row.whole("category_id")
            if of not in names:
                raise row.fault(f"category {of} is none of the file's")
            if number in there:
                there[number].add(names[of])
        return there

    def _object(self, row: Row) -> str:
        name = row.text("name")
        if name not in self.vocabulary.objects:
            raise UserError(f"{row.place}: '{name}' is in no line of synonyms.txt; is it the released file?")
        return self.vocabulary.objects[name]

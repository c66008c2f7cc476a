"""CLASH (Popordanoska et al., CVPR 2026 Findings): COCO pictures with captions that contradict them in one word, as the
authors release them.

Prompts and scoring are those of the released code (github.com/tpopordanoska/clash at d9609c3); its order of options was
drawn anew for each model, ours is drawn once, each of the 24 orders equally often. Splits are ours, and so is the
prompt with one source alone, which nobody released: the released one without what it says of the other source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import permutations
from random import Random
from typing import Any, ClassVar, Literal

from pydantic import Field

from eval_suite import coco
from eval_suite.benchmarks.conflicts import SPLITS, DividedParams, by_picture
from eval_suite.conflict import BLANK, ConflictBenchmark
from eval_suite.conflict_questions import ConflictQuestions
from eval_suite.elsewhere import Left, Told, ours, said
from eval_suite.released import Row, entries_of, file
from eval_suite.scorers import clash
from factory.benchmark import Questions
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.recipe.paths import RecipePath
from factory.registry import register

NAMES = ("test.json", "synthetic_captions_test_filtered.json", "data/synthetic_captions_test_filtered.json")
SOURCE = "data/synthetic_captions_test_filtered.json of github.com/tpopordanoska/clash"
UNDECIDED = "Conflicting information – cannot answer"
OPEN = f"""\
You are given an image and a textual description of the image.
Use *both* the visual and textual information to answer the question below as accurately as possible.
Only answer if your response can be clearly supported by both sources.
If the image and the description contradict each other, or if one is missing key information,
output "{UNDECIDED}". Otherwise, provide the answer (less than 15 words). """
CHOICE = f"""\
You are given an image and a textual description of the image.
Use *both* the visual and textual information to answer the multiple choice question below as accurately as possible.
Choose the option that is best supported by *both* sources.
If the image and the description contradict each other, or if one is missing key information, select the option \
“{UNDECIDED}.”
Answer only with the letter corresponding to your choice in parenthesis: (A), (B), (C) or (D).
Do not include any other text."""
ALONE = {
    "open": """\
You are given {source}.
Use the {sense} information to answer the question below as accurately as possible.
Only answer if your response can be clearly supported by it.
Provide the answer (less than 15 words). """,
    "choice": """\
You are given {source}.
Use the {sense} information to answer the multiple choice question below as accurately as possible.
Choose the option that is best supported by it.
Answer only with the letter corresponding to your choice in parenthesis: (A), (B), (C) or (D).
Do not include any other text.""",
}
SOURCES = {
    Role.CONTEXT: {"source": "an image", "sense": "visual"},
    Role.IMAGE: {"source": "a textual description of an image", "sense": "textual"},
}
KINDS = (clash.IMAGE, clash.TEXT, clash.IRRELEVANT, clash.CONTRADICTION)
FIELDS = dict(zip(KINDS, ("image_only", "text_only", "irrelevant_but_plausible", "contradiction"), strict=True))


class ClashParams(DividedParams):
    """``root``: the folder of the released test file; ``images``: the folder that holds train2017/, or all pictures.

    ``scoring``: open_ended, or multiple_choice of four options, one of which says that image and text conflict.
    ``wo_contr`` is the authors' control: the caption that fits the picture, so that the image's answer is right.
    ``test_share`` of the pictures are test and ``dev_share`` of the rest dev, as ``seed`` draws them; it draws the
    order of options too. ``asked``: the split that ``benchmarks:`` asks, or all, as the authors do; with ``alone`` it
    asks each sample of the picture and of the caption alone too.
    """

    root: RecipePath = Field(RecipePath("data/clash"), validate_default=True)
    images: RecipePath = Field(RecipePath("data/coco"), validate_default=True)
    scoring: Literal["open_ended", "multiple_choice"] = "multiple_choice"
    wo_contr: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Entry:
    """One entry of the file: where it stands, what it says, and its option of each kind."""

    place: str
    number: int
    image_id: str
    task: str
    category: str
    caption: str
    conflicting: str
    question: str
    options: Mapping[str, str]

    @property
    def id(self) -> str:
        return f"clash-{self.number:04d}-{self.image_id}"


@register("benchmark", "clash")
class Clash(ConflictBenchmark):
    """CLASH as released, on COCO 2017 pictures: does an answer follow the image, the caption that contradicts it, or
    say that they conflict?
    """

    Params = ClashParams
    params: ClashParams
    scorer: ClassVar[str] = clash.RULE
    answer_tokens = 48  # less than 15 words are asked for
    typical_words, longest_words = 119.0, 141.0

    @property
    def forms(self) -> tuple[str, ...]:
        return ("open",) if self.params.scoring == "open_ended" else ("choice",)

    @property
    def letters(self) -> tuple[str, ...]:
        return ()

    @property
    def protocol(self) -> str:
        control = "/wo_contr" if self.params.wo_contr else ""
        return f"{self.name}/prompt-2/{self.params.scoring}{control}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        return {"no conflict": {"wo_contr": True}, **BLANK}

    @cached_property
    def entries(self) -> list[Entry]:
        """The entries of the released file. Raises ``UserError`` for one that is missing or damaged."""
        path = file(self.params.root, *NAMES, source=SOURCE)
        return [_entry(number, row) for number, row in enumerate(entries_of(path, under="samples"))]

    @cached_property
    def of_sample(self) -> dict[str, Entry]:
        return {e.id: e for e in self.entries}

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """The entries of each split, each kind of change in proportion; no picture is in two."""
        drawn = by_picture(((e.image_id, e.task) for e in self.entries), self.params, self.params.root)
        ordered = sorted(self.entries, key=lambda e: e.task)
        return {split: [e for e in ordered if drawn[e.image_id] == split] for split in SPLITS} | {"all": ordered}

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e) for e in self.splits[split]]

    def _sample(self, e: Entry) -> ConflictSample:
        folder = self.params.images.path
        path = coco.find(folder, e.image_id) or folder / f"train2017/{e.image_id}.jpg"
        context = e.caption if self.params.wo_contr else e.conflicting
        texts = (e.question, context, e.options[clash.IMAGE], e.options[clash.TEXT])
        tags = {"image_id": e.image_id, "category": e.category}
        load = self.params.load(partial(coco.picture, folder, e.image_id))
        return ConflictSample(e.id, e.task, *texts, load, tags, (path,), e.place)

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        folder = self.params.images.path
        found = {i: coco.find(folder, i) for i in dict.fromkeys(str(s.tags["image_id"]) for s in samples)}
        do = "Download train2017.zip (18 GB) from cocodataset.org, unzip it into a folder and name that: images=FOLDER"
        return [s.id for s in samples if not found[str(s.tags["image_id"])]], coco.lacking("CLASH", folder, found, do)

    @cached_property
    def orders(self) -> list[tuple[str, ...]]:
        orders = list(permutations(KINDS))
        Random(f"clash/{self.params.seed}").shuffle(orders)
        return orders

    def choices(self, sample: ConflictSample) -> dict[str, str]:
        """The letter of the option of each kind."""
        e = self.of_sample[sample.id]
        return dict(zip(self.orders[e.number % len(self.orders)], "ABCD", strict=True))

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The released prompt: what is to be done, the caption, the question, and the options of a choice."""
        alone = tuple((role, ALONE[form].format(**words)) for role, words in SOURCES.items())
        asked = [
            Segment(Role.IMAGE, image=sample.load_image()),
            Segment(Role.OPTIONS, OPEN if form == "open" else CHOICE, lacking=alone),
            Segment(Role.CONTEXT, sample.context),
            Segment(Role.QUESTION, sample.question),
        ]
        if form != "open":
            options, letters = self.of_sample[sample.id].options, self.choices(sample)
            lines = sorted(f"({letter}) {options[kind]}" for kind, letter in letters.items())
            asked.append(Segment(Role.OPTIONS, "\n".join(lines)))
        return Prompt(tuple(asked))

    def answer(self, sample: ConflictSample, form: str, direction: str) -> str:
        if form != "open":
            return f"({self.choices(sample)[clash.IMAGE if direction == 'vision' else clash.TEXT]})"
        return sample.answer_vision if direction == "vision" else sample.answer_text

    def judge(self, sample: ConflictSample, form: str, text: str) -> str:
        """The verdict by ``clash/1``: vision, text, flags, other (several at once), or unknown (none of these)."""
        if form == "open":
            return clash.verdict(clash.open_ended(text, sample.answer_vision, sample.answer_text))
        return clash.verdict(clash.multiple_choice(text, self.choices(sample)))

    @cached_property
    def of_question(self) -> dict[tuple[str, str], Entry]:
        return {(e.image_id, e.question): e for e in self.entries}

    def released_answer(self, row: Row) -> Told | Left | None:
        """A row of results/ in the released repository, which has the answers, and the letters, that were asked."""
        if "modality_answers" not in row:
            return None
        entry = self.of_question.get((f"{row.whole('image_id'):012d}", row.text("question")))
        if entry is None:
            return Left(row.place, "no sample with its picture and question")
        text, sides = said(row, "prediction"), row.inner("modality_answers")
        if isinstance(sides.value("image_only"), str):
            found = clash.open_ended(text, sides.text("image_only"), sides.text("text_only"))
        else:
            found = clash.multiple_choice(text, {kind: sides.inner(FIELDS[kind]).text("choice") for kind in KINDS})
        verdict = ours(clash.verdict(found))
        if "evaluation" not in row:
            return Told(row.place, entry.id, entry.task, (text,), verdict, found)
        released = dict(row.inner("evaluation").values)
        if set(released) != set(found) or not all(isinstance(flag, bool) for flag in released.values()):
            raise row.fault(f"'evaluation' should hold {', '.join(found)}, each true or false")
        return Told(row.place, entry.id, entry.task, (text,), verdict, found, released, ours(clash.verdict(released)))

    def as_questions(self) -> Questions:
        """Its samples as questions; what is right is to flag the conflict and, without one, the image's answer."""
        wanted = self.params.followed if self.params.wo_contr or self.params.shown == "blank" else "flags"
        return ConflictQuestions(self, wanted, self.params.asked, alone=self.params.alone)


def _entry(number: int, row: Row) -> Entry:
    answers = row.inner("answers")
    options = {kind: answers.text(FIELDS[kind]) for kind in KINDS[:-1]} | {clash.CONTRADICTION: f"{UNDECIDED}."}
    kinds = row.value("category") if "category" in row else []
    category = "+".join(row.texts("category")) if isinstance(kinds, list) and kinds else str(kinds or "other")
    return Entry(
        row.place,
        number,
        f"{row.whole('image_id'):012d}",
        row.among("change_type", "object", "attribute"),
        category,
        row.text("original_caption"),
        row.text("conflicting_caption"),
        row.text("question"),
        options,
    )

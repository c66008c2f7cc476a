"""MC² (Zhang et al., arXiv 2505.20977): 2,000 image-text conflicts on COCO 2014 pictures, eight tasks of 250, as the
authors release them.

Prompt layout and the two option orders are those of the authors' script (SPEC 3.2). Scoring (SPEC 3.3) and splits (SPEC
A16) are ours: neither the benchmark's nor the AMPS authors' are public.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from pydantic import Field

from eval_suite import coco
from eval_suite.conflict import BLANK, DIRECT, TASKS, ConflictBenchmark, Scoring, ShownParams, build_prompt
from factory import files
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.recipe.paths import RecipePath
from factory.registry import register

FILE = "evaluate_final.json"
SOURCE = "data/evaluate_final.json of github.com/EchoDreamer/Modality-Preference"
KEYS = {
    "answer_vision": "gt",
    "answer_text": "hitem",
}  # the released file's names, and those that the authors' script reads
SMALLEST = 3  # samples of a task that give one to each split
RELEASED = 250  # samples of each task


class Mc2Params(ShownParams):
    """``file``: the released JSON; null looks for evaluate_final.json in ``images``, beside it, and in data/mc2 here.
    ``images``: the folder that holds train2014/ and val2014/, or all pictures. ``captions``: COCO's
    captions_train2014.json and captions_val2014.json, for diagnostics that score captions.

    ``protocol``: held_out takes ``test_share`` of each task for test and ``dev_share`` of the rest for dev, by
    ``seed``; paper trains and scores on all samples, as AMPS does: its test numbers are of training samples, and
    results and report say so.

    ``scoring``: how an answer is asked for and read (SPEC 3.3); ``seed`` draws the splits.
    """

    file: RecipePath | None = None
    images: RecipePath = Field(RecipePath("data/coco"), validate_default=True)
    captions: tuple[RecipePath, ...] = ()
    scoring: Scoring = "both_orders"
    protocol: Literal["held_out", "paper"] = "held_out"
    test_share: float = Field(0.2, gt=0, lt=1)
    dev_share: float = Field(0.2, gt=0, lt=1)
    seed: int = 0


@dataclass(frozen=True)
class Entry:
    """One object of the file: its place there, and its fields under the released file's names."""

    index: int
    image_id: str
    task: str
    question: str
    context: str
    answer_vision: str
    answer_text: str


@register("benchmark", "mc2")
class Mc2(ConflictBenchmark):
    """MC² as released, on COCO 2014 pictures: which modality an answer follows where picture and text disagree."""

    Params = Mc2Params
    tasks = TASKS
    typical_words, longest_words = (
        63.0,
        185.0,
    )  # of a prompt: the file's mean and longest context and question, and what the layout adds

    def __init__(self, params: Mc2Params) -> None:
        self.params, self.scoring = params, params.scoring
        self.folder = Path(params.images).expanduser()
        for file in params.captions:
            file.file("captions", "It is in annotations_trainval2014.zip of cocodataset.org")

    @property
    def protocol(self) -> str:
        leaks = "/scored-on-training-samples" if self.params.protocol == "paper" else ""
        return f"{super().protocol}{leaks}{self.params.control}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        return BLANK

    @property
    def warnings(self) -> tuple[str, ...]:
        if self.params.protocol == "held_out":
            return ()
        return (
            (
                "LEAKAGE: data.protocol=paper fits every method on the very samples that the test rows score; these"
                " numbers say nothing of new samples."
            ),
        )

    @cached_property
    def path(self) -> Path:
        """The released file. Raises ``UserError`` that says where it was looked for."""
        if self.params.file:
            return self.params.file.file("file", f"It is {SOURCE}")
        tried = [self.folder, self.folder.absolute().parent, Path("data/mc2")]
        found = next((folder / FILE for folder in tried if (folder / FILE).is_file()), None)
        if found is None:
            raise UserError(
                f"MC²'s {FILE} is not in {', '.join(map(str, tried))}. Get {SOURCE} and name it: data.file=FILE"
            )
        return found

    @cached_property
    def entries(self) -> list[Entry]:
        return read(self.path)

    @cached_property
    def splits(self) -> dict[str, list[Entry]]:
        """Stratified by task. A picture that several samples show makes all of them training samples, so none of test
        is seen before.
        """
        shown = Counter(e.image_id for e in self.entries)
        place = {e.index: "train" for e in self.entries}
        for task in dict.fromkeys(e.task for e in self.entries):
            members = [e for e in self.entries if e.task == task]
            alone = [e.index for e in members if shown[e.image_id] == 1]
            Random(f"{self.params.seed}/{task}").shuffle(alone)
            test = _share(self.params.test_share, len(members))
            dev = _share(self.params.dev_share, len(members) - test)
            place |= dict.fromkeys(alone[:test], "test") | dict.fromkeys(alone[test : test + dev], "dev")
        ordered = sorted(
            self.entries, key=lambda e: TASKS.index(e.task)
        )  # so that some samples, evenly spread, are of every task
        splits = {name: [e for e in ordered if place[e.index] == name] for name in ("train", "dev", "test")}
        return splits if self.params.protocol == "held_out" else {**splits, "train": ordered, "test": ordered}

    @property
    def expected(self) -> dict[str, int]:
        """Samples by split of the file as released, where it is not there."""
        test = _share(self.params.test_share, RELEASED)
        dev = _share(self.params.dev_share, RELEASED - test)
        whole = self.params.protocol == "paper"
        counts = {
            "train": RELEASED if whole else RELEASED - test - dev,
            "dev": dev,
            "test": RELEASED if whole else test,
        }
        return {split: len(TASKS) * n for split, n in counts.items()}

    def samples(self, split: str) -> Sequence[ConflictSample]:
        return [self._sample(e) for e in self.splits[split]]

    def _sample(self, e: Entry) -> ConflictSample:
        name = f"mc2-{e.index:04d}-{coco.brief(e.image_id)}"
        load, path = self.params.load(partial(coco.picture, self.folder, e.image_id)), self.find(e.image_id)
        return ConflictSample(
            name,
            e.task,
            e.question,
            e.context,
            e.answer_vision,
            e.answer_text,
            load,
            {"image_id": e.image_id},
            (path,) if path else (),
        )

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        """The script's prompt; its open-ended question goes on after a space, where the other forms break the line."""
        prompt = build_prompt(sample, form)
        if form != "open":
            return prompt
        return prompt.without(Role.OPTIONS).append(Segment(Role.OPTIONS, DIRECT, inline=True))

    @cached_property
    def captions(self) -> dict[int, list[str]]:
        """COCO's captions by picture. Raises ``UserError`` for a file that is not COCO's."""
        return read_captions(self.params.captions)

    def references(self, sample: ConflictSample) -> Sequence[str]:
        return self.captions.get(int(sample.tags["image_id"]), ())

    def find(self, image_id: str) -> Path | None:
        """The picture's file, None where there is none."""
        return coco.find(self.folder, image_id)

    def absent(self, samples: Sequence[ConflictSample]) -> tuple[list[str], str]:
        """Samples whose picture is not there, and one line that says how many of how many, in which folder, and what to
        do.
        """
        found = {i: self.find(i) for i in dict.fromkeys(str(s.tags["image_id"]) for s in samples)}
        do = (
            "Download train2014.zip and val2014.zip (13 and 6 GB) from cocodataset.org, unzip both into one folder and"
            " name it: data.images=FOLDER"
        )
        line = coco.lacking("MC²", self.folder, found, do)
        return [s.id for s in samples if found[str(s.tags["image_id"])] is None], line


def _share(share: float, n: int) -> int:
    return max(1, round(share * n)) if n >= SMALLEST - 1 else 0


def read(path: Path) -> list[Entry]:
    """The file's entries, with the keys of the released file or those of the authors' script. Raises ``UserError``
    naming what is wrong.
    """
    try:
        data = files.decode_json(files.read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: not a whole JSON file ({error}); download it again") from error
    if not isinstance(data, list) or not data:
        raise UserError(f"{path}: not MC²'s file: it should be a list of objects")
    return list(_entries(path, data))


def _entries(path: Path, data: list[Any]) -> Iterator[Entry]:
    for index, raw in enumerate(data):
        if not isinstance(raw, dict):
            raise UserError(f"{path}: entry {index} is no object")
        fields = {**raw, **{name: raw.get(name, raw.get(other)) for name, other in KEYS.items()}}
        if isinstance(fields.get("context"), dict):
            fields["context"] = fields["context"].get("icc")
        names = [name for name in Entry.__dataclass_fields__ if name != "index"]
        wanted = {name: value for name in names if isinstance(value := fields.get(name), str)}
        if lacking := [name for name in names if name not in wanted]:
            raise UserError(f"{path}: entry {index} has no text under {', '.join(lacking)}")
        if wanted["task"] not in TASKS:
            raise UserError(
                f"{path}: entry {index} is of the unknown task {wanted['task'][:60]!a}; MC² has {', '.join(TASKS)}"
            )
        yield Entry(index, **wanted)


def read_captions(files: Sequence[str]) -> dict[int, list[str]]:
    """Captions by image id from COCO's annotation files. Raises ``UserError`` naming a file that is none."""
    captions: dict[int, list[str]] = {}
    for file in files:
        try:
            for note in json.loads(Path(file).expanduser().read_text(encoding="utf-8"))["annotations"]:
                captions.setdefault(int(note["image_id"]), []).append(" ".join(note["caption"].split()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"data.captions {file}: not a file of COCO's captions, such as captions_val2014.json ({error!r})"
            ) from error
    return captions

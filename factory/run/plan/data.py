"""What a plan sees of a comparison's samples: how many there are, what they look like, and what cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from factory.bench import conflicts
from factory.benchmark import Conflicts
from factory.blame import blaming
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.recipe import Recipe
from factory.run.samples import check_share, fault, present_samples, thin

LOOKED_AT, FEW = 16, 400  # samples of each split of many; all where there are few
MADE_UP = ConflictSample(
    "", "", "question", "context", "one", "another", lambda: Image.new("RGB", (1, 1)), context_a="a"
)
PICTURES = 2  # read of each split of many: a slow disk takes a while for each


@dataclass(frozen=True)
class Data:
    """Ids of the samples by split (made up where the file is not there), the forms each is asked in, one of the
    prompts, and those ``asked`` of one sample in all forms (made up likewise), the words of a prompt and of the
    ``longest``; what a run would refuse of them, ``missing``, and what has to be known of the samples looked at,
    ``noted``."""

    ids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    forms: tuple[str, ...] = ()
    prompt: Prompt | None = None
    asked: tuple[Prompt, ...] = ()
    words: float = 0.0
    longest: float = 0.0
    missing: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()

    @property
    def samples(self) -> dict[str, int]:
        return {split: len(ids) for split, ids in self.ids.items()}

    @property
    def prompts(self) -> dict[str, int]:
        return {split: n * len(self.forms) for split, n in self.samples.items()}


def look_at_data(recipe: Recipe, limit: int | None = None, known: tuple[Any, ...] = ()) -> Data:
    """Count the samples and look at some of each split and at a picture or two, or at all where they are few, by what
    ``checks`` makes ``known`` of the model; a benchmark whose file is not there may know what it would hold.
    """
    benchmark = conflicts(recipe.data)
    forms = tuple(benchmark.forms)
    try:
        splits, absent, line = present_samples(recipe, benchmark, limit)
    except UserError as error:
        expected = benchmark.expected
        made_up = {
            split: [f"{split}-{i}" for i in range(n if limit is None else min(n, limit))]
            for split, n in expected.items()
        }
        return Data(
            made_up,
            forms,
            asked=_asked(benchmark, MADE_UP),
            words=benchmark.typical_words,
            longest=benchmark.longest_words,
            missing=(str(error),),
        )
    gone, few = set(absent), sum(map(len, splits.values())) <= FEW
    there = [[s for s in samples if s.id not in gone] for samples in splits.values()]
    looked_at = [s for samples in there for s in thin(samples, None if few else LOOKED_AT)]
    read = {s.id for samples in there for s in thin(samples, None if few else PICTURES)}
    faulty = {s.id: why for s in looked_at if (why := fault(s, *known, pictured=s.id in read))}
    usable = next((s for s in looked_at if s.id not in faulty), None)
    lost, noted = _lost(recipe, splits, faulty, few), [line] if absent else []
    if faulty and not lost:
        noted.append(
            f"{len(faulty)} of {len(looked_at)} samples looked at cannot be used; the first:"
            f" {': '.join(next(iter(faulty.items())))}"
        )
    ids = {split: [s.id for s in samples] for split, samples in splits.items()}
    if usable is None:
        return Data(
            ids,
            forms,
            words=benchmark.typical_words,
            longest=benchmark.longest_words,
            missing=tuple(lost),
            noted=tuple(noted),
        )
    asked = _asked(benchmark, usable)
    prompt = asked[0] if asked else benchmark.prompt(usable, forms[0])
    words = sum(len(segment.text.split()) for segment in prompt.segments)
    most = max(own_words(s) for samples in splits.values() for s in samples)
    return Data(ids, forms, prompt, asked, words, words + most - own_words(usable), tuple(lost), tuple(noted))


def _asked(benchmark: Conflicts, sample: ConflictSample) -> tuple[Prompt, ...]:
    """The prompts of a sample in all forms; none where a benchmark wants more of it than it tells."""
    try:
        return tuple(benchmark.prompt(sample, form) for form in benchmark.forms)
    except (KeyError, UserError):
        return ()


def _lost(
    recipe: Recipe, splits: Mapping[str, Sequence[ConflictSample]], faulty: Mapping[str, str], whole: bool
) -> list[str]:
    """What a run refuses of the ``faulty`` samples, where the ``whole`` data were looked at, or none could be used."""
    assert recipe.data is not None, "a recipe without data has no such plan"
    try:
        with blaming(recipe.data):
            for samples in splits.values() if whole else ():
                bad = [{"sample": s.id, "reason": faulty[s.id]} for s in samples if s.id in faulty]
                check_share(bad, len(samples), recipe.evaluate.max_skipped)
    except UserError as error:
        return [str(error)]
    return []


def own_words(sample: ConflictSample) -> int:
    """Words that a sample brings into its prompt."""
    return len(" ".join((*sample.contexts.values(), sample.question)).split())

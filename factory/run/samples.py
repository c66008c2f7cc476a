"""The samples of a run: those that cannot be used are left out, counted and named, before anything heavy starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from factory import files
from factory.benchmark import Conflicts
from factory.blame import blaming
from factory.corpus.conversation import halved
from factory.corpus.refusals import Shapes
from factory.data.instructions import Style
from factory.data.pictures import PROTOCOL
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.model.encode import Writing
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run import inputs
from factory.run.owner import CHECK
from factory.run.rundir import RunDir
from factory.steer.collect import asked, asks_of
from factory.terminal import warn

SPLITS = ("train", "dev", "test")
T = TypeVar("T")


Fit = Callable[[ConflictSample], str | None]


def fault(
    sample: ConflictSample,
    writing: Writing | None = None,
    fit: Fit | None = None,
    shapes: Shapes | None = None,
    *,
    pictured: bool = True,
) -> str | None:
    """Why a sample cannot be scored, or None; with a model's ``writing`` also where a text spells one of its special
    tokens, with ``fit`` where the sample's prompts are too long for it, and with ``shapes`` where its picture is of a
    size that the model refuses. Its picture is not read where it is not ``pictured``.
    """
    why = _fault(sample, writing, fit, shapes, pictured)
    return f"{sample.place}: {why}" if why and sample.place else why


def _fault(
    sample: ConflictSample, writing: Writing | None, fit: Fit | None, shapes: Shapes | None, pictured: bool
) -> str | None:
    for field, text in texts_of(sample).items():
        if not text.strip():
            return f"its {field} is empty"
        if half := halved(text):
            return f"its {field} holds {half}"
        if writing and (spelt := writing.reserved(text)):
            return f"its {field} spells the model's special token '{spelt}'"
    if sample.flaw:
        return sample.flaw
    seen = _unseen(sample, shapes) if pictured and sample.sources.pictured else None
    return seen or (fit(sample) if fit else None)


def _unseen(sample: ConflictSample, shapes: Shapes | None) -> str | None:
    """Why its picture cannot be shown; None where it can."""
    try:
        image = sample.load_image()
    except OSError as error:
        return f"its image cannot be read: {error}"
    return shapes.refusal(image.size) if shapes else None


def texts_of(sample: ConflictSample) -> dict[str, str]:
    """What a sample says, by what messages, predictions and ``factory.read`` call it: question, contexts and answers.

    Of an image and a text these are question, context, answer_vision and answer_text; of two texts every context and
    answer bears the name of its source.
    """
    answers = {f"answer_{name}": answer for name, answer in sample.answers.items()}
    if sample.sources.pictured:
        return {"question": sample.question, "context": sample.context, **answers}
    contexts = {f"context_{name}": text for name, text in sample.contexts.items()}
    return {**contexts, "question": sample.question, **answers}


def fitting(view: ModelView, benchmark: Conflicts, style: Style) -> Fit:
    """What tells why a sample's prompts do not fit a model, or None. Prompts are made only where the words alone might
    take half of its positions.
    """

    def fit(sample: ConflictSample) -> str | None:
        if (
            view.positions is None
            or len("".join((*sample.contexts.values(), sample.question)).encode()) < view.positions // 2
        ):
            return None
        texts = [*sample.contexts.values(), sample.question]
        alone = sum(map(len, view.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
        if alone > view.positions:  # told without writing whole prompts of endless texts
            return (
                f"its context and question alone take {alone:,} tokens, and {type(view.model).__name__} has"
                f" {view.positions}: shorten its text"
            )
        return unfit(
            view,
            [
                asked(benchmark.prompt(sample, form), ask, style)
                for form in benchmark.forms
                for ask in asks_of(benchmark.sources)
            ],
        )

    return fit


def unfit(view: ModelView, prompts: Sequence[Prompt]) -> str | None:
    """Why prompts do not fit a model (more positions than it has), or None."""
    try:
        images, shown = view.images_of(prompts)
        view.batch(view.tokens(prompts, shown), images, "left")
    except UserError as error:
        return str(error)
    return None


def thin(samples: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` samples, evenly spread over the sequence (and so over tasks)."""
    if limit is None or limit >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // limit] for i in range(limit)]


Checked = tuple[dict[str, list[ConflictSample]], list[dict[str, Any]]]


def present_samples(
    recipe: Recipe, benchmark: Conflicts, limit: int | None
) -> tuple[dict[str, list[ConflictSample]], list[str], str]:
    """Samples by split, the ids of those whose pictures are not there, and one line about them. Raises ``UserError``
    where these are too many, or where the benchmark's files are missing.
    """
    assert recipe.data is not None, "a recipe that compares methods has data"
    with blaming(recipe.data):
        splits = {split: thin(benchmark.samples(split), limit) for split in SPLITS}
        absent, line = benchmark.absent([s for samples in splits.values() for s in samples])
        gone, allowed = set(absent), recipe.evaluate.max_skipped
        for split, samples in splits.items():
            lost = sum(s.id in gone for s in samples)
            if lost > allowed * len(samples):
                raise UserError(
                    f"{line} ({lost:,} of the {len(samples):,} {split} samples lack theirs, more than"
                    f" evaluate.max_skipped={allowed:g} allows)"
                )
    return splits, absent, line


def usable_samples(recipe: Recipe, benchmark: Conflicts, folder: RunDir, limit: int | None, view: ModelView) -> Checked:
    """Usable samples by split, and those that are not, with the reason; ``view`` needs no weights.

    Pictures that are not there are counted first, and told in one line. Raises ``UserError`` where too many samples are
    unusable; nothing is stored then, so that the run can be started again once they are there.
    """
    assert recipe.data is not None, "a recipe that compares methods has data"
    splits, absent, line = present_samples(recipe, benchmark, limit)
    stage = folder.stage(
        CHECK,
        {
            "code": version("steering-factory"),
            "data": inputs.asking(given(recipe.data)),
            "samples": inputs.of_samples(s for samples in splits.values() for s in samples),
            "limit": limit,
            "absent": files.digest(absent),
            "reserved": view.writing.special,
            "reads": inputs.reads(view),
            "instructions": recipe.collect.instructions,
            "positions": view.positions,
            "pictures": [PROTOCOL, view.picture_settings],
        },
    )
    allowed = recipe.evaluate.max_skipped
    if absent and not stage.done and folder.world.first:
        warn(line)
    usable, skipped = {}, []
    work = {
        split: partial(faults, samples, split, allowed, *checks(recipe, view, benchmark))
        for split, samples in splits.items()
    }
    with blaming(recipe.data):
        found = stage.gather(work)
    for (split, samples), bad in zip(splits.items(), found, strict=True):
        names = {row["sample"] for row in bad}
        usable[split] = [s for s in samples if s.id not in names]
        skipped += bad
    if not stage.done:
        stage.finish({"usable": {split: len(s) for split, s in usable.items()}, "skipped": len(skipped)})
    return usable, skipped


def checks(recipe: Recipe, view: ModelView, benchmark: Conflicts) -> tuple[Writing, Fit, Shapes]:
    """What ``faults`` is told of a model: ``view`` needs no weights."""
    return view.writing, fitting(view, benchmark, recipe.collect.instructions), Shapes(view)


def faults(
    samples: Sequence[ConflictSample],
    split: str,
    allowed: float,
    writing: Writing,
    fit: Fit | None = None,
    shapes: Shapes | None = None,
) -> list[dict[str, Any]]:
    """The unusable samples, each read once. Raises ``UserError`` where they are more than a share ``allowed``."""
    bad = [{"sample": s.id, "reason": why, "split": split} for s in samples if (why := fault(s, writing, fit, shapes))]
    check_share(bad, len(samples), allowed)
    return bad


def check_share(skipped: Sequence[dict[str, Any]], total: int, allowed: float) -> None:
    """Raises ``UserError`` when more than a share ``allowed`` of ``total`` samples is unusable."""
    if total == 0:
        raise UserError("0 of 0 samples: there is none to ask. A split is empty, as of a file too small to be split")
    if len(skipped) > allowed * total:
        first = f"; the first: {skipped[0]['sample']}: {skipped[0]['reason']}" if skipped else ""
        raise UserError(
            f"{len(skipped)} of {total} samples cannot be used, more than evaluate.max_skipped={allowed:g}"
            f" allows{first}"
        )

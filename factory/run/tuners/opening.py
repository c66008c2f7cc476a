"""A recipe's training samples: opened, every row checked against what its model can take, and what was found told in
one table before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from factory import files, progress
from factory.benchmark import WithLessons
from factory.blame import blaming
from factory.corpus.audit import Audit
from factory.corpus.collate import image_tokens
from factory.corpus.hub_data import HubFlow, hub_file
from factory.corpus.index import Check
from factory.corpus.mixed import MixedFiles, check_many, nothing_of
from factory.corpus.photos import PhotoFolder
from factory.corpus.refusals import Refusals
from factory.corpus.source import Audited, ConversationFile, Lessons, Opened
from factory.corpus.stream import FileFlow, Flow, Stream, rows_of
from factory.errors import UserError
from factory.model.load import lacking, outline
from factory.model.source import Wanted
from factory.model.view import ModelView
from factory.recipe import Recipe
from factory.recipe.nodes import Spec, given
from factory.recipe.paths import RecipePath
from factory.recipe.schema import DataFileSpec, TuneDataSpec
from factory.run.rundir import RunDir
from factory.terminal import Console
from factory.tune.tokens import tell_words

INDICES = ".index"  # of data files, beside the runs: many runs read one file


def shared_source(recipe: Recipe, folder: RunDir, model: Wanted, data: TuneDataSpec) -> Opened:
    """The samples of ``data`` of ``recipe.tune``, indexed by the first rank and then taken from the index by the
    others.
    """
    batch = given(recipe.tune).batch_size
    view = _outline(recipe, model) if data.lessons is None else None
    source = open_source(recipe, data, batch, view) if folder.owner else None
    folder.world.meet("the data are indexed")
    return source or open_source(recipe, data, batch, view, quiet=True)


def planned_source(recipe: Recipe, data: TuneDataSpec, batch: int, model: Wanted) -> Opened:
    """The samples as ``shared_source`` would have them; unchecked by the model where that is not on this machine."""
    checked = data.lessons is None and not lacking(model)
    return open_source(recipe, data, batch, _outline(recipe, model) if checked else None)


def _outline(recipe: Recipe, model: Wanted) -> ModelView:
    """The model without weights, which knows the words that are new in this training."""
    view, spec = outline(model), recipe.tune or given(recipe.compare)
    with blaming(spec):
        tell_words(view.tokenizer, spec.new_tokens)
    return view


def open_source(
    recipe: Recipe, spec: TuneDataSpec, batch: int, view: ModelView | None = None, quiet: bool = False
) -> Opened:
    """The samples of a recipe; with a ``view`` of its model, which needs no weights, rows that this cannot take are
    unusable too. What was found is printed, unless it should be ``quiet``.

    Raises ``UserError`` where more samples than ``max_skipped`` allows cannot be used.
    """
    if spec.lessons is not None:
        benchmark = spec.lessons.make()
        if not isinstance(benchmark, WithLessons):
            raise UserError(
                f"tune.data.lessons: benchmark '{spec.lessons.type}' has no lessons to train on; use scenes"
            )
        return Lessons(benchmark, batch, spec.take or 0)
    if spec.streaming:
        return _stream(recipe, spec, view, quiet)
    if spec.mix is not None:
        parts = [_opened(recipe, _alone(spec, file), view, quiet, file) for file in spec.mix]
        return MixedFiles(parts, [file.weight for file in spec.mix], spec.take, spec.seed)
    if spec.hub is not None:
        with blaming(spec, "hub"):
            file = hub_file(spec.hub, spec.split, Path(recipe.run.root) / INDICES, spec.subset, spec.revision)
        spec = spec.model_copy(update={"hub": None, "path": RecipePath(str(file))})
    return _opened(recipe, spec, view, quiet, spec)


def _opened(recipe: Recipe, spec: TuneDataSpec, view: ModelView | None, quiet: bool, place: Spec) -> Audited:
    """The samples of one file or folder, which stands in the recipe's ``place``."""
    with blaming(place):
        path = spec.photos.directory("photos") if spec.photos else given(spec.path).file("path")
        images = spec.images.directory("images") if spec.images else path.parent
    check, told = _checked(spec, view, quiet)
    tell = lambda audit: told(audit, path)
    cache, drawn = Path(recipe.run.root) / INDICES, (spec.max_skipped, spec.take, spec.seed)
    if spec.photos is not None:
        return PhotoFolder(path, spec.question, *drawn, check, spec.decode, tell, cache)
    with ExitStack() as shown:
        return ConversationFile(
            path, images, cache, *drawn, _reading(path, shown), check, spec.decode, tell, spec.mask_history
        )


def _checked(
    spec: TuneDataSpec, view: ModelView | None, quiet: bool
) -> tuple[Check | None, Callable[[Audit, Path | str], None]]:
    """What refuses rows that the model of a ``view`` cannot take, and what tells an audit unless it is ``quiet``."""
    tokens = partial(image_tokens, view) if view is not None and view.sees else None
    tell = lambda audit, title: None if quiet else Console().print(audit.table(title, tokens))
    return Refusals(view, spec.max_tokens) if view is not None else None, tell


def _stream(recipe: Recipe, spec: TuneDataSpec, view: ModelView | None, quiet: bool) -> Stream:
    """The samples of a recipe as they come."""
    terms, (check, tell) = recipe.tune or given(recipe.compare), _checked(spec, view, quiet)
    total = given(terms.steps) * terms.batch_size
    return Stream(_flows(recipe, spec), total, spec.seed, spec.max_skipped, check, tell, spec.mask_history)


def _flows(recipe: Recipe, spec: TuneDataSpec) -> list[Flow]:
    """What the rows of a stream come from. Of several files the rows are counted, as their weights ask for it."""
    drawn, cache = (spec.buffer, spec.seed), Path(recipe.run.root) / INDICES
    if spec.hub is not None:
        with blaming(spec):
            images = spec.images.directory("images") if spec.images else cache
        with blaming(spec, "hub"):
            return [HubFlow(spec.hub, spec.split, images, *drawn, spec.subset, spec.revision)]
    sizes: list[int] = []
    if spec.mix is None:
        return [FileFlow(*_place(spec), *drawn)]
    places = [_place(file) for file in spec.mix]
    for path, _ in places:
        with ExitStack() as shown:
            sizes.append(rows_of(path, cache, _reading(path, shown)))
    weights = [file.weight for file in spec.mix]
    check_many(sizes, weights)
    each = zip(places, weights, sizes, strict=True)
    flows = [FileFlow(path, images, *drawn, weight, size) for (path, images), weight, size in each]
    for part, flow in enumerate(flows):
        if sizes[part] and not flow.rows:
            raise nothing_of(part, weights[part], sizes[part])
    return [*flows]


def _place(spec: TuneDataSpec | DataFileSpec) -> tuple[Path, Path]:
    """A data file and the folder of its pictures."""
    with blaming(spec):
        path = given(spec.path).file("path")
        return path, spec.images.directory("images") if spec.images else path.parent


def _alone(spec: TuneDataSpec, file: DataFileSpec) -> TuneDataSpec:
    """One file of a mix as data of its own, whole."""
    return spec.model_copy(update={"mix": None, "take": None, "path": file.path, "images": file.images})


def digest_of(source: Opened) -> str | int:
    """What tells other samples from these, for the stage's inputs; a copied or touched file has the same."""
    if isinstance(source, Lessons):
        return len(source)
    return files.digest([source.audit.digest, source.numbers.tolist()])


def times_of(source: Opened) -> str:
    """What tells pictures that were changed in any way since, for what is made of them and can be made again."""
    return "" if isinstance(source, Lessons) else source.audit.times


def may_fail(source: Opened, allowed: float) -> int:
    """How many samples of ``source`` may still be found unusable: the share ``allowed``, less that of the rows that the
    audit has left out already.
    """
    gone = 0.0 if isinstance(source, Lessons | Stream) else source.audit.share
    return int(max(allowed - gone, 0.0) * len(source) + 1e-9)


def failed(path: Path, source: Opened, allowed: float) -> list[dict[str, Any]]:
    """Samples that were left out while training, once each. Raises ``UserError`` where they are more than
    ``may_fail``.
    """
    rows = {row.get("number", row["sample"]): row for row in (files.read_log(path) if path.is_file() else ())}
    if len(rows) > may_fail(source, allowed):
        first = next(iter(rows.values()))
        raise UserError(
            f"{len(rows)} of {len(source)} samples could not be used, more than tune.data.max_skipped={allowed:g}"
            f" allows beside those left out before; the first: {first['sample']}: {first['reason']}"
        )
    return list(rows.values())


def _reading(path: Path, shown: ExitStack) -> Callable[[int], None]:
    """A bar over the bytes of a file that takes more than a moment to read."""
    state: dict[str, Any] = {"at": 0}

    def tick(at: int) -> None:
        if "bar" not in state:
            state["bar"] = shown.enter_context(progress.stage("data", total=path.stat().st_size))
        state["bar"].advance(at - state["at"])
        state["at"] = at

    return tick

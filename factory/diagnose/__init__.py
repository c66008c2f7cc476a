"""The contract of a diagnostic: a measurement on prompts that changes nothing and yields tidy rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypedDict

import torch
from torch import Tensor

from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose.summary import Summary
from factory.model.attention import attention
from factory.model.encode import Batch
from factory.model.prefix import Prefix, last_index, prefill
from factory.model.view import ModelView
from factory.registry import Plugin

if TYPE_CHECKING:
    from factory.steer.base import Direction, States

__all__ = ["ALL", "Diagnostic", "Known", "Query", "Row", "about", "attention", "hold_back"]


ALL = "(all)"
"""The sample of a row that is about all samples of a split together."""


class Row(TypedDict):
    """One number: ``sample`` is the caller's key; ``layer`` and ``head`` are None where the metric has none."""

    sample: str
    metric: str
    layer: int | None
    head: int | None
    value: float


class Query(NamedTuple):
    """The tokens that follow a prefix, for ``extend(view, prefix, *query)``: ``ids``, ``mask``, ``roles`` [R, t]."""

    ids: Tensor
    mask: Tensor
    roles: Tensor

    def pick(self, rows: Tensor) -> Query:
        return Query(*(t.index_select(0, rows) for t in self))


class Known(NamedTuple):
    """What a run knows before any further diagnostic is asked: the usable ``samples`` of each split, what a method is
    fitted on toward a direction, by ``states(direction, split)`` (a row for each sample and form, in order; collected
    when first asked for, and to be asked for in ``acquaint``), and the run's ``seed``.
    """

    samples: Mapping[str, Sequence[ConflictSample]]
    states: Callable[[Direction, str], States]
    seed: int


class Diagnostic(Plugin):
    """Base of the diagnostics. A subclass defines ``on_prefix``; or ``measure`` where it needs the whole prompt at
    once; or ``on_samples`` where it asks prompts of its own.

    As a recipe's ``diagnostic:`` it is measured on the collected prompts and feeds the steering methods. Listed under
    ``diagnostics:`` it is a stage of its own: ``on_samples`` over ``splits``. Either way ``summary`` of the rows, of a
    ``diagnostic:`` those under the ``summarised`` prompts, is for the report.
    """

    by_prompt: ClassVar[tuple[str, ...] | None] = None
    """Names of the numbers that it gives once a prompt, which methods may be fitted on; None where it does not say."""
    splits: ClassVar[tuple[str, ...]] = ("test",)
    summarised: ClassVar[tuple[str, ...]] = ("base",)
    """The prompts whose rows ``summary`` is given of a ``diagnostic:``: base, vision and text, or of two texts those
    that ask for the first and for the second."""
    sources: Sources = PICTURE_AND_TEXT
    """What the conflicts set against each other; whoever runs it says so, as by ``between``."""
    at_once: ClassVar[bool] = False
    """Whether ``on_samples`` needs all samples of a split at once; it may then give rows about ``ALL`` of them too."""
    of_tuners: ClassVar[bool] = False
    """Whether it measures what a tuner has put into the model, and gives no row of any other model."""

    @classmethod
    def measures_prompts(cls) -> bool:
        """Whether it measures prompts that it is given, as a ``diagnostic:`` does, not only those it asks itself."""
        return any(getattr(cls, way) is not getattr(Diagnostic, way) for way in ("measure", "on_whole", "on_prefix"))

    @classmethod
    def needs_columns(cls, params: Any) -> bool:
        """As ``columned`` says, and where ``on_prefix`` measures: the end of each prompt is held back for it."""
        return super().needs_columns(params) or cls.on_prefix is not Diagnostic.on_prefix

    def between(self, sources: Sources) -> Self:
        """Itself, on conflicts between these ``sources``."""
        self.sources = sources
        return self

    def queried(self, prefix: Prefix, keys: Sequence[str]) -> Tensor:
        """[R, T] booleans: the end of each whole prompt that queries what is before it. Here its last token."""
        columns = torch.arange(prefix.mask.shape[1], device=prefix.mask.device)
        return columns == last_index(prefix.mask)[:, None]

    def measure(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> list[Row]:
        """Rows of whole prompts, from one prefill. ``keys``: a stable name for each prompt, all different."""
        with torch.no_grad():
            hidden, whole = prefill(view, batch)
        return self.on_whole(view, batch.input_ids, whole, hidden, keys)

    def on_whole(self, view: ModelView, ids: Tensor, whole: Prefix, hidden: Tensor, keys: Sequence[str]) -> list[Row]:
        """Rows of prompts ``ids`` [R, T] that lie in ``whole`` to their end, with their final hidden states [R, T,
        d].
        """
        prefix, query, hidden = hold_back(view, ids, hidden, whole, self.queried(whole, keys))
        return self.on_prefix(view, prefix, query, keys, hidden)

    def on_prefix(
        self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None
    ) -> list[Row]:
        """Rows of prompts that lie in ``prefix`` up to ``query``; the prefix stays as it is.

        ``hidden`` [R, t, d]: the query's final hidden states, where the caller has them, so that nothing runs twice.
        """
        raise TypeError(f"{type(self).__name__} must define on_prefix")

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        """Rows about some samples, each with its sample's id under ``sample``, its task, tags, form and prompt. Here
        those of ``measure`` on every form of the benchmark's prompt."""
        asked = [(s, form) for s in samples for form in bench.benchmark.forms]
        named = {f"{s.id}/{form}": about(s, form, "base") for s, form in asked}
        rows = self.measure(
            bench.view, bench.view.encode([bench.benchmark.prompt(s, form) for s, form in asked]), list(named)
        )
        return [{**row, **named[row["sample"]]} for row in rows]

    def chosen(self, ids: Sequence[str]) -> Sequence[str]:
        """Which of some samples it measures, by their ids; all of them unless it takes a share."""
        return ids

    def whole_prompts(self, ids: Sequence[str]) -> int:
        """How many whole prompts are run for each form of some samples, before anything is run again in part."""
        return len(self.chosen(ids))

    def rows_held(self, prompts: int) -> float:
        """How many prompts' caches it holds at once beside those of the ``prompts`` collected; here a copy of each."""
        return prompts

    def learn(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Take in the training rows of the diagnostics listed before this one; called before ``on_samples``."""

    def acquaint(self, known: Known) -> None:
        """Take in what the run knows; called once before ``on_samples``. A subclass that defines it is run again where
        what is collected changes.
        """

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        """What all rows of a run say (each also has its ``split``); None where the rows speak for themselves."""
        return None

    def beside(self, found: Mapping[str, Sequence[dict[str, Any]]], trained: Mapping[str, int]) -> Summary | None:
        """What the rows of several models say side by side, by the name of each; ``trained`` numbers of those that were
        tuned.
        """
        return None


def about(sample: ConflictSample, form: str, prompt: str) -> dict[str, Any]:
    """What a row tells of its sample: its id, task and tags, and which form and prompt was measured."""
    return {"sample": sample.id, "task": sample.task, "form": form, "prompt": prompt, **sample.tags}


def once_a_prompt(rows: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Tensor]:
    """By metric the numbers [n] of ``rows`` about the prompts ``keys``, of neither a layer nor a head; NaN for a prompt
    without one. A metric with several for one prompt is left out.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["layer"] is None and row["head"] is None:
            found.setdefault(row["metric"], {}).setdefault(row["sample"], []).append(row["value"])
    return {
        metric: torch.tensor([values.get(key, [math.nan])[0] for key in keys])
        for metric, values in found.items()
        if all(len(several) == 1 for several in values.values())
    }


def hold_back(
    view: ModelView, ids: Tensor, hidden: Tensor, whole: Prefix, queried: Tensor
) -> tuple[Prefix, Query, Tensor]:
    """Prompts ``ids`` [R, T] in a cache, with their final hidden states [R, T, d], as the prefix before their
    ``queried`` tokens, those tokens, padded right, and their hidden states [R, t, d]. The cache stays whole: the mask
    hides what is held back. Raises ``UserError`` for a model whose running states hold it all the same.
    """
    view.need_columns("the end of a prompt cannot be held back from its cache")
    width = int(queried.sum(-1).max())
    at = (~queried).long().argsort(dim=-1, stable=True)[:, :width]
    mask = queried.gather(-1, at).long()
    query = Query(ids.gather(-1, at).masked_fill(mask == 0, view.pad_id), mask, whole.roles.gather(-1, at) * mask)
    prefix = Prefix(whole.cache, whole.mask * ~queried, whole.roles * ~queried, whole.next_position - queried.sum(-1))
    return prefix, query, hidden[torch.arange(len(at), device=at.device)[:, None], at]

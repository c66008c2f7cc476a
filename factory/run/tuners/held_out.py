"""What a tuning holds out: which samples, opened and told apart for its stage, and the looks that training takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from factory.corpus.collate import Collator
from factory.corpus.order import subset
from factory.corpus.source import Opened
from factory.errors import UserError
from factory.model.view import ModelView
from factory.recipe.schema import HeldOutSpec, TuneSpec
from factory.run.inputs import with_code
from factory.run.questions.suite import AnySuite, Suite
from factory.run.tuners.going_on import learnt_of
from factory.run.tuners.opening import digest_of
from factory.train.held_out import HeldOut

Read = Callable[[Sequence[int]], dict[str, Tensor]]


@dataclass(frozen=True)
class Held:
    """What a recipe holds out: its ``spec``, the samples of its own data, and the benchmark that it is scored on. A
    look is at ``most`` so many samples."""

    spec: HeldOutSpec
    source: Opened | None = None
    suite: Suite | None = None
    most: int | None = None

    @property
    def inputs(self) -> dict[str, Any]:
        """What its looks, and so the choice among them, follow from (JSON-able)."""
        told = self.spec.model_dump(mode="json", exclude={"data", "benchmark"})
        found = [digest_of(self.source), learnt_of(self.spec.data)] if self.source and self.spec.data else None
        asked = {"code": with_code(self.suite.node), "asked": self.suite.asked} if self.suite else None
        return {**told, "data": found, "benchmark": asked}

    def looks(self, view: ModelView, learnt: Read, numbers: Sequence[int], micro: int) -> HeldOut:
        """The looks at a model: at ``numbers`` of what is ``learnt``, or at all samples of the data held out."""
        read = learnt
        if self.source and self.spec.data:
            read, numbers = Collator(view, self.source, self.spec.data.max_tokens, None), range(len(self.source))
        score = (lambda suite=self.suite: suite.score(view)) if self.suite else None
        s = self.spec
        return HeldOut(s.every, numbers[: self.most], read, micro, score, s.keep, s.patience)


def held_of(spec: TuneSpec, suites: Mapping[str, AnySuite | None], opened: Callable[[Any], Opened]) -> Held | None:
    """What ``spec`` holds out, its data ``opened``. Raises ``UserError`` for a benchmark that cannot be asked here."""
    held = spec.held_out
    if held is None:
        return None
    suite = suites.get(held.benchmark.label) if held.benchmark else None
    if held.benchmark and not isinstance(suite, Suite):
        raise UserError(
            f"tune.held_out.benchmark: '{held.benchmark.type}' is asked by a harness of its own, which does not see a"
            " model in training; name a question benchmark"
        )
    assert suite is None or isinstance(suite, Suite)
    if suite and (why := suite.benchmark.unscorable()):
        raise UserError(f"tune.held_out.benchmark: nothing can be chosen on '{suite.node.label}': {why}")
    return Held(held, opened(held.data) if held.data else None, suite)


def learnt_and_held(spec: TuneSpec, source: Opened) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the samples of ``source`` that are learnt and of those that are held out, both sorted; what a mix of
    files shows more than once is held out once. Raises ``UserError`` where nothing is left to learn from.
    """
    share = spec.held_out.share if spec.held_out else None
    if share is None:
        return np.arange(len(source)), np.arange(0)
    of = getattr(source, "of", np.arange(len(source)))
    names, first = np.unique(of, return_index=True)
    samples = len(names)
    held = subset(samples, max(1, round(share * samples)), spec.data.seed)
    if len(held) == samples:
        raise UserError(f"tune.held_out.share: {share:g} of {samples} samples leaves none to learn from")
    return np.flatnonzero(~np.isin(of, names[held])), np.sort(first[held])


def told(held: HeldOut, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a finished training's looks showed, for its summary and its manifest."""
    looks = [{key: row[key] for key in ("step", "eval_loss", "eval_score") if key in row} for row in log]
    looks = [row for row in looks if len(row) > 1]
    return {"looks": looks, "kept": held.best or looks[-1]["step"], "decides": held.decides}


def said(summary: Mapping[str, Any]) -> str:
    """One line on the look whose weights a finished training has kept."""
    looks, kept, decides = summary["looks"], summary["kept"], summary["decides"]
    value = next(row[decides] for row in looks if row["step"] == kept)
    what = {"eval_loss": "loss", "eval_score": "score"}[decides]
    return f"held out:   {what} {value:.4g} after step {kept}, whose weights are kept, of {len(looks)} looks"

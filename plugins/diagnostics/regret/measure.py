"""What is measured of a set of dialogues, as rows about all samples: probes, early signs, units, curve, transfer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from factory.diagnose import ALL
from factory.statistics.association import Interval

from .curve import shape
from .dialogues import Reply
from .neurons import GROUPS, groups, impacts, rds
from .probe import (
    Fit,
    Mlp,
    auroc_within,
    aurocs_within,
    balanced_accuracies,
    fit_linear,
    folds,
    held_out,
    resampled,
    with_interval,
)

if TYPE_CHECKING:
    from . import Regret

Row = dict[str, Any]


def row(metric: str, value: float, between: Interval | None = None, **facts: Any) -> Row:
    """A row about all samples, with its interval."""
    low, high = between or (None, None)
    named = {"sample": ALL, "task": "", "form": "", "prompt": "dialogue", "metric": metric, "layer": None, "head": None}
    return {**named, **facts, "value": float(value), "low": low, "high": high}


def cell_of(reply: Reply) -> str:
    """The kind of dialogue and the modality that it turns to: what is compared within."""
    return f"{reply.dialogue.kind} {reply.dialogue.toward}"


class Measured:
    """Second answers that were read, with the states [n, before + 1, layers, units] and odds [n, before + 1] at their
    places; ``first`` [n, layers, units] are the states in the first answers, as far into them.
    """

    def __init__(
        self,
        params: Regret.Params,
        replies: Sequence[Reply],
        places: Sequence[int],
        states: Tensor,
        odds: Tensor,
        first: Tensor,
        layer: int,
    ) -> None:
        self.p, self.replies, self.places, self.layer = params, replies, places, layer
        self.states, self.odds, self.first = states, odds, first
        self.items = [r.dialogue.sample.id for r in replies]
        self.cell = np.array([cell_of(r) for r in replies])
        by_words = params.label == "keyword"
        self.y = torch.tensor([r.keyword is not None if by_words else r.act == "back" for r in replies])
        self.fold = folds(self.items, params.folds, params.seed)
        self.scores: dict[tuple[int, int], Tensor] = {}
        self.fit: Fit = partial(fit_linear, ridge=params.ridge)
        if params.probe == "mlp":
            p = params
            self.fit = Mlp(p.hidden, p.learning_rate, p.weight_decay, p.epochs, p.batch_size, p.seed).fit

    @property
    def enough(self) -> bool:
        """Whether there are so many of either class that a probe can be held out."""
        return min(int(self.y.sum()), int((~self.y).sum())) >= 2 * self.p.folds

    def rows(self) -> Iterator[Row]:
        """Everything; where there is too little, how little alone."""
        yield row("positives", int(self.y.sum()), what="regret")
        yield row("positives", int((~self.y).sum()), what="none")
        if not self.enough:
            return
        for layer in range(self.states.shape[2]):
            every = torch.ones_like(self.y)
            yield from self._told("probe", self._score(0, layer), self.y, every, contrast="stays", layer=layer)
        yield from self._against_first()
        yield from self._same_word()
        yield from self._early()
        yield from self._curve()
        yield from self._units()
        yield from self._transfer()

    def _told(self, metric: str, score: Tensor, y: Tensor, rows: Tensor, **facts: Any) -> Iterator[Row]:
        """AUROC within cells, and balanced accuracy, of held-out scores [n] on some ``rows`` [n]."""
        known = np.flatnonzero((rows & ~score.isnan()).numpy())
        if not len(known):
            return
        s, label, cell = score.numpy()[known], y.numpy()[known], self.cell[known]
        counts = resampled([self.items[i] for i in known], seed=self.p.seed)
        facts |= {"n_regret": int(label.sum()), "n_none": int((~label).sum())}
        yield row(f"{metric}_auroc", *with_interval(aurocs_within(s, label, cell, counts)), **facts)
        yield row(f"{metric}_accuracy", *with_interval(balanced_accuracies(s, label, counts)), **facts)

    def _score(self, before: int, layer: int) -> Tensor:
        """Held-out scores [n] of the answers' own contrast, so many tokens before their places."""
        if (before, layer) not in self.scores:
            x = self.states[:, before, layer]
            self.scores[before, layer] = held_out(x, self.y, self.fold, self.fit)
        return self.scores[before, layer]

    def _by_layer(self, contrast: str, x: Tensor, y: Tensor, rows: Tensor) -> Iterator[Row]:
        for layer in range(x.shape[1]):
            score = torch.full((len(y),), torch.nan, dtype=torch.float64)
            score[rows] = held_out(x[rows, layer], y[rows], self.fold[rows], self.fit)
            yield from self._told("probe", score, y, rows, contrast=contrast, layer=layer)

    def _against_first(self) -> Iterator[Row]:
        """The paper's negatives: as far into the first answer of the same dialogue. An item has both classes."""
        regret = self.y.nonzero()[:, 0]
        x = torch.cat([self.states[regret, 0], self.first[regret]])
        y = torch.arange(len(x)) < len(regret)
        both = Measured(
            self.p,
            [self.replies[i] for i in (*regret.tolist(), *regret.tolist())],
            [],
            x[:, None],
            torch.zeros(len(x), 1),
            x,
            self.layer,
        )
        yield from both._by_layer("first", x, y, torch.ones_like(y))

    def _same_word(self) -> Iterator[Row]:
        """Answers with the same word of regret in the same kind of dialogue, taken back or not."""
        word = [None if r.keyword is None else (r.keyword.phrase, cell_of(r)) for r in self.replies]
        back = torch.tensor([r.act == "back" for r in self.replies])
        sides = [{w for w, b in zip(word, back.tolist(), strict=True) if w and b == side} for side in (True, False)]
        rows = torch.tensor([w in sides[0] & sides[1] for w in word])
        if min(int((rows & back).sum()), int((rows & ~back).sum())) >= 2 * self.p.folds:
            yield from self._by_layer("same_word", self.states[:, 0], back, rows)

    def _early(self) -> Iterator[Row]:
        """At the place and at each token before it: the probe, whether a word of regret has been said, which tokens
        have, and the odds that such a word comes next.
        """
        every = torch.ones_like(self.y)
        for before in range(self.p.before + 1):
            told = {
                "probe": self._score(before, self.layer),
                "keyword": torch.tensor([float(r.keyword is not None and before == 0) - 0.5 for r in self.replies]),
                "words": held_out(self._words(before), self.y, self.fold, partial(fit_linear, ridge=self.p.ridge)),
                "logit": self.odds[:, before],
            }
            for source, score in told.items():
                yield from self._told("early", score.double(), self.y, every, before=before, source=source)
            for layer in range(self.states.shape[2]):
                told_by = self._score(before, layer).numpy()
                known = ~np.isnan(told_by)
                value = auroc_within(told_by[known], self.y.numpy()[known], self.cell[known])
                yield row("early_by_layer", value, before=before, layer=layer)

    def _words(self, before: int) -> Tensor:
        """How often each token stands in an answer up to ``before`` tokens ahead of its place [n, tokens seen]."""
        seen = [r.ids[: max(0, place + 1 - before)] for r, place in zip(self.replies, self.places, strict=True)]
        known = {token: i for i, token in enumerate(sorted({t for ids in seen for t in ids}))}
        out = torch.zeros(len(seen), max(1, len(known)))
        for i, ids in enumerate(seen):
            for token, n in Counter(ids).items():
                out[i, known[token]] = n
        return out

    def _curve(self) -> Iterator[Row]:
        found = shape(self.states[:, 0], self.y, self.items, self.p.resamples, self.p.seed)
        for layer, value in enumerate(found.curve.tolist()):
            yield row("scatter_ratio", value, found.between[layer], layer=layer, floor=float(found.floor[layer]))
        yield row("rises", found.rises, found.rises_between)
        if found.layers is not None:
            at = dict(zip(("peak", "valley", "second_peak"), found.layers, strict=True))
            yield row("m_shape", found.m, found.m_between, **at)

    def _units(self) -> Iterator[Row]:
        x, p = self.states[:, 0, self.layer], self.p
        scores = rds(x[self.y], x[~self.y], p.scaled)
        for unit, value in enumerate(scores.tolist()):
            yield row("rds", value, unit=unit, layer=self.layer)
        for tau in p.taus:
            sizes = groups(scores, tau).bincount(minlength=3).tolist()
            for name, size in zip(GROUPS, sizes, strict=True):
                yield row("group_size", size, tau=tau, group=name, layer=self.layer)
        for found in impacts(x, self.y, self.fold, self.fit, p.taus, p.draws, p.scaled, p.seed):
            yield row(
                "gic",
                found.gic,
                tau=found.tau,
                deactivated=found.value,
                group="+".join(found.names),
                size=found.size,
                accuracy=found.accuracy,
                random=float(found.random.mean()),
                random_sd=float(found.random.std(ddof=1)) if len(found.random) > 1 else 0.0,
                random_below=float((found.random <= found.gic).mean()),
                layer=self.layer,
            )

    def _transfer(self) -> Iterator[Row]:
        """A probe of one word of regret on answers with another. A word's negatives are the answers without regret of
        the kinds of dialogue in which it stands.
        """
        words = Counter(r.keyword.phrase for r, y in zip(self.replies, self.y.tolist(), strict=True) if y and r.keyword)
        usable = [w for w, n in words.most_common() if n >= 2 * self.p.folds]
        part = {w: self._of_word(w) for w in usable}
        part = {w: rows for w, rows in part.items() if int((rows & ~self.y).sum()) >= 2 * self.p.folds}
        x = self.states[:, 0, self.layer]
        for trained, rows in part.items():
            score = held_out(x, self.y, self.fold, self.fit, rows)
            for tested, others in part.items():
                for told in self._told("transfer", score, self.y, others, trained=trained, tested=tested):
                    if told["metric"] == "transfer_auroc":
                        yield told

    def _of_word(self, word: str) -> Tensor:
        has = [bool(y and r.keyword and r.keyword.phrase == word) for r, y in zip(self.replies, self.y, strict=True)]
        cells = {cell for cell, own in zip(self.cell, has, strict=True) if own}
        return torch.tensor(
            [own or (not y and cell in cells) for own, y, cell in zip(has, self.y, self.cell, strict=True)]
        )

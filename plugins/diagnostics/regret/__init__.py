"""Regret: where in a model it is decided that an answer is taken back, and how long before the words (2506.15617).

The model answers a conflict from the wrong modality, is then hinted at the other one or shown it, and takes its answer
back or does not. From the paper and its released code: the four answers a0 to a3, the probed place (the token where a
word of regret begins), RDS, its groups over tau, GIC and the value -1. Not released and so ours: early signs, transfer
across words, units held at a value while the model answers, and a scatter ratio in the place of S-CDI, whose formula is
in no public source. Ours too: regret told by whether the answer changed; negatives where the answer stays; the control
with the same word; everything held out by item, with intervals over items; random groups of equal size; steering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from factory import registry
from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, Known, about
from factory.diagnose.summary import Summary
from factory.errors import UserError
from factory.recipe.nodes import Node, distinct, distinct_labels, plugin
from factory.registry import register
from factory.steer import Steerer, Steering, steer
from factory.steer.base import Direction, Tensors

from .dialogues import OTHER, Dialogue, Kind, Reply, dialogues, places, question_alone
from .keywords import OURS, RELEASED, Keywords, Phrases
from .measure import Measured
from .silence import silenced_rows
from .speak import Said, Units, first_answers, first_tokens, look, replies, say
from .summary import summarise

HINT: Mapping[Direction, str] = {
    "vision": "Please look at the image again. Does it agree with your answer? Say which answer is right.",
    "text": "Please read the text context again. Does it agree with your answer? Say which answer is right.",
}
EVIDENCE: Mapping[Direction, str] = {
    "vision": "Here is the image. Do you stay with your answer? Say which answer is right.",
    "text": "Here is the text context. Do you stay with your answer? Say which answer is right.",
}


@register("diagnostic", "regret")
class Regret(Diagnostic):
    """Answers taken back or not: how often, by which words, in which layer and units it can be read, how many tokens
    before the word, what silencing those units does, and what steering does to it.

    Rows of a sample: ``a0`` (1 where the question alone is answered rightly), ``misled`` of each first answer, and of
    those that are, ``taken_back`` (NaN where an answer cannot be read) and ``keyword`` of each second answer, plain
    and steered, with their texts. All others are about all samples.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    at_once = True
    pictured = True
    columned = True

    class Params(registry.Params):
        """``kinds`` of second turns: a ``hint`` (both modalities were there) and the ``evidence`` (one was); ``toward``
        the modality that is true; wordings of either in ``hint`` and ``evidence``. ``first``: only dialogues in which
        the model's ``own`` first answer comes from the wrong modality, or that answer ``given`` to all.

        ``keywords``: ``ours``, the paper's (``released``), or phrases by severity. ``label``: whether regret is an
        answer ``changed`` or a ``keyword``. ``probe``, a ``linear`` one with ``ridge`` or the paper's ``mlp`` of
        ``hidden`` widths, trained by Adam with ``learning_rate`` and ``weight_decay`` for ``epochs`` in batches of
        ``batch_size``; ``folds`` of items. ``units``: the blocks' outputs or what their MLPs' last projections are
        given; ``layer``: whose units are scored (null: the last). ``before``: tokens ahead of the word. ``scaled``: RDS
        of units scaled to [0, 1], else as released. ``taus``; ``draws`` of random groups. ``silence``: so many random
        groups beside RegretD while the model answers, at ``tau`` (0: leave it out). ``steered`` methods at
        ``strengths`` toward either modality. ``max_new_tokens`` of second answers; ``batch`` prompts at once;
        ``resamples`` of the curve; ``seed`` of all draws.
        """

        kinds: Annotated[tuple[Kind, ...], Field(min_length=1), AfterValidator(distinct)] = ("hint", "evidence")
        toward: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(distinct)] = ("vision",)
        hint: dict[Direction, str] = Field(default_factory=lambda: dict(HINT))
        evidence: dict[Direction, str] = Field(default_factory=lambda: dict(EVIDENCE))
        first: Literal["own", "given"] = "own"
        keywords: Literal["ours", "released"] | dict[str, tuple[str, ...]] = "ours"
        label: Literal["changed", "keyword"] = "changed"
        probe: Literal["linear", "mlp"] = "linear"
        ridge: PositiveFloat = 1e-2
        hidden: tuple[PositiveInt, ...] = (2048, 1024, 512)
        learning_rate: PositiveFloat = 1e-4
        weight_decay: float = Field(0.01, ge=0)
        epochs: PositiveInt = 100
        batch_size: PositiveInt = 256
        folds: int = Field(5, ge=2)
        units: Units = "residual"
        layer: NonNegativeInt | None = None
        before: NonNegativeInt = 5
        scaled: bool = True
        taus: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
        tau: PositiveFloat = 0.5
        draws: PositiveInt = 20
        silence: NonNegativeInt = 0
        steered: Annotated[tuple[Annotated[Node, plugin("steering")], ...], AfterValidator(distinct_labels)] = ()
        strengths: tuple[float, ...] = (1.0,)
        max_new_tokens: PositiveInt = 48
        batch: PositiveInt = 16
        resamples: PositiveInt = 400
        seed: int = 0

        @field_validator("steered")
        @classmethod
        def _vectors(cls, steered: tuple[Node, ...]) -> tuple[Node, ...]:
            for node in steered:
                if not isinstance(method := node.make(), Steerer) or method.trial_strengths or method.variants():
                    raise ValueError(
                        f"needs methods that add a vector at a given strength, as static or l2s; got '{node.type}'"
                    )
            return steered

        @field_validator("keywords")
        @classmethod
        def _some(cls, keywords: Any) -> Any:
            if isinstance(keywords, dict) and not all(p.strip() for some in keywords.values() for p in some or ("",)):
                raise ValueError("should give phrases for each severity, as in {mild: [sorry]}")
            return keywords

        @property
        def phrases(self) -> Phrases:
            named = {"ours": OURS, "released": RELEASED}
            return named[self.keywords] if isinstance(self.keywords, str) else self.keywords

    params: Params

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.fitted: dict[tuple[str, Direction], tuple[Steerer, Tensors]] = {}

    def acquaint(self, known: Known) -> None:
        for node in self.params.steered:
            for direction in OTHER:
                method = node.make()
                self.fitted[node.label, direction] = method, method.fit(known.states(direction, "train"))

    def whole_prompts(self, ids: Sequence[str]) -> int:
        """The question alone, first answers, second answers plain and steered, and the states of both; units that are
        silenced run answers again, not prompts.
        """
        p = self.params
        steered = 2 * len(p.steered) * len(p.strengths)
        return len(ids) * (1 + len(p.kinds) * len(p.toward) * (4 + steered + bool(p.silence)))

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        """Raises ``UserError`` where the benchmark's prompts lack what a dialogue needs, and for a layer or an MLP that
        the model has not."""
        p, keywords = self.params, Keywords(self.params.phrases)
        if p.layer is not None and p.layer >= bench.view.depth:
            raise UserError(
                f"regret: layer {p.layer} is out of range: the model has blocks 0 to {bench.view.depth - 1}"
            )
        words: Mapping[Kind, Mapping[Direction, str]] = {
            "hint": {**HINT, **p.hint},
            "evidence": {**EVIDENCE, **p.evidence},
        }
        rows = list(self._alone(bench, samples))
        asked = dialogues(bench, samples, p.kinds, p.toward, words)
        misled: list[tuple[Dialogue, Said]] = []
        for dialogue, first in zip(asked, first_answers(bench, asked, p.first == "given", p.batch), strict=True):
            verdict = bench.benchmark.judge(dialogue.sample, dialogue.form, first[0])
            wrong = p.first == "given" or verdict == OTHER[dialogue.toward]
            rows.append({**named(dialogue), "metric": "misled", "value": float(wrong), "first": first[0]})
            misled += [(dialogue, first)] if wrong else []
        if not misled:
            return rows
        answer = partial(replies, bench, misled, keywords, p.max_new_tokens, p.batch)
        plain = answer()
        rows += [each for reply in plain for each in told(reply, "", "", 0.0)]
        for (label, direction), (method, state) in self.fitted.items():
            for strength in p.strengths:
                steering = Steering(method, state, method.placed(state, bench.layer), strength)
                steered = answer(partial(steer, bench.view, steering))
                rows += [each for reply in steered for each in told(reply, label, direction, strength)]
        return rows + list(self._measured(bench, plain, keywords))

    def _alone(self, bench: Bench, samples: Sequence[ConflictSample]) -> Iterator[dict[str, Any]]:
        asked = [(s, form) for s in samples for form in bench.benchmark.forms]
        said = say(
            bench.view, [question_alone(bench, s, form) for s, form in asked], bench.max_new_tokens, self.params.batch
        )
        for (s, form), (text, _) in zip(asked, said, strict=True):
            verdict = bench.benchmark.judge(s, form, text)
            for true in self.params.toward:
                common = {**about(s, form, "dialogue"), "metric": "a0", "layer": None, "head": None, "toward": true}
                yield {**common, "value": float(verdict == true), "text": text}

    def _measured(self, bench: Bench, plain: Sequence[Reply], keywords: Keywords) -> Iterator[dict[str, Any]]:
        p, view = self.params, bench.view
        read = [r for r in plain if r.act != "unread" and r.ids and r.first_ids]
        if not read:
            return
        at = places(view.tokenizer, read)
        begins = first_tokens(view, keywords.severity)
        seconds = [(r.dialogue.second(r.first), r.ids, place) for r, place in zip(read, at, strict=True)]
        firsts = [
            (r.dialogue.first, r.first_ids, min(place, len(r.first_ids) - 1)) for r, place in zip(read, at, strict=True)
        ]
        looked = look(view, seconds, p.before, p.units, begins, p.batch)
        first = look(view, firsts, 0, p.units, begins, p.batch).states[:, 0]
        layer = view.depth - 1 if p.layer is None else p.layer
        measured = Measured(p, read, at, looked.states, looked.odds, first, layer)
        yield from measured.rows()
        if p.silence and measured.enough:
            yield from silenced_rows(bench, measured, keywords)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        return summarise(rows, self.params)


def named(dialogue: Dialogue) -> dict[str, Any]:
    """What each row of a dialogue says of it."""
    common = {**about(dialogue.sample, dialogue.form, "dialogue"), "layer": None, "head": None}
    return {**common, "dialogue": dialogue.kind, "toward": dialogue.toward}


def told(reply: Reply, method: str, direction: str, strength: float) -> Iterator[dict[str, Any]]:
    """The rows of one second answer under a method ("" for none) toward a ``direction``."""
    keyword = reply.keyword
    facts = {
        **named(reply.dialogue),
        "method": method,
        "direction": direction,
        "strength": strength,
        "first": reply.first,
        "text": reply.text,
        "act": reply.act,
        "word": keyword.phrase if keyword else None,
        "severity": keyword.severity if keyword else None,
        "character": keyword.at if keyword else None,
        "token": reply.token,
    }
    back = float("nan") if reply.act == "unread" else float(reply.act == "back")
    yield {**facts, "metric": "taken_back", "value": back}
    yield {**facts, "metric": "keyword", "value": float(keyword is not None)}

"""Evaluation: greedy answers of every cell (method, direction, variant, strength) on batches of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from factory.bench import Asked, Bench, Example, answer_prompts, asked_forms
from factory.data.sample import ConflictSample
from factory.faults import concerning
from factory.model.encode import written
from factory.model.prefix import decode_texts
from factory.steer import LogitsMethod, PromptMethod, Steerer, Steering
from factory.steer.base import Direction, Tensors
from factory.steer.calls import rewritten
from factory.steer.logits import contrasted
from factory.steer.sweep import Trunk, look_ahead, run_cell, trunk_of_prompts
from factory.steer.where import Where
from factory.stopwatch import further, part


@dataclass(frozen=True)
class Fitted:
    """A method ready to steer toward one direction, ``where`` it says itself unless that is given."""

    label: str
    direction: Direction
    variant: str
    steerer: Steerer
    state: Tensors
    where: Where | None = None

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.label, self.direction, self.variant)))

    @property
    def told(self) -> str:
        """How a message names it."""
        return f"steering '{self.label}'{self.variant and f' ({self.variant})'} toward {self.direction}"


Strengths = Callable[[str, Direction, str], Sequence[float]]
"""The strengths at which a method (its label) is asked, toward a direction and in a variant."""


def always(strengths: Sequence[float]) -> Strengths:
    """Every method at the same strengths."""
    return lambda label, direction, variant: strengths


def sweep(
    bench: Bench, samples: Sequence[ConflictSample], fitted: Sequence[Fitted], at: Strengths
) -> list[dict[str, Any]]:
    """Predictions of every fitted method at its strengths; the blocks up to the steered one run once for all with the
    same prompts.
    """
    trunks: dict[tuple[str, ...], tuple[list[Asked], Trunk]] = {}
    rows = []
    for method in fitted:
        if not (strengths := at(method.label, method.direction, method.variant)):
            continue
        with part("sweep", method.label):
            asked = asked_by(bench, samples, method)
            digests = tuple(prompt.digest for *_, prompt in asked)
            if digests not in trunks:
                trunks[digests] = asked, trunk_of(bench, asked)
            rows += cells(bench, *trunks[digests], method, strengths)
    return rows


def asked_by(bench: Bench, samples: Sequence[ConflictSample], method: Fitted) -> list[Asked]:
    """Each sample with each of its forms as a method wants them asked."""
    plain = asked_forms(bench, samples)
    with concerning(method.told):
        return [(s, form, method.steerer.rewrite(prompt, method.direction)) for s, form, prompt in plain]


def trunk_of(bench: Bench, asked: Sequence[Asked]) -> Trunk:
    """What all cells on these prompts share."""
    with part("trunk", ""):
        return trunk_of_prompts(bench.view, [prompt for *_, prompt in asked], bench.layer)


def cells(
    bench: Bench, asked: Sequence[Asked], trunk: Trunk, method: Fitted, strengths: Sequence[float]
) -> list[dict[str, Any]]:
    """Predictions of a fitted method at every strength on the prompts of a trunk."""
    rows: list[dict[str, Any]] = []
    about = {"method": method.label, "direction": method.direction, "variant": method.variant}
    steering = placed(method, bench.layer)
    for strength in strengths:
        steering.strength = strength
        with further(rows):
            with concerning(method.told):
                tokens = run_cell(bench.view, trunk, steering, bench.max_new_tokens, bench.among)
            cell = {**about, "strength": strength}
            rows += _predictions(bench, asked, decode_texts(bench.view, tokens), cell)
    return rows


def placed(method: Fitted, layer: int, strength: float = 1.0) -> Steering:
    """A fitted method at the run's layer."""
    where = method.where or method.steerer.placed(method.state, layer)
    return Steering(method.steerer, method.state, where, strength)


def looks(bench: Bench, trunk: Trunk, method: Fitted) -> Tensor:
    """What the method's controller sees of its trial strengths [n prompts, S, F], on the CPU, where it is
    calibrated.
    """
    with concerning(method.told):
        return look_ahead(bench.view, trunk, placed(method, bench.layer)).cpu()


def ask(
    bench: Bench,
    samples: Sequence[ConflictSample],
    label: str,
    method: PromptMethod,
    directions: Sequence[Direction],
    examples: Example,
) -> list[dict[str, Any]]:
    """Predictions of a prompt method, each with its prompts ``asked`` as the model read them; where they do not depend
    on the direction they are answered once.
    """
    asked = asked_forms(bench, samples)
    rows, answers = [], {}
    for direction in directions:
        with concerning(f"steering '{label}' toward {direction}"):
            shown = [examples(s, form, direction, method.shots) for s, form, _ in asked]
            prompts = rewritten(bench.view, method, [p for *_, p in asked], direction, shown)
        digests = tuple(p.digest for p in prompts)
        if digests not in answers:
            new_tokens = method.max_new_tokens or bench.max_new_tokens
            answers[digests] = answer_prompts(bench.view, prompts, new_tokens, bench.among)
        cell = {"method": label, "direction": direction, "variant": "", "strength": None}
        own = [(s, f, p) for (s, f, _), p in zip(asked, prompts, strict=True)]
        texts, forms = [written(bench.view.writing, p) for p in prompts], len(bench.benchmark.forms)
        rows += [
            {**row, "asked": texts[i * forms : (i + 1) * forms]}
            for i, row in enumerate(_predictions(bench, own, answers[digests], cell))
        ]
    return rows


def contrast(
    bench: Bench,
    samples: Sequence[ConflictSample],
    label: str,
    method: LogitsMethod,
    directions: Sequence[Direction],
    at: Strengths,
) -> list[dict[str, Any]]:
    """Predictions of a decoding-time method at its strengths."""
    asked, rows = asked_forms(bench, samples), []
    for direction in directions:
        if not (strengths := at(label, direction, "")):
            continue
        answers = contrasted(
            bench.view,
            method,
            [prompt for *_, prompt in asked],
            direction,
            strengths,
            bench.max_new_tokens,
            bench.among,
        )
        for strength, texts in zip(strengths, answers, strict=True):
            rows += _predictions(
                bench, asked, texts, {"method": label, "direction": direction, "variant": "", "strength": strength}
            )
    return rows


def outcomes(bench: Bench, asked: Sequence[Asked], tokens: Tensor, direction: Direction) -> list[str]:
    """The outcome of each sample toward a direction, from the answers [B, n] on its forms."""
    return [
        row["outcome"] for row in _predictions(bench, asked, decode_texts(bench.view, tokens), {"direction": direction})
    ]


def _predictions(bench: Bench, asked: Sequence[Asked], answers: Sequence[str], cell: dict) -> list[dict[str, Any]]:
    """One record per sample from the answers on its forms."""
    forms, rows = len(bench.benchmark.forms), []
    for i in range(0, len(asked), forms):
        sample, texts = asked[i][0], list(answers[i : i + forms])
        verdicts = [
            bench.benchmark.judge(sample, form, text)
            for (_, form, _), text in zip(asked[i : i + forms], texts, strict=True)
        ]
        outcome = bench.benchmark.outcome(verdicts, cell["direction"])
        prompts = [p.digest for *_, p in asked[i : i + forms]]
        rows.append(
            {
                "sample": sample.id,
                "task": sample.task,
                **cell,
                "outcome": outcome,
                "verdicts": verdicts,
                "answers": texts,
                "prompts": prompts,
                **sample.tags,
            }
        )
    return rows

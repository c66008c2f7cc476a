"""Strengths matched at equal divergence: the second budget beside that of errors.

    KL(p_s || p_0) = sum_t p_s(t) (log p_s(t) - log p_0(t))

p is the distribution of an answer's first token after a dev prompt without a conflict, steered (s) and not (0): how far
a method moves a model that has nothing to be steered about. What decoding rules out has p_s = 0 and adds nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from factory.benchmark import Rows
from factory.data.prompt import Prompt
from factory.data.sample import ConflictSample
from factory.diagnose.summary import Summary, Table
from factory.model.prefix import at_last, prefill
from factory.run.labels import CURVE
from factory.run.methods.cells import placed
from factory.run.methods.choose import outcome_share
from factory.run.methods.comparison import Comparison
from factory.run.samples import thin
from factory.statistics.intervals import wilson
from factory.steer.logits import first_logits
from factory.steer.sweep import final_states, run_trunk

COLUMNS = (
    *("toward", "method", "strength at equal errors", "its KL", "strength at equal KL", "KL", "follows", "from", "to"),
    *("errors", "samples"),
)
Cell = tuple[str, str, float]
"""A method, a direction and a strength."""


def at_equal_divergence(comparison: Comparison, predictions: Rows) -> Summary | None:
    """Every method at the strength that follows most on dev among those within ``evaluate.kl_budget``, scored on test;
    None where no such budget is set.
    """
    study, budget = comparison.study, comparison.recipe.evaluate.kl_budget
    if budget is None:
        return None
    samples = neutral_samples(comparison)
    stage = study.folder.stage("divergence", {"scored": comparison.scored, "samples": [s.id for s in samples]})
    size = comparison.recipe.evaluate.batch_size
    chunks = study.chunks_of(stage, "divergence", samples, size, lambda some: _measured(comparison, some))
    rows = [row for chunk in chunks for row in chunk]
    if not stage.done:
        stage.finish({"rows": len(rows)})
    found: dict[Cell, list[float]] = defaultdict(list)
    for row in rows:
        found[row["method"], row["direction"], row["strength"]] += row["kl"]
    mean = {cell: sum(values) / len(values) for cell, values in found.items()}
    return _matched(comparison, mean, predictions, budget, len(samples))


def neutral_samples(comparison: Comparison) -> list[ConflictSample]:
    """The dev samples without their conflict, or as they are where the benchmark has no such control; as many as the
    controls' questions at most."""
    study = comparison.study
    return thin(study.agreeing_samples("dev") or study.samples["dev"], comparison.recipe.evaluate.control_questions)


def neutral_prompts(comparison: Comparison, samples: Sequence[ConflictSample]) -> list[Prompt]:
    """Prompts in which both sources say the same; in which the first stands alone where the benchmark has none."""
    study = comparison.study
    if study.agreeing_samples("dev"):
        return study.agreeing_prompts(samples)
    first = study.benchmark.sources.first.name
    return [study.benchmark.alone(s, form, first) for s in samples for form in study.benchmark.forms]


@torch.no_grad()
def _measured(comparison: Comparison, samples: Sequence[ConflictSample]) -> Rows:
    """KL(p_s || p_0) of each neutral prompt under every method at every strength."""
    study, view, prompts = comparison.study, comparison.study.view, neutral_prompts(comparison, samples)
    asked = view.encode(prompts)
    p_0 = view.logits(at_last(prefill(view, asked)[0], asked.attention_mask)).log_softmax(-1)
    rows: Rows = []

    def told(method: str, direction: str, strength: float, logits: Tensor) -> None:
        p_s = logits.float().log_softmax(-1)
        kl = (p_s.exp() * (p_s - p_0)).nan_to_num(0.0).sum(-1)
        rows.append({"method": method, "direction": direction, "strength": strength, "kl": kl.tolist()})

    for label, decoder in comparison.decoders.items():
        for direction in comparison.directions:
            for s in comparison.strengths:
                told(label, direction, s, first_logits(view, decoder, prompts, direction, s))
    for f in comparison.kept:
        batch = view.encode([f.steerer.rewrite(p, f.direction) for p in prompts])
        trunk, steering = run_trunk(view, batch, study.layer), placed(f, study.layer)
        for steering.strength in comparison.strengths:
            last = at_last(final_states(view, trunk, steering), batch.attention_mask)
            told(f.label, f.direction, float(steering.strength), view.logits(last))
    return rows


def _matched(
    comparison: Comparison, mean: dict[Cell, float], predictions: Rows, budget: float, questions: int
) -> Summary:
    by_cell: dict[tuple[str, Cell], Rows] = defaultdict(list)
    for p in predictions:
        by_cell[p["split"], (p["method"], p["direction"], p["strength"])].append(p)
    scored = CURVE if comparison.recipe.evaluate.curve_share < 1 else "test"  # all strengths were asked of these
    lines: list[tuple[Any, ...]] = []
    for c in sorted(comparison.choices, key=lambda c: c.direction, reverse=True):
        cells = [cell for cell in mean if cell[:2] == (c.method, c.direction) and by_cell["dev", cell]]
        within = [cell for cell in cells if mean[cell] <= budget]
        on_dev = {cell: (outcome_share(by_cell["dev", cell], "follow"), -abs(cell[2])) for cell in within}
        best = max(within, key=on_dev.__getitem__) if within else min(cells, key=mean.__getitem__)
        rows = by_cell[scored, best]
        low, high = wilson(sum(r["outcome"] == "follow" for r in rows), len(rows))
        share, errors = (outcome_share(rows, what) for what in ("follow", "error"))
        own = mean[c.method, c.direction, c.strength]
        lines.append((c.direction, c.method, c.strength, own, best[2], mean[best], share, low, high, errors, len(rows)))
    title = f"At most {budget:g} nats from the unsteered model, on {questions} dev samples without a conflict"
    return Summary("Strengths at equal KL", tables=(Table("equal_kl", title, COLUMNS, tuple(lines)),))

"""What a finished run knows of its single samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from eval_suite.conflict import heading
from eval_suite.report.rows import is_oracle, labels
from eval_suite.report.samples.collection import CONFLICT, QUESTION, Answer, Collection, Entry, arms_of
from eval_suite.report.samples.thumbnails import read, side_by_side, thumbnail
from factory import files
from factory.benchmark import Item, Questions
from factory.data.prompt import USER_TEXT
from factory.data.sample import ConflictSample
from factory.data.sources import in_words
from factory.report import Finished
from factory.run.labels import CURVE
from factory.run.samples import thin

MOST = 5_000  # samples of one benchmark; of more these, evenly spread: a report must not take longer than its run
FORMS = " | "  # between the answers to several forms of one question
Numbers = Mapping[str, Sequence[tuple[str, str, float]]]


def collections(run: Finished) -> list[Collection]:
    """One for each benchmark of which single samples are known: that of conflicts, then those of questions."""
    found = [of_conflicts(run)] if run.samples and run.predictions else []
    return [each for each in [*found, *of_questions(run)] if each.entries]


def of_conflicts(run: Finished) -> Collection:
    """Test samples with every method's answer at every strength, or of a share of them where no more were asked."""
    told = [p for p in run.predictions if p["split"] in ("test", CURVE) and not is_oracle(p["method"])]
    arms = arms_of(told, labels(run.results)[0])
    index = {(arm.direction, arm.method): i for i, arm in enumerate(arms)}
    entries = {entry.id: entry for entry in side_by_side(_conflict, thin(run.samples, MOST))}
    for name, numbers in measured(run.diagnostics).items():
        if (entry := entries.get(name)) is not None:
            entry.numbers = numbers
    for p in told:
        if (entry := entries.get(p["sample"])) is not None:
            key = index[p["direction"], p["method"]], p["strength"]
            entry.answers[key] = Answer(CONFLICT.letter(p["outcome"]), FORMS.join(p["answers"]))
    return Collection(run.benchmark.name, CONFLICT, arms, list(entries.values()), len(run.samples))


def _conflict(sample: ConflictSample) -> Entry:
    says = tuple((f"{in_words(name)[4:].capitalize()} says", answer) for name, answer in sample.answers.items())
    if sample.sources.pictured:
        facts = (("Context", sample.context), *says)
        return Entry(sample.id, sample.task, sample.question, facts, read(sample.load_image))
    texts = tuple((heading(name), text) for name, text in sample.contexts.items())
    return Entry(sample.id, sample.task, sample.question, (*texts, *says))


def measured(diagnostics: Sequence[Mapping[str, Any]]) -> Numbers:
    """Of each test sample what was measured once a prompt, averaged over the forms of its question: metric, prompt,
    value.
    """
    found: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in diagnostics:
        value = row.get("value")
        once = row.get("layer") is None and row.get("head") is None and row.get("split") == "test"
        if once and isinstance(value, int | float) and math.isfinite(value):
            found[row["sample"]][row["metric"], row.get("prompt", "base")].append(value)
    return {
        sample: [(metric, prompt, sum(some) / len(some)) for (metric, prompt), some in values.items()]
        for sample, values in found.items()
    }


def of_questions(run: Finished) -> Iterator[Collection]:
    """The questions of each benchmark with every arm's answer, as the run kept them."""
    unsteered = labels(run.results)[0]
    named = dict.fromkeys(row.get("label") for row in run.results.get("rows", []))
    for label in (name for name in named if name):
        told = kept(run, label, unsteered)
        if told:
            yield _asked(label, told, unsteered, *run.asked.get(label, (None, ())))


def kept(run: Finished, label: str, unsteered: str) -> list[dict[str, Any]]:
    """The records of a question benchmark's answers that the run kept, the model's as it is first."""
    paths = sorted((run.folder / "predictions" / files.file_name(label)).glob("*.jsonl"))
    told = [p for path in paths for p in files.read_jsonl(path) if "text" in p]
    return sorted(told, key=lambda p: (p["method"] != unsteered, p.get("direction") or ""))


def _asked(
    label: str,
    told: Sequence[Mapping[str, Any]],
    unsteered: str,
    benchmark: Questions | None,
    items: Sequence[Item],
) -> Collection:
    arms = arms_of(told, unsteered)
    index = {(arm.direction, arm.method): i for i, arm in enumerate(arms)}
    first = {p["sample"]: p for p in reversed(told)}
    order = [item.id for item in items if item.id in first] or list(reversed(first))
    known = {item.id: item for item in items}
    describe = partial(_question, benchmark)
    shown = thin(order, MOST)
    entries = dict(zip(shown, side_by_side(lambda name: describe(known.get(name), first[name]), shown), strict=True))
    for p in told:
        if (entry := entries.get(p["sample"])) is not None:
            answer = replace(scored(p), note=_note(p))
            entry.answers[index[p.get("direction"), p["method"]], p.get("strength")] = answer
    return Collection(label, QUESTION, arms, list(entries.values()), len(order))


def scored(record: Mapping[str, Any]) -> Answer:
    """An answer with what its rule made of it; one that is no part of the main metric may be ``shown`` as right."""
    value, text = record.get("value"), str(record["text"])
    value = record.get("shown") if value is None else value
    if record.get("failed"):
        return Answer("U", text)
    if not isinstance(value, int | float) or not math.isfinite(value):
        return Answer("N", text)
    if value in (0, 1):
        return Answer("R" if value else "W", text)
    return Answer("P" if 0 < value < 1 else "N", text, float(value))


def _note(record: Mapping[str, Any]) -> str:
    """Which pictures an answer is from, where a method left some out, and what its first call said."""
    kept = ", ".join(str(place + 1) for place in record.get("pictures", ()))
    parts = (kept and f"from pictures {kept}", record.get("told") and f"first call: {record['told']}")
    return "; ".join(part for part in parts if part)


def _question(benchmark: Questions | None, item: Item | None, record: Mapping[str, Any]) -> Entry:
    """A question in the benchmark's words; where they are not at hand, in those that the model read."""
    gold, text, pictures = str(record.get("target") or ""), str(record.get("prompt") or ""), []
    facts: Sequence[tuple[str, str]] = (("Right answer", gold),) if gold else ()
    if benchmark is not None and item is not None:
        facts = benchmark.about(item)
        try:
            prompt = item.prompt()
        except OSError:  # its picture went after it was answered
            prompt = None
        if prompt is not None:
            text = "\n".join(s.text for s in prompt.segments if s.role in USER_TEXT and s.text)
            pictures = [thumbnail(image) for image in prompt.images]
    return Entry(str(record["sample"]), next(iter(record.get("tasks") or ()), ""), text, facts, pictures)

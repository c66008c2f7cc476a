"""The sample page's files: ``samples.html``, and beside it ``samples/`` with the data, in parts that the page loads as
they are looked at. Scripts, as a page that was opened from a folder may read no other file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval_suite.report.rows import strength_text, target
from eval_suite.report.samples.collection import Arm, Collection, Entry
from eval_suite.report.samples.thumbnails import Bundles
from eval_suite.report.template import render
from factory import files

PART = 16  # samples of one file
FOLDER = "samples"


def write(collections: Sequence[Collection], folder: Path, name: str, byline: Sequence[tuple[str, str]]) -> Path | None:
    """Write the page into ``folder`` (a run's ``report/``) and remove what an earlier one left; returns its path.

    Nothing is written, and None returned, where no sample is known.
    """
    page, data = folder / "samples.html", folder / FOLDER
    written = set(_write(collections, data)) if collections else set()
    for stale in [page, *data.glob("*.js")] if not collections else data.glob("*.js"):
        if stale.name not in written:
            with files.explained(stale, "remove"):
                stale.unlink(missing_ok=True)
    if not collections:
        return None
    files.write_text(page, render("samples.html.j2", name=name, byline=byline))
    return page


def _write(collections: Sequence[Collection], data: Path) -> Iterator[str]:
    bundles, about = Bundles(), []
    for number, each in enumerate(collections):
        for part, start in enumerate(range(0, len(each.entries), PART)):
            content = [_detail(each, entry) for entry in each.entries[start : start + PART]]
            yield _script(data, f"{number}-{part:03d}", content)
        about.append(_about(each, bundles))
    for number, pictures in enumerate(bundles):
        yield _script(data, f"pictures-{number:03d}", pictures)
    yield _script(data, "index", {"sets": about, "part": PART})


def _script(folder: Path, name: str, content: Any) -> str:
    """Write ``content`` as a script that hands it to the page; returns the file's name."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    files.write_text(folder / f"{name}.js", f'steeringSamples.receive("{name}",{text});\n')
    return f"{name}.js"


def _about(collection: Collection, bundles: Bundles) -> dict[str, Any]:
    """What the page filters by, and where each sample's pictures lie, so that they load together with its texts: it
    holds all samples, without their texts and answers.
    """
    tasks = list(dict.fromkeys(entry.task for entry in collection.entries))
    return {
        "title": collection.title,
        "total": collection.total,
        "outcomes": [[o.letter, o.name, o.meaning] for o in collection.vocabulary.outcomes],
        "arms": [_arm(arm) for arm in collection.arms],
        "tasks": tasks,
        "samples": [
            [
                e.id,
                tasks.index(e.task),
                e.question,
                collection.outcomes(e),
                collection.events(e),
                list(map(bundles.place, e.pictures)),
            ]
            for e in collection.entries
        ],
    }


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "method": arm.method,
        "direction": target(arm.direction, ""),
        "variant": arm.variant,
        "strength": strength_text(arm.strength),
        "strengths": [strength_text(s) for s in arm.strengths],
        "chosen": arm.strengths.index(arm.strength) if arm.strength in arm.strengths else 0,
        "base": arm.base,
    }


def _detail(collection: Collection, entry: Entry) -> dict[str, Any]:
    """The texts of a sample; its answers as numbers of ``texts``, -1 where a strength was not asked."""
    texts: dict[str, int] = {}
    arms, notes = [], []
    for i, arm in enumerate(collection.arms):
        cells = [entry.answers.get((i, strength)) for strength in arm.strengths]
        said = [texts.setdefault(c.text, len(texts)) if c else -1 for c in cells]
        line: list[Any] = ["".join(c.letter if c else "." for c in cells), said]
        if any(c and c.value is not None for c in cells):
            line.append([None if c is None else c.value for c in cells])
        arms.append(line)
        notes.append(reported.note if (reported := entry.answers.get((i, arm.strength))) else "")
    return {
        "facts": entry.facts,
        "texts": list(texts),
        "arms": arms,
        **({"notes": notes} if any(notes) else {}),
        "numbers": _numbers(entry.numbers),
    }


def _numbers(numbers: Sequence[tuple[str, str, float]]) -> Mapping[str, Mapping[str, float]]:
    """By metric and prompt, to four digits."""
    table: dict[str, dict[str, float]] = {}
    for metric, prompt, value in numbers:
        table.setdefault(metric, {})[prompt] = float(f"{value:.4g}")
    return table

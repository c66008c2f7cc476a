"""What a tuner's settings (``Tuner.settings``) do to its scores, as with a part taken away: each against the plain
tuner on the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from factory import files
from factory.benchmark import Records
from factory.diagnose.summary import Finding, Summary, Table
from factory.statistics.intervals import paired_bootstrap
from factory.statistics.significance import sign_flip_p

ALL = "all"


class Change(NamedTuple):
    """A setting's score less the plain one's, over ``n`` questions that both answered, with its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def in_setting(method: str, setting: str) -> str:
    """What a tuner in one of its settings is called."""
    return f"{method}-{setting}"


def read_predictions(folder: Path, label: str, arm: str) -> list[dict[str, Any]]:
    """The kept answers of an arm to a benchmark, in a run's folder; none of a harness, which keeps its own."""
    path = folder / "predictions" / files.file_name(label) / f"{files.file_name(arm)}.jsonl"
    return list(files.read_log(path)) if path.is_file() else []


def settings_summary(
    method: str, settings: Sequence[str], labels: Sequence[str], records: Callable[[str, str], Records]
) -> Summary:
    """What the settings of ``method`` change on the benchmarks ``labels``; ``records(label, arm)`` are the kept
    answers.
    """
    whole: dict[str, dict[str, Change]] = {}
    by_task = []
    for label in labels:
        plain = records(label, method)
        tasks = list(dict.fromkeys(task for r in plain for task in r.get("tasks", ())))
        for setting in settings:
            other = records(label, in_setting(method, setting))
            if (change := change_of(plain, other)) is None:
                continue
            whole.setdefault(setting, {})[label] = change
            told = [change_of(_of(plain, task), _of(other, task)) for task in tasks]
            by_task.append((setting, label, *(c and str(c) for c in told)))
    found = list(whole.items())
    columns = list(dict.fromkeys(label for _, changes in found for label in changes))
    n = max((c.n for _, changes in found for c in changes.values()), default=0)
    rows = tuple(
        (setting, *(changes.get(label) and str(changes[label]) for label in columns)) for setting, changes in found
    )
    tables = [
        Table(
            "settings", f"Points of {method}'s score in each setting, with 95 % intervals", ("setting", *columns), rows
        )
    ]
    tables += [
        Table(f"{label}-settings", f"{label}: the same by task", ("setting", *_tasks(records(label, method))), own)
        for label in columns
        if len(
            (own := tuple((row[0], *row[2:]) for row in by_task if row[1] == label)) and _tasks(records(label, method))
        )
        > 1
    ]
    return Summary(
        f"What {method} does in other settings ({n} questions at most, paired)",
        tuple(_finding(method, *one) for one in found),
        tuple(tables),
    )


def change_of(plain: Records, other: Records) -> Change | None:
    """The paired change from ``plain`` to ``other``; None where they have no question in common."""
    before, after = (
        {r["sample"]: float(r["value"]) for r in rows if r["value"] is not None} for rows in (plain, other)
    )
    shared = [sample for sample in before if sample in after]
    if not shared:
        return None
    a, b = [after[s] for s in shared], [before[s] for s in shared]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low, high = paired_bootstrap(a, b)
    return Change(sum(differences) / len(shared), low, high, sign_flip_p(differences), len(shared))


def _finding(method: str, setting: str, changes: dict[str, Change]) -> Finding:
    told = ", ".join(f"{change} points on {label}" for label, change in changes.items())
    values = {label: change.mean for label, change in changes.items()}
    return Finding(f"{method}, {setting}: {told}", values={f"{setting}/{label}": v for label, v in values.items()})


def _of(records: Records, task: str) -> list[Any]:
    return [r for r in records if task in r.get("tasks", ())]


def _tasks(records: Records) -> list[str]:
    return list(dict.fromkeys(task for r in records for task in r.get("tasks", ())))

"""What stands over a report: which run this was, of which model, on which data, when, and by which code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from factory import files
from factory.plain import number_of

Byline = list[tuple[str, str]]
UNKNOWN = "unknown"


def title(results: Mapping) -> str:
    """The run's name."""
    return str((results.get("run") or {}).get("name") or "Steering report")


def byline(run_dir: Path, results: Mapping, limit: int | None) -> Byline:
    """Labelled facts about a run; what is not known of it is left out, but for the commit, whose lack has to be said.

    The date is that on which the run was first started, so that a report written anew says the same.
    """
    run = results.get("run") or {}
    asked = [row for row in results.get("rows", []) if not row.get("control")]
    data = dict.fromkeys(str(row.get("label") or row["benchmark"]) for row in asked)
    said = [
        ("model", _model(run.get("model"))),
        ("data", ", ".join(data) or run.get("data")),
        ("limit", f"{number_of(limit, 'sample')} of each split" if limit is not None else "none, all samples"),
        ("seed", None if run.get("seed") is None else str(run["seed"])),
        ("started", _started(run_dir)),
        ("commit", _commit(run_dir)),
    ]
    return [(label, value) for label, value in said if value]


def _model(about: Any) -> str | None:
    if not isinstance(about, Mapping):
        return None if about is None else str(about)
    name, tuned = about.get("card") or about.get("class"), about.get("tuned")
    layer = None if about.get("layer") is None else f"layer {about['layer']}"
    of = None if name == about.get("class") else about.get("class")
    return ", ".join(str(part) for part in (name, of, layer, tuned and "tuned") if part) or None


def _started(run_dir: Path) -> str | None:
    path = run_dir / "events.jsonl"
    events = files.read_log(path) if path.is_file() else []
    first = next((e["time"] for e in events if e.get("event") == "run_opened" and isinstance(e.get("time"), str)), None)
    return first and f"{first[:10]} {first[11:16]} UTC"


def _commit(run_dir: Path) -> str | None:
    path = run_dir / "environment.json"
    if not path.is_file():
        return None
    git = files.read_json(path).get("git")
    return f"{git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else UNKNOWN

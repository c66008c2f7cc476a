"""What ``plan RECIPE --device cpu`` computes, no weight read, against the processor time that the run then takes.

    python -m eval_suite.speed.planned RECIPE [KEY=VALUE ...] [--limit N] [--json FILE] [--markdown FILE]

The plan is made here; the run is a process of its own, in a temporary folder. A comparison is set side by side stage by
stage, from the run's own log; a tuning part by part, as its training marks them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from time import process_time
from typing import Any

from factory import files
from factory.cli import main as command
from factory.plain import ending_in_one_line
from factory.recipe import load
from factory.run.environment import environment
from factory.run.plan.plan import plan
from factory.stopwatch import Stopwatch
from factory.terminal import Console

WITHIN = 0.25
NAMES = {"bench-control": "controls", "diagnose-": "diagnostics"}


def watched(words: Sequence[str], told: Path) -> None:
    """A run by its command line, in this process, whose parts and processor time are written to ``told``."""
    watch = Stopwatch(process_time, lambda: None)
    with watch.running():
        command(["run", *words])
    parts = defaultdict[str, float](float)
    for ((stage, _), (what, _)), seconds in watch.seconds.items():
        parts["step" if what == stage else what] += seconds * (stage == "cycle")
    files.write_json(told, {"parts": {name: took for name, took in parts.items() if took}, "all": process_time()})


def by_stage(log: Sequence[Mapping[str, Any]], whole: float) -> dict[str, float]:
    """Seconds of each stage of a run, by the processor time in its log; what comes before the first counts as the
    check, what comes after the last as the report."""
    seconds, at, since = defaultdict[str, float](float), "check", 0.0
    for event in log:
        entered = {"stage_started": event.get("stage"), "stage_finished": "report"}.get(event["event"])
        if entered and (at, entered) != ("check", "report"):
            seconds[at] += event["processor"] - since
            at, since = entered, event["processor"]
    seconds[at] += whole - since
    return seconds


def joined(seconds: Mapping[str, float]) -> dict[str, float]:
    """The stages as a table shows them: many of a kind as one."""
    found = defaultdict[str, float](float)
    for stage, took in seconds.items():
        found[next((name for head, name in NAMES.items() if stage.startswith(head)), stage)] += took
    return found


def compare(path: Path, words: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Planned and measured seconds of each stage, or part, and of all."""
    recipe = load(path, words)
    began = process_time()
    with redirect_stdout(StringIO()):
        told = joined(plan(recipe, limit, device="cpu"))
    planning = process_time() - began
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "told.json"
        given = [str(path), *words, f"run.root={home}", *(["--limit", str(limit)] if limit else [])]
        subprocess.run([sys.executable, "-P", "-m", __spec__.name, "--watched", str(out), *given], check=True)
        took = files.read_json(out)
        (log,) = Path(home).glob("*/events.jsonl")
        stages = joined(by_stage(files.read_log(log), took["all"]))
    if parts := took["parts"]:
        stages = {"begin and end": took["all"] - sum(parts.values()), **parts}
    rows = [(name, told.get(name, 0.0), stages.get(name, 0.0)) for name in dict.fromkeys([*told, *stages])]
    return {
        "recipe": recipe.name,
        "limit": limit,
        "date": datetime.now(UTC).date().isoformat(),
        "planned_in": planning,
        "stages": rows,
        "all": [sum(told.values()), took["all"]],
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of Markdown."""
    lines = ["| stage | planned, s | run, s | planned / run |", "| :--- | ---: | ---: | ---: |"]
    for name, told, took in [*found["stages"], ("**all**", *found["all"])]:
        lines.append(f"| {name} | {told:.1f} | {took:.1f} | {f'{told / took:.2f}' if took >= 0.05 else ''} |")
    told, took = found["all"]
    said = "within" if abs(told / took - 1) <= WITHIN else "**outside**"
    limit = f", `--limit {found['limit']}`" if found["limit"] else ""
    return [
        f"`{found['recipe']}`{limit}: {said} {WITHIN:.0%}; planned in {found['planned_in']:.0f} s.",
        "",
        *lines,
        "",
    ]


@ending_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval_suite.speed.planned", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    parser.add_argument("--markdown", type=Path, help="add the table to this file")
    a = parser.parse_intermixed_args(arguments)
    found = compare(a.recipe, a.overrides, a.limit)
    lines = table(found)
    Console().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if a.markdown:
        files.write_text(a.markdown, (a.markdown.read_text() if a.markdown.exists() else "") + "\n".join(lines) + "\n")
    if a.json:
        before = files.read_json(a.json)["results"] if a.json.exists() else []
        here = {"environment": environment(), "load_average": os.getloadavg()}
        files.write_json(a.json, {**here, "results": [*before, found]})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watched"]:
        watched(sys.argv[3:], Path(sys.argv[2]))
    else:
        main(sys.argv[1:])

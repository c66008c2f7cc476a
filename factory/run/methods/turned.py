"""The random control beside a steering table: every method's vectors turned, at the strength that dev chose for it."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from factory.benchmark import Rows
from factory.data.sample import ConflictSample
from factory.diagnose.summary import Finding, Summary, Table
from factory.run.methods.cells import Fitted, asked_by, outcomes, placed, trunk_of
from factory.run.methods.comparison import Comparison
from factory.run.samples import thin
from factory.statistics.intervals import wilson
from factory.steer import Steering
from factory.steer.sweep import Trunk, meets, run_cell
from factory.steer.turned import Turned, turn
from factory.stopwatch import part

COLUMNS = (
    *("toward", "method", "strength", "follows", "turned: follows", "from", "to"),
    *("turned: errors", "questions"),
)


def random_control(comparison: Comparison, predictions: Rows) -> Summary | None:
    """A table of every method that adds vectors beside the same with its vectors turned, on the same test samples;
    None where there are none, or none is asked for. ``predictions`` hold what the methods themselves did.
    """
    study, most = comparison.study, comparison.recipe.evaluate.random_control
    own = [f for f in comparison.kept if not f.steerer.control]
    if not (most and own):
        return None
    samples = thin(study.samples["test"], most)
    stage = study.folder.stage("random", {"scored": comparison.scored, "samples": most})
    size = comparison.recipe.evaluate.batch_size
    chunks = study.chunks_of(stage, "random", samples, size, lambda some: _turned(comparison, own, some))
    rows = [row for chunk in chunks for row in chunk]
    if not stage.done:
        stage.finish({"predictions": len(rows)})
    at = {(c.method, c.direction): c.strength for c in comparison.choices}
    return _beside(rows, predictions, at, {s.id for s in samples})


def _turned(comparison: Comparison, own: Sequence[Fitted], samples: list[ConflictSample]) -> Rows:
    """Each sample's outcome under every method turned."""
    bench, rows = comparison.study.bench, []
    at = {(c.method, c.direction): c.strength for c in comparison.choices}
    trunks: dict[tuple[str, ...], Trunk] = {}
    for f in own:
        with part("sweep", f.label):
            asked = asked_by(bench, samples, f)
            digests = tuple(prompt.digest for *_, prompt in asked)
            trunk = trunks[digests] = trunks.get(digests) or trunk_of(bench, asked)
            steering = _control_of(comparison, f, trunk, at[f.label, f.direction])
            tokens = run_cell(bench.view, trunk, steering, bench.max_new_tokens, bench.among)
            found = outcomes(bench, asked, tokens, f.direction)
        about = {"method": f.label, "direction": f.direction}
        rows += [{**about, "sample": s.id, "outcome": o} for s, o in zip(samples, found, strict=True)]
    return rows


def _control_of(comparison: Comparison, f: Fitted, trunk: Trunk, strength: float) -> Steering:
    """A method with its vectors turned, as strong on every prompt as it is itself."""
    view, itself = comparison.study.view, placed(f, comparison.study.layer, strength)
    seed = zlib.crc32(f"{comparison.recipe.seed}/{f.label}/{f.direction}".encode())
    width = max(view.width, *(heads * view.head_dim for heads in map(view.heads_of, range(view.depth))))
    state = {**f.state, **turn(width, seed)}
    if f.steerer.trial_strengths and meets(trunk, itself):
        run_cell(view, trunk, itself, 1)
        return Steering(Turned(f.steerer, told=True), state, itself.where, strength * itself.gain.cpu())
    return Steering(Turned(f.steerer), state, itself.where, strength)


def _beside(rows: Rows, predictions: Rows, at: dict[tuple[str, str], float], ids: set[str]) -> Summary:
    themselves: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for p in predictions:
        key = (p["method"], p["direction"])
        if p["split"] == "test" and p["sample"] in ids and p["strength"] == at.get(key):
            themselves[key].append(p["outcome"] == "follow")
    turned: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        turned[row["method"], row["direction"]].append(row["outcome"])
    lines: list[tuple[Any, ...]] = []
    for (method, direction), found in sorted(turned.items(), key=lambda item: item[0][1], reverse=True):
        follow, n, own = found.count("follow"), len(found), themselves[method, direction]
        low, high = wilson(follow, n)
        errors = found.count("error") / n
        lines.append((direction, method, at[method, direction], sum(own) / len(own), follow / n, low, high, errors, n))
    no_better = [f"{line[1]} toward {line[0]}" for line in lines if line[3] <= line[6]]
    told = f"No more often than its own vectors turned, within their interval: {', '.join(no_better)}"
    finding = Finding(told if no_better else "Every method follows more often than its own vectors turned do")
    title = "Each method and its own vectors turned into random directions, as long as they were, on the same samples"
    return Summary("A random direction", (finding,), (Table("random", title, COLUMNS, tuple(lines)),))

"""Made-up runs for the report tests. Nothing here is a measurement; the shapes only resemble one."""

import math

import numpy as np

from eval_suite.report.rows import TASKS, Predictions
from factory.statistics.intervals import wilson

STRENGTHS = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]
PROMPT_ONLY = ["none", "instruction", "cot", "few_shot"]
STEERED = {"static": (0.7, 1.0), "l2s": (1.0, 0.9), "amps": (1.25, 0.7), "dose": (1.4, 0.45)}
RECIPE = "name: synthetic\nevaluate:\n  error_budget: 0.05\n"


def synthetic(
    per_task=40, tasks=tuple(TASKS), directions=("vision", "text"), methods=None, splits=("dev", "test"), seed=0
):
    """A made-up run: results (counted from its own predictions), diagnostics and predictions."""
    rng = np.random.default_rng(seed)
    diagnostics, predictions = [], []
    for split in splits:
        for task in tasks:
            lean = 0.35 + 0.06 * list(TASKS).index(task)
            for i in range(per_task):
                sample, vt, tt = f"{split}-{task}-{i}", int(rng.integers(3)), int(rng.integers(3))
                r_v = float(np.clip(rng.normal(lean, 0.12), 0.02, 0.98))
                for prompt, shift in (("vision", 0.14), ("base", 0.0), ("text", -0.13)):
                    value = float(np.clip(r_v + shift + rng.normal(0, 0.03), 0, 1))
                    shares = {"R_V": value, "R_V_sum": value, "R_V_mean_per_token": 0.6 * value + 0.1}
                    for metric, v in shares.items():
                        diagnostics.append(
                            {
                                "sample": sample,
                                "task": task,
                                "split": split,
                                "form": "order1",
                                "prompt": prompt,
                                "metric": metric,
                                "layer": None,
                                "head": None,
                                "value": v,
                                "visual_tier": vt,
                                "text_tier": tt,
                            }
                        )
                ease = r_v - 0.15 * vt + 0.12 * tt + rng.normal(0, 0.1)
                for direction in directions:
                    sign = 1 if direction == "vision" else -1
                    for method, strength in _settings(methods):
                        push, frailty = STEERED.get(method, ({"instruction": 0.35, "cot": 0.3}.get(method, 0.0), 0))
                        amount = 1.0 if strength is None else strength
                        p = 1 / (1 + math.exp(-(8 * sign * (ease - 0.55) + 2.2 * push * amount)))
                        broken = rng.random() < min(1, frailty * 0.02 * amount**2.4 * (0.4 + r_v))
                        outcome = "error" if broken else "follow" if rng.random() < p else "compete"
                        predictions.append(
                            {
                                "sample": sample,
                                "task": task,
                                "split": split,
                                "method": method,
                                "direction": direction,
                                "strength": strength,
                                "outcome": outcome,
                                "answers": ["red", "blue"],
                            }
                        )
    return results_of(predictions), diagnostics, predictions


def _settings(methods):
    names = methods or [*PROMPT_ONLY, *STEERED]
    return [(m, s) for m in names for s in (STRENGTHS if m in STEERED else [None])]


def results_of(predictions):
    cells = {}
    for p in predictions:
        for task in (p["task"], "all"):
            key = (p["split"], task, p["direction"], p["method"], p["strength"])
            cells.setdefault(key, []).append(p["outcome"])
    rows = [row(*key, outcomes) for key, outcomes in cells.items()]
    picks = {}
    for r in rows:
        if r["split"] == "dev" and r["task"] == "all" and r["strength"] is not None and r["metrics"]["error"] <= 0.05:
            key = (r["direction"], r["method"])
            picks[key] = max(picks.get(key, (-1, None)), (r["metrics"]["follow"], r["strength"]))
    for r in rows:
        r["chosen"] = r["strength"] is not None and picks.get((r["direction"], r["method"]), (0, 0))[1] == r["strength"]
    run = {
        "name": "synthetic",
        "seed": 0,
        "model": "tiny",
        "started": "2025-01-02T03:04:05",
        "error_budget": 0.05,
        "versions": {"torch": "2.0", "transformers": "5.0"},
        "notes": ["Made-up numbers."],
    }
    return {"schema": 1, "run": run, "rows": rows}


def row(split, task, direction, method, strength, outcomes, **extra):
    n = len(outcomes)
    counts = {name: outcomes.count(name) for name in ("follow", "compete", "other", "error")}
    return {
        "benchmark": "scenes",
        "split": split,
        "task": task,
        "direction": direction,
        "method": method,
        "strength": strength,
        "seed": 0,
        "n": n,
        "metrics": {k: v / n for k, v in counts.items()},
        "ci": {k: list(wilson(v, n)) for k, v in counts.items()},
        "protocol": "mc2_both_orders",
        "prompt_hash": "3f9a1c",
        "scorer": "options@1",
        "parse_failure_rate": 0.01,
        "chosen": False,
        "skipped": 1,
        **extra,
    }


def simple(method, follow, n=100, error=0, strength=None, direction="vision", split="test", **extra):
    """The total row of one method, from plain counts."""
    outcomes = ["follow"] * follow + ["error"] * error + ["compete"] * (n - follow - error)
    return row(split, extra.pop("task", "all"), direction, method, strength, outcomes, **extra)


def results(*rows, **run):
    return {"schema": 1, "run": {"name": "small", **run}, "rows": list(rows)}


def outcome_records(method, outcomes, strength=1.0):
    return [
        {
            "sample": i,
            "task": "color",
            "split": "test",
            "method": method,
            "direction": "vision",
            "strength": strength,
            "outcome": o,
        }
        for i, o in enumerate(outcomes)
    ]


def two_methods(l2s, amps, n=200):
    """L2S and AMPS follow on the first `l2s` and `amps` of the same n samples."""
    outcomes = {m: ["follow"] * k + ["compete"] * (n - k) for m, k in (("l2s", l2s), ("amps", amps))}
    data = results(*(simple(m, o.count("follow"), n=n, strength=1.0, chosen=True) for m, o in outcomes.items()))
    return data, Predictions(p for m, o in outcomes.items() for p in outcome_records(m, o))

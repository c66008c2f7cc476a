"""The results that lm-eval and lmms-eval write: "METRIC,FILTER" and "METRIC_stderr,FILTER" by task, and one record a
question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from factory.statistics.intervals import wilson

Z = 1.959963984540054
Numbers = dict[str, float]


def measured(found: Mapping[str, Any]) -> tuple[Numbers, dict[str, list[float]]]:
    """A task's metrics and their 95 % intervals (those of the normal distribution, from the harness's standard errors).

    A metric is called by its own name after the task's first filter, and "METRIC (FILTER)" after any other.
    """
    values = {k: float(v) for k, v in found.items() if "," in k and "_stderr" not in k and isinstance(v, int | float)}
    first = next((k.split(",")[1] for k in values), "")

    def name(key: str) -> str:
        metric, how = key.split(",", 1)
        return metric if how == first else f"{metric} ({how})"

    errors = {k: found.get(k.replace(",", "_stderr,", 1)) for k in values}
    return {name(k): v for k, v in values.items()}, {
        name(k): [values[k] - Z * e, values[k] + Z * e] for k, e in errors.items() if isinstance(e, float)
    }


def record(sample: Mapping[str, Any], main: str, prompt_digest: str) -> dict[str, Any]:
    """One question as predictions are kept: the main metric's value, the answer and what was wanted."""
    try:
        value = float(sample[main])
    except (KeyError, TypeError, ValueError):  # a metric of the corpus alone has no value of a question
        value = None
    return {
        "sample": str(sample["doc_id"]),
        "value": value,
        "prompt_digest": prompt_digest,
        "text": str(sample.get("filtered_resps")),
        "target": str(sample.get("target")),
    }


def share_interval(main: str, metrics: Numbers, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Wilson's interval of the main metric where it is a share of right answers (the normal one may leave [0, 1]); else
    nothing.
    """
    values = [r["value"] for r in records]
    if (
        not values
        or any(v not in (0, 1) for v in values)
        or not math.isclose(sum(values) / len(values), metrics[main], abs_tol=1e-9)
    ):
        return {}
    return {main: list(wilson(sum(values), len(values)))}

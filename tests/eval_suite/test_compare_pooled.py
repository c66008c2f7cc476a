"""Runs on several draws of the data as one, and what is closed of the distance between two methods."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval_suite.compare.significance import of_units
from factory.cli import main
from factory.files import file_name
from tests.eval_suite.test_compare import drawn, flipped, run_folder, table_of

DIRECTIONS = ("vision", "text")
METHODS = ("none", "l2s", "dose", "oracle: l2s")


def conflict_run(root, name, seed):
    """A finished run of four methods toward two directions on one benchmark's conflicts; and its outcomes."""
    values, rows = {}, []
    for k, direction in enumerate(DIRECTIONS):
        none = drawn(0.3, seed=10 * seed + k)
        better = np.maximum(none, drawn(0.5, seed=10 * seed + k + 2))
        best = np.maximum(better, drawn(0.5, seed=10 * seed + k + 4))
        for method, each in zip(METHODS, (none, better, flipped(best, 0.05, seed), best), strict=True):
            each = values[method, direction] = np.array(each)
            rows.append(
                {
                    "benchmark": "scenes",
                    "task": "all",
                    "direction": direction,
                    "method": method,
                    "seed": seed,
                    "n": len(each),
                    "metrics": {"follow": each.mean()},
                    "protocol": "scenes/open_ended",
                    "scorer": "conflict/2",
                }
            )
            lines = [json.dumps({"sample": str(i), "value": v}) for i, v in enumerate(each)]
            path = root / name / "predictions" / "scenes" / f"{file_name(f'{method}-{direction}')}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines))
    told = {"schema": 1, "run": {"name": name}, "rows": rows}
    (root / name / "results.json").write_text(json.dumps(told))
    return values


def compared(out, *arguments):
    assert main(["compare", *map(str, arguments), "--out", str(out)]) == 0
    return {(r["method"], r["direction"], r["reference"]): r for r in table_of(out)}


def test_draws_are_pooled_toward_each_side_and_toward_the_wanted_one(tmp_path, capsys):
    runs = {name: conflict_run(tmp_path, name, seed) for seed, name in enumerate(("one", "two"), 1)}
    folders = [tmp_path / name for name in runs]
    rows = compared(tmp_path / "out", *folders, "--pool", "--between", "l2s", "oracle", "--against", "l2s")
    whole = {key: np.concatenate([run[key] for run in runs.values()]) for key in runs["one"]}
    for direction in DIRECTIONS:
        row = rows["dose", direction, "l2s"]
        assert row["n"] == "800" and float(row["value"]) == pytest.approx(whole["dose", direction].mean())
        difference = whole["dose", direction] - whole["l2s", direction]
        assert float(row["difference"]) == pytest.approx(difference.mean())
        distance = (whole["oracle: l2s", direction] - whole["l2s", direction]).sum()
        assert float(row["closed"]) == pytest.approx(difference.sum() / distance)
    row = rows["dose", "wanted_side", "l2s"]
    both = [np.concatenate([whole[method, d] for d in DIRECTIONS]) for method in ("dose", "l2s")]
    assert row["n"] == "1600" and float(row["difference"]) == pytest.approx((both[0] - both[1]).mean())
    _, low, high = of_units(list(both[0] - both[1]), [*range(800), *range(800)])  # a sample's answers hang together
    assert float(row["difference_high"]) - float(row["difference_low"]) == pytest.approx(high - low, rel=0.1)
    said = capsys.readouterr().out
    assert "Towards the wanted side" in said and "share of the distance from l2s to oracle" in " ".join(said.split())


def test_no_share_is_told_of_a_distance_that_some_resample_lacks(tmp_path, capsys):
    none = drawn(0.5)
    one_more = [1.0 if i == none.index(0.0) else x for i, x in enumerate(none)]
    folder = run_folder(tmp_path, "r", {"none": none, "other": flipped(none, 0.1, 3), "much": one_more})
    rows = compared(tmp_path / "out", folder, "--between", "none", "much")
    assert rows["other", "", "none"]["closed"] == ""
    assert "a dash where so few" in " ".join(capsys.readouterr().out.split())


def test_one_run_is_not_pooled_and_an_unknown_end_is_named(tmp_path, capsys):
    folder = run_folder(tmp_path, "r", {"none": drawn(0.5), "l2s": drawn(0.6)})
    assert main(["compare", str(folder), "--pool"]) == 2
    assert "--pool: takes several runs" in capsys.readouterr().err
    assert main(["compare", str(folder), "--between", "l2s", "oracle"]) == 2
    assert "--between oracle: no run has such a method; there are none, l2s" in capsys.readouterr().err

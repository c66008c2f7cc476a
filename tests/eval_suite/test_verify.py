"""The numbers of a conflict run, recomputed from its kept answers."""

from __future__ import annotations

import json

from factory.cli import main
from factory.recipe import load

RECIPE = (
    "name: r\nmodel: {zoo: tiny}\ndata: {type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}\n"
)


def test_a_conflict_run_is_recomputed_and_a_changed_number_told(tmp_path, capsys):
    (tmp_path / "test" / "chunks").mkdir(parents=True)
    (tmp_path / "resolved.yaml").write_text(RECIPE)
    benchmark = load(tmp_path / "resolved.yaml").data.make()
    one, two = benchmark.samples("test")[:2]
    cell = {"method": "m", "direction": "vision", "variant": "", "strength": 1.0}
    kept = [
        {"sample": s.id, "task": s.task, **cell, "answers": [answer]}
        for s, answer in ((one, one.answer_vision), (two, "The two sources conflict"))
    ]
    (tmp_path / "test/chunks/test-0.jsonl").write_text("\n".join(map(json.dumps, [*kept, kept[0]])))
    about = {"split": "test", "chosen": True, "prompt_hash": "x"}
    scored = [
        {**p, **about, "verdicts": [verdict], "outcome": outcome}
        for p, verdict, outcome in zip(kept, ("vision", "flags"), ("follow", "flags"), strict=True)
    ]
    rows = benchmark.rows(scored)
    whole = next(row for row in rows if row["task"] == "all")
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"rows": [*rows, {**whole, "method": "oracle"}]}))
    assert main(["verify", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "3 of 4 rows recomputed, 0 numbers differ" in told and "without kept answers: 1 rows (test/oracle)" in told
    whole["metrics"]["follow"] = 0.75
    results.write_text(json.dumps({"rows": rows}))
    assert main(["verify", str(tmp_path)]) == 1
    assert "metrics.follow is 0.75 in results.json and 0.5 from the kept answers" in capsys.readouterr().out

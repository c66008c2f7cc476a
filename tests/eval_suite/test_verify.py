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


def kept_run(folder):
    """A run of the scenes' recipe with one method toward either modality, and its results."""
    (folder / "test" / "chunks").mkdir(parents=True)
    (folder / "resolved.yaml").write_text(RECIPE)
    benchmark = load(folder / "resolved.yaml").data.make()
    samples = benchmark.samples("test")[:4]
    cell = {"method": "m", "variant": "", "strength": 1.0}
    answers = {"vision": [s.answer_vision for s in samples], "text": [s.answer_vision for s in samples[:3]] + ["", ""]}
    kept, scored = [], []
    for direction, texts in answers.items():
        for s, text in zip(samples, texts, strict=False):
            p = {"sample": s.id, "task": s.task, **cell, "direction": direction, "answers": [text]}
            outcome = benchmark.outcome([benchmark.judge(s, "open", text)], direction)
            kept.append(p)
            scored.append(
                {**p, "split": "test", "chosen": True, "prompt_hash": "x", "verdicts": ["x"], "outcome": outcome}
            )
    (folder / "test/chunks/test-0.jsonl").write_text("\n".join(map(json.dumps, kept)))
    (folder / "results.json").write_text(json.dumps({"rows": benchmark.rows(scored)}))


def test_a_documents_table_is_held_against_its_run(tmp_path, capsys):
    """Toward the image 4 of 4 follow (Wilson: 51.0 to 100.0); toward the text none of 4 does, and one is an error."""
    recipe, document = tmp_path / "r.yaml", tmp_path / "results.md"
    recipe.write_text(RECIPE)
    command = f"bash launch.sh {recipe}"
    table = """\
# Results

## One

```bash
COMMAND   # and what it needs
```

| method | strength | toward the image | error | strength | toward the text | error |
|:---|---:|---:|---:|---:|---:|---:|
| m (steered) | 1 | 100.0 (51.0 to 100.0) | 0.0 | 1 | 0 (0 to 49) | 25.0 |
| *oracle of m* | | 88.0 | 0.0 | | up to 90 | |

## Two

| method | toward the image |
|:---|---:|
| m | 1.0 |
"""
    document.write_text(table.replace("COMMAND", command))
    verify = ["verify", str(document), "--runs", str(tmp_path / "runs")]
    assert main(verify) == 1
    assert f"no run in {tmp_path / 'runs/r'}; make it: bash launch.sh {recipe}" in capsys.readouterr().out
    kept_run(tmp_path / "runs/r")
    assert main(verify) == 0
    told = capsys.readouterr().out
    assert "results.md:9 (One): 4 numbers recomputed, 0 differ" in told and "3 cells have no kept answers" in told
    assert "results.md:16 (Two): not recomputed: 0 commands stand above it" in told
    document.write_text(table.replace("COMMAND", command).replace("0 (0 to 49)", "0 (0 to 48)"))
    assert main(verify) == 1
    told = capsys.readouterr().out
    assert (
        "1 differ" in told and "results.md:11: m toward text, follow: 0.0, 0.0, 48.0 is printed, and 0, 0, 49" in told
    )
    document.write_text(table.replace("COMMAND", f"{command} data.seed=3"))
    assert main(verify) == 1 and "is of another recipe" in capsys.readouterr().out
    document.write_text("no table\n")
    assert main(verify) == 2 and "holds no table of outcomes" in capsys.readouterr().err

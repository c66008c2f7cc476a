"""Published numbers: the file agrees with the paper's arithmetic, and stands beside rows of the same model and
direction alone.
"""

from __future__ import annotations

from statistics import mean

import pytest
from rich.console import Console

from eval_suite.report.published import beside, print_published, published
from factory.zoo.cards import cards


def total(method: str, direction: str, follow: float, task: str = "all") -> dict:
    return {
        "benchmark": "mc2",
        "protocol": "mc2/order1",
        "seed": 0,
        "split": "test",
        "task": task,
        "direction": direction,
        "method": method,
        "strength": None,
        "n": 400,
        "metrics": {"follow": follow, "compete": 1 - follow, "other": 0.0, "error": 0.0},
        "ci": {},
        "chosen": True,
    }


def results(card: str | None, *rows: dict) -> dict:
    return {"run": {"model": {"card": card}}, "rows": list(rows)}


def test_every_total_is_the_mean_of_its_tasks_or_says_why_not():
    cells: dict[tuple, dict[str, dict]] = {}
    for row in published():
        assert row["model"] in cards() and 0 <= float(row["value"]) <= 100
        cells.setdefault((row["table"], row["model"], row["direction"], row["method"]), {})[row["task"]] = row
    for key, tasks in cells.items():
        values = [float(row["value"]) for task, row in tasks.items() if task != "all"]
        assert len(values) == 8, key
        assert mean(values) == pytest.approx(float(tasks["all"]["value"]), abs=0.06), key
    corrected = [
        row for row in published() if row["note"].startswith("printed") and "mean of its eight tasks" in row["note"]
    ]
    assert [(row["direction"], row["method"], float(row["value"])) for row in corrected] == [
        ("vision", "none", 40.95),
        ("text", "none", 58.7),
        ("text", "amps", 79.975),
        ("vision", "few_shot", 17.375),
    ]


def test_table_1_stands_beside_its_tasks():
    tasks = ["activity_recognition", "color", "object_recognition", "sport_recognition"]
    run = results("qwen2.5-vl-7b", *(total("cot", "text", 0.5, task) for task in ("all", *tasks)))
    (block,) = beside(run)
    (cot,) = block.methods
    printed = ["27.2", "63.6", "83.6", "62.8", "75.6", "53.2", "58.0", "20.4"]  # as in the paper, from left to right
    assert dict(cot.rows)["Table 1"][:-1] == [printed[at] for at in (0, 2, 4, 7)]
    assert any("garbled" in note and "Table 2's order" in note for note in block.notes)


def test_the_amps_row_of_table_1_toward_vision_is_that_of_table_2():
    one, two = (
        {
            row["task"]: float(row["value"])
            for row in published()
            if (row["table"], row["model"], row["direction"], row["method"])
            == (table, "qwen2.5-vl-7b", "vision", "amps")
        }
        for table in ("Table 1", "Table 2")
    )
    assert one == two and len(one) == 9


def test_numbers_stand_beside_their_own_model_direction_and_method():
    rows = [
        total("none", "vision", 0.5),
        total("amps", "vision", 0.6),
        total("dose", "vision", 0.7),
        total("amps", "text", 0.8),
    ]
    vision, text = beside(results("llava-1.5-13b", *rows))
    assert [(m.method, [source for source, _ in m.rows]) for m in vision.methods] == [
        ("none", ["measured", "Table 2"]),
        ("amps", ["measured", "Table 2"]),
    ]
    assert vision.methods[1].rows[0][1] == ["60.0"] and float(vision.methods[1].rows[1][1][-1]) == pytest.approx(
        49.65, abs=0.051
    )
    assert text.methods[0].rows[1][1][-1] == "89.5"


@pytest.mark.parametrize("card", [None, "tiny", "gemma-3-4b"])
def test_other_models_have_none(card):
    assert beside(results(card, total("amps", "vision", 0.6))) == []


def test_corrections_and_the_papers_protocol_are_told(capsys):
    print_published(results("qwen2.5-vl-7b", total("none", "vision", 0.5)), Console(width=100))
    said = capsys.readouterr().out
    assert "printed 42.00" in said and "on which it also trained" in said and "Table 1" in said and "15.3" in said

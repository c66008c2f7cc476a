"""Small files in each conflict benchmark's released layout, with the real field names; texts and pictures are made
here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.eval_suite.released_files import picture, written

THINGS = ("cat", "bus", "lamp", "kite", "boat", "spoon", "tent", "drum")
COLORS = ("red", "green", "blue", "white")


def clash_sample(i: int, **changes: Any) -> dict[str, Any]:
    thing, seen, said, neither = THINGS[i % 8], *(COLORS[(i + k) % 4] for k in range(3))
    return {
        "image_id": 500 + i,
        "original_caption": f"A {seen} {thing} on a table. ",
        "conflicting_caption": f"A {said} {thing} on a table.",
        "question": f"What color is the {thing}?",
        "change_type": ("object", "attribute")[i % 2],
        "answers": {"image_only": seen, "text_only": said, "irrelevant_but_plausible": neither},
        "changed_words": {"original": seen, "conflicting": said},
        "category": "colors" if i else ["sports", "transportation"],
    } | changes


def clash(root: Path, n: int = 8) -> dict[str, Any]:
    samples = [clash_sample(i) for i in range(n)]
    for i, sample in enumerate(samples):
        picture(root / "coco/train2017" / f"{sample['image_id']:012d}.jpg", i)
    written(root / "test.json", {"metadata": {"num_samples": n}, "samples": samples})
    return {"type": "clash", "root": str(root), "images": str(root / "coco")}


def chart_item(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "conflict_id": i,
        "pool_conflict_id": i,
        "chartqa_test_index": 100 + i,
        "question": f"What is the value of bar {i}?",
        "chart_answer": f"{i + 2}.5",
        "report_answer": f"{i + 3}",
        "answer_type": "numeric",
        "unit_class": ("percent", "million_usd")[i % 2],
        "counterfactual_strategy": "unit_preserving_perturbation",
        "text_report": f"The report says that bar {i} has the value {i + 3}, as was counted twice.",
        "chart_source_label": "AB"[i % 2],
        "report_source_label": "BA"[i % 2],
        "source_table": f"tables/{i}.csv",
        "image_file": f"images/{i:03d}.png",
    } | changes


def chartqa_conflict(root: Path, n: int = 6) -> dict[str, Any]:
    items = [chart_item(i) for i in range(n)]
    for i, item in enumerate(items):
        picture(root / item["image_file"], i)
    (root / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    return {"type": "chartqa_conflict", "root": str(root)}

"""A small cut of MC²: a file in the released form and pictures under COCO 2014's names."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from eval_suite.conflict import TASKS

PER_TASK = 6


def entry(index: int, task: str, **changes: object) -> dict[str, object]:
    return {
        "image_id": f"{index:012d}",
        "task": task,
        "question": f"What colour is thing {index}?",
        "answer_vision": "red",
        "answer_text": "blue",
        "context": f"Everybody says that thing {index} is blue, as blue as the sky on a day in May.",
    } | changes


def cut(folder: Path, per_task: int = PER_TASK, pictures: bool = True) -> Path:
    """``folder`` with evaluate_final.json and, in train2014/ and val2014/ by turns, one picture each."""
    entries = [entry(i * len(TASKS) + j, task) for j, task in enumerate(TASKS) for i in range(per_task)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluate_final.json").write_text(json.dumps(entries))
    for i, e in enumerate(entries if pictures else []):
        split = ("train2014", "val2014")[i % 2]
        (folder / split).mkdir(exist_ok=True)
        Image.effect_noise((40, 30), 60).convert("RGB").save(folder / split / f"COCO_{split}_{e['image_id']}.jpg")
    return folder

"""Small files in each conflict benchmark's released layout, with the real field names; texts and pictures are made
here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.eval_suite.released_files import blob, parquet_file, picture, written

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


WORDS_FOLDERS = {"VQAv2": "lmms-lab/VQAv2", "DocVQA": "lmms-lab/DocVQA/DocVQA"}


def words_sample(i: int, subset: str = "VQAv2", **changes: Any) -> dict[str, Any]:
    thing, seen, said = THINGS[i % 8], COLORS[i % 4], COLORS[(i + 1) % 4]
    return {
        "question_id": (500 + i) * 1000 + 2 if subset == "VQAv2" else f"{600 + i}/['layout']",
        "question": f"What color is the {thing}?",
        "instruct": "contradict_stat",
        "original": [f"A {seen} {thing}."],
        "response": [f"The {thing} in the picture is {said}."],
        "original_ans": [seen],
        "changed_ans": [said],
        "supp_stat": [f"The {thing} in the picture is {seen}."],
    } | changes


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def words_or_vision(root: Path, n: int = 8, subset: str = "VQAv2") -> dict[str, Any]:
    samples = [words_sample(i, subset) for i in range(n)]
    folder = root / "raw_code/syth_response" / WORDS_FOLDERS[subset]
    lines(folder / "gpt-4o-2024-05-13/contradict_stat.jsonl", samples)
    about = {name: samples[0][name] for name in ("instruct", "original")}
    keys = ("question_id", "question")
    others = [{**{k: s[k] for k in keys}, **about, "response": [f" Text {i} .\n"]} for i, s in enumerate(samples)]
    lines(folder / "irrel_wikitext.jsonl", [*others, {**others[0], "response": ["again"]}])
    for i in range(n if subset == "VQAv2" else 0):
        picture(root / "coco/val2014" / f"COCO_val2014_{500 + i:012d}.jpg", i)
    return {"type": "words_or_vision", "root": str(root), "images": str(root / "coco"), "subset": subset}


def vlind_entry(i: int, **changes: Any) -> dict[str, Any]:
    thing, odd, usual = THINGS[i % 8], COLORS[i % 4], COLORS[(i + 1) % 4]
    return {
        "global_id": 100 + i,
        "context_id": i,
        "concept": ("color", "habitat")[i % 2],
        "context": f"All things like a {thing} are {odd}.",
        "factual_context": f"A {thing} is {usual}.",
        "true_statement": f"The {thing} is {odd}.",
        "false_statement": f"The {thing} is {usual}.",
        "existent_noun": thing,
        "non-existent_noun": THINGS[(i + 1) % 8],
        "best_img_id": "2",
        "aggregated_human_label_good_images": {"0": 1, "2": 3, "5": 2, "11": 0},
    } | changes


def vlind_bench(root: Path, n: int = 3, entries: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    entries = [vlind_entry(i) for i in range(n)] if entries is None else entries
    for i, e in enumerate(entries):
        place = f"{e['concept']}/{e['context_id']}_"
        picture(root / f"images/factual/{place}{e['factual_context']}" / "0.jpg", i)
        for name in ("2", *e["aggregated_human_label_good_images"]):
            picture(root / f"images/counterfactual/{place}{e['context']}" / f"{name}.jpg", i + 1)
    written(root / "data.json", entries)
    return {"type": "vlind_bench", "root": str(root)}


def phd_entry(i: int, **changes: Any) -> dict[str, Any]:
    thing, gold, hitem = THINGS[i % 8], COLORS[i % 4], COLORS[(i + 1) % 4]
    return {
        "image_id": str(700 + i),
        "task": ("attribute", "object", "counting", "sentiment", "positional")[i % 5],
        "yes_question": f"Is the {thing} {gold}?",
        "no_question": f"Is the {thing} {hitem}?",
        "hitem": hitem,
        "gt": gold,
        "subject": thing,
        "context": {"iac": f"Some like a {hitem} {thing}.", "icc": f"The {thing} in the image is {hitem}."},
    } | changes


def phd_odd(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "image_id": str(i),
        "ccs_description": "A banana peel with a sausage in it.",
        "yes_question": "Is there a sausage in the peel?",
        "no_question": "Is there a banana in the peel?",
        "task": "object",
    } | changes


def phd(root: Path, n: int = 8) -> dict[str, Any]:
    for i in range(n):
        picture(
            root / "images" / f"{('train', 'val')[i % 2]}2014/COCO_{('train', 'val')[i % 2]}2014_{700 + i:012d}.jpg", i
        )
    for i in range(2):
        picture(root / "images/CCS_images" / f"{i}.png", i)
    written(root / "data.json", [*(phd_entry(i) for i in range(n)), *(phd_odd(i) for i in range(2))])
    return {"type": "phd", "root": str(root)}


def mmmc_row(i: int, **changes: Any) -> dict[str, Any]:
    thing, kind = THINGS[i % 8], ("object", "attribute", "relation", None)[i % 4]
    return {
        "image": blob(i),
        "image_id": 2000 + i // 4,
        "question": f"What color is the {thing}?",
        "answer": f"There is no {thing} in the image." if kind else "It is red.",
        "conflict_type": kind,
        "key_component": thing if kind else None,
    } | changes


def mmmc(root: Path, n: int = 8) -> dict[str, Any]:
    parquet_file(root / "data/test-00000-of-00001.parquet", [mmmc_row(i) for i in range(n)], group=3)
    return {"type": "mmmc", "root": str(root)}

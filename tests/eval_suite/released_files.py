"""Small files in each benchmark's released format, with the real field names."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue", "white", "black")


def picture(path: Path, i: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[i % len(COLOURS)]).save(path)
    return path


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(value, list) and path.name.startswith("coco_pope")
    path.write_text("\n".join(map(json.dumps, value)) + "\n" if lines else json.dumps(value), encoding="utf-8")
    return path


def humans(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)]


def vqav2(root: Path) -> dict[str, Any]:
    questions = [
        {"image_id": 100 + i, "question": f"What colour is thing {i}?", "question_id": 1000 + i} for i in range(4)
    ]
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": "red",
            "answers": humans(*["red"] * 6, *["blue"] * 4),
            "image_id": q["image_id"],
            "answer_type": ("other", "yes/no")[i % 2],
            "question_id": q["question_id"],
        }
        for i, q in enumerate(questions)
    ]
    for i, q in enumerate(questions):
        picture(root / "val2014" / f"COCO_val2014_{q['image_id']:012d}.jpg", i)
        picture(root / "test2015" / f"COCO_test2015_{q['image_id']:012d}.jpg", i)
    head = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    written(root / "v2_OpenEnded_mscoco_val2014_questions.json", {**head, "questions": questions})
    written(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {**head, "questions": questions})
    written(root / "v2_mscoco_val2014_annotations.json", {**head, "annotations": annotations})
    return {"type": "vqav2", "root": str(root)}


def gqa(root: Path) -> dict[str, Any]:
    rows = {
        f"20{i}": {
            "semantic": [],
            "entailed": [],
            "equivalent": [f"20{i}"],
            "question": "Is it red?",
            "imageId": f"n{i}",
            "isBalanced": True,
            "groups": {"global": None, "local": None},
            "answer": ("yes", "no")[i % 2],
            "semanticStr": "",
            "annotations": {},
            "types": {"detailed": "verify", "semantic": "attr", "structural": ("verify", "query")[i % 2]},
            "fullAnswer": "Yes, it is.",
        }
        for i in range(4)
    }
    for row, i in zip(rows.values(), range(4), strict=True):
        picture(root / "images" / f"{row['imageId']}.jpg", i)
    written(root / "testdev_balanced_questions.json", rows)
    return {"type": "gqa", "root": str(root)}


def vizwiz(root: Path) -> dict[str, Any]:
    rows = [
        {
            "image": f"VizWiz_val_{i:08d}.jpg",
            "question": "What is this?",
            "answers": [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10,
            "answer_type": "unanswerable",
            "answerable": 0,
        }
        for i in range(3)
    ]
    for i, row in enumerate(rows):
        picture(root / "val" / row["image"], i)
        picture(root / "test" / row["image"], i)
    written(root / "val.json", rows)
    written(root / "test.json", [{"image": r["image"], "question": r["question"]} for r in rows])
    return {"type": "vizwiz", "root": str(root)}


def textvqa(root: Path) -> dict[str, Any]:
    data = [
        {
            "question": "what does the sign say?",
            "image_id": f"im{i}",
            "image_classes": ["Sign"],
            "flickr_original_url": "",
            "image_width": 40,
            "image_height": 30,
            "answers": ["stop"] * 10,
            "question_tokens": [],
            "question_id": 34600 + i,
            "set_name": "val",
        }
        for i in range(3)
    ]
    for i, row in enumerate(data):
        picture(root / "train_images" / f"{row['image_id']}.jpg", i)
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    written(root / "TextVQA_0.5.1_val.json", {**head, "data": data})
    ocr = [{"image_id": r["image_id"], "ocr_tokens": ["STOP", "here"], "ocr_info": []} for r in data]
    written(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {**head, "data": ocr})
    return {"type": "textvqa", "root": str(root)}


def scienceqa(root: Path) -> dict[str, Any]:
    problems = {
        str(i): {
            "question": "Which is it?",
            "choices": ["rock", "tree", "sea"],
            "answer": i % 3,
            "hint": ("", "Look closely.")[i % 2],
            "image": None if i == 3 else "image.png",
            "task": "closed choice",
            "grade": "grade2",
            "subject": ("natural science", "social science")[i % 2],
            "topic": "biology",
            "category": "c",
            "skill": "s",
            "lecture": "",
            "solution": "",
            "split": "test",
        }
        for i in range(4)
    }
    for i in range(3):
        picture(root / "images" / "test" / str(i) / "image.png", i)
    written(root / "problems.json", problems)
    written(root / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})
    return {"type": "scienceqa", "root": str(root)}


def pope(root: Path) -> dict[str, Any]:
    for split in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": i + 1,
                "image": f"COCO_val2014_{i:012d}.jpg",
                "text": "Is there a dog in the image?",
                "label": ("yes", "no")[i % 2],
            }
            for i in range(4)
        ]
        written(root / f"coco_pope_{split}.json", rows)
    for i in range(4):
        picture(root / "val2014" / f"COCO_val2014_{i:012d}.jpg", i)
    return {"type": "pope", "root": str(root)}


def parquet_file(path: Path, rows: list[dict[str, Any]], group: int | None = None) -> Path:
    """A Parquet file, in groups of so many rows."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    return path


def blob(i: int = 0) -> dict[str, Any]:
    """A picture as a Parquet file of the hub holds it."""
    out = io.BytesIO()
    Image.new("RGB", (40, 30), COLOURS[i % len(COLOURS)]).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{i}.png"}


def biased_rows(n: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "image": blob(i),
            "ID": f"cat_{i // 4}_px{384 * (1 + i // 2 % 2)}_Q{1 + i % 2}",
            "image_path": f"images/{i // 2}.png",
            "topic": ("Animals", "Logos")[i // 4 % 2],
            "sub_topic": "Mammals",
            "prompt": "How many legs does it have? Answer with a number in curly brackets, e.g., {9}.",
            "ground_truth": "5",
            "expected_bias": "4",
            "with_title": False,
            "type_of_question": f"Q{1 + i % 2}",
            "pixel": 384,
            "metadata": "{}",
        }
        for i in range(n)
    ]


def vlms_are_biased(root: Path) -> dict[str, Any]:
    rows = biased_rows(8)
    for part in range(2):
        parquet_file(root / "data" / f"main-0000{part}-of-00002.parquet", rows[4 * part : 4 * part + 4], group=3)
    return {"type": "vlms_are_biased", "root": str(root)}


def mmmu_rows() -> list[dict[str, Any]]:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(out, "PNG")
    blob = {"bytes": out.getvalue(), "path": "a.png"}
    base = {
        "explanation": "",
        "topic_difficulty": "Easy",
        "subfield": "Audit",
        "img_type": "['Tables']",
        **{f"image_{i}": None for i in range(1, 8)},
    }
    return [
        {
            **base,
            "id": "validation_Accounting_1",
            "question": "See <image 1>. Which?",
            "options": "['$6', '$7', '$8']",
            "answer": "B",
            "question_type": "multiple-choice",
            "image_1": blob,
        },
        {
            **base,
            "id": "validation_Accounting_2",
            "question": "<image 1> How many?",
            "options": "[]",
            "answer": "['12', 'twelve']",
            "question_type": "open",
            "image_1": blob,
        },
        {
            **base,
            "id": "validation_Accounting_3",
            "question": "Which one is it?",
            "options": "['<image 1>', '<image 2>']",
            "answer": "A",
            "question_type": "multiple-choice",
            "image_1": blob,
            "image_2": blob,
        },
    ]


def mmmu(root: Path) -> dict[str, Any]:
    parquet_file(root / "Accounting" / "validation-00000-of-00001.parquet", mmmu_rows())
    return {"type": "mmmu", "root": str(root)}


def mmvet(root: Path) -> dict[str, Any]:
    rows = {
        f"v1_{i}": {
            "imagename": f"v1_{i}.png",
            "question": "What is x?",
            "answer": "-1<AND>-5",
            "capability": ["ocr", "math"],
            "imagesource": "",
        }
        for i in range(2)
    }
    for i, row in enumerate(rows.values()):
        picture(root / "images" / row["imagename"], i)
    written(root / "mm-vet.json", rows)
    return {"type": "mmvet", "root": str(root)}


def hallusion_row(
    category: str, visual: int, figure: int, question: int, answer: int, group: int = 0
) -> dict[str, Any]:
    name = f"./hallusion_bench/{category}/chart/{group}_{figure}.png" if visual else None
    return {
        "category": category,
        "subcategory": "chart",
        "visual_input": str(visual),
        "set_id": str(group),
        "figure_id": str(figure),
        "sample_note": "t",
        "question_id": str(question),
        "question": "Is the bar higher?",
        "gt_answer_details": "The bar is higher.",
        "gt_answer": str(answer),
        "filename": name,
    }


def hallusionbench(root: Path) -> dict[str, Any]:
    rows = [
        hallusion_row("VD", 1, 0, 0, 1),
        hallusion_row("VD", 2, 1, 0, 0),
        hallusion_row("VS", 0, 0, 0, 1),
        hallusion_row("VS", 1, 1, 0, 1),
    ]
    for i, row in enumerate(r for r in rows if r["filename"]):
        picture(root / row["filename"], i)
    written(root / "HallusionBench.json", rows)
    return {"type": "hallusionbench", "root": str(root)}


def iconqa(root: Path) -> dict[str, Any]:
    for i in range(3):
        for form, row in (
            ("choose_txt", {"choices": ["yes", "no"], "answer": i % 2}),
            ("fill_in_blank", {"answer": str(i)}),
        ):
            folder = root / "test" / form / str(i)
            picture(folder / "image.png", i)
            about = {"question": "How many shapes are there? (_)", "ques_type": form, "grade": "grade1", "label": "S1"}
            written(folder / "data.json", {**about, **row})
    return {"type": "iconqa", "root": str(root)}


def mme(root: Path) -> dict[str, Any]:
    for i, (task, nested) in enumerate((("existence", False), ("landmark", True), ("code_reasoning", False))):
        for stem in ("0001", "0002"):
            picture(root / task / ("images" if nested else "") / f"{stem}.jpg", i)
            questions = root / task / ("questions_answers_YN" if nested else "") / f"{stem}.txt"
            questions.parent.mkdir(parents=True, exist_ok=True)
            questions.write_text(
                "Is this red? Please answer yes or no.\tYes\nIs this blue? Please answer yes or no.\tNo\n"
            )
    return {"type": "mme", "root": str(root)}


def flickr30k(root: Path) -> dict[str, Any]:
    images = [
        {
            "sentids": [0, 1],
            "imgid": i,
            "split": "train" if i == 2 else "test",
            "filename": f"{i}.jpg",
            "sentences": [
                {"tokens": [], "raw": raw, "imgid": i, "sentid": n}
                for n, raw in enumerate(("A red thing.", "Something red on a table."))
            ],
        }
        for i in range(3)
    ]
    for i in range(3):
        picture(root / "flickr30k-images" / f"{i}.jpg", i)
    written(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return {"type": "flickr30k", "root": str(root)}


def chair(root: Path) -> dict[str, Any]:
    words = ("person, man, woman, child, baby", "dog, puppy", "elephant", "dining table, table", "hot dog", "toilet")
    root.mkdir(parents=True)
    (root / "synonyms.txt").write_text("\n".join(words) + "\n")
    written(
        root / "instances_val2014.json",
        {
            "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 67, "name": "dining table"}],
            "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 8, "category_id": 67}],
        },
    )
    said = {7: "A man walks.", 8: "Nothing much."}
    captions = [{"image_id": number, "id": n, "caption": text} for n, (number, text) in enumerate(said.items())]
    written(root / "captions_val2014.json", {"annotations": captions})
    for number in said:
        picture(root / f"COCO_val2014_{number:012d}.jpg", number)
    return {"type": "chair", "root": str(root)}


MAKERS = {
    m.__name__: m
    for m in (
        *(vqav2, gqa, vizwiz, textvqa, scienceqa, pope, mmmu, mmvet, hallusionbench, iconqa, mme, flickr30k),
        vlms_are_biased,
        chair,
    )
}

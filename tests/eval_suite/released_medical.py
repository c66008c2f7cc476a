"""Small files of the medical benchmarks in their released formats, with the real field names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.eval_suite.released_files import blob, parquet_file, picture, written


def slake_rows() -> list[dict[str, Any]]:
    """Rows of Slake1.0: two pictures, closed and open, English and Chinese."""
    sorts = [
        ("Is the lung healthy?", "Yes", "CLOSED", "Abnormality"),
        ("What organ is shown?", "Left Lung", "OPEN", "Organ"),
    ]
    rows = [
        {
            "img_id": i,
            "img_name": f"xmlab{i}/source.jpg",
            "question": question,
            "answer": answer,
            "q_lang": "en",
            "location": ("Lung", "Brain")[i % 2],
            "modality": ("X-Ray", "MRI")[i % 2],
            "answer_type": sort,
            "base_type": "vqa",
            "content_type": content,
            "triple": ["vhead", "_", "_"],
            "qid": 10 * i + k,
        }
        for i in range(2)
        for k, (question, answer, sort, content) in enumerate(sorts)
    ]
    return [*rows, {**rows[0], "q_lang": "zh", "question": "肺健康吗?", "answer": "是的", "qid": 99}]


def slake(root: Path) -> dict[str, Any]:
    for i in range(2):
        picture(root / "imgs" / f"xmlab{i}" / "source.jpg", i)
    written(root / "test.json", slake_rows())
    return {"type": "slake", "root": str(root)}


def rad_rows() -> list[dict[str, Any]]:
    """Rows of "VQA_RAD Dataset Public.json": a number as answer, white space after a sort, train and test."""
    told = [
        ("Is there a fracture?", "No", "CLOSED"),
        ("How many lesions?", 2, "OPEN"),
        ("Where is it?", "left lobe", "OPEN "),
    ]
    return [
        {
            "qid": str(i + 1),
            "phrase_type": ("test_freeform", "freeform", "test_para")[i],
            "qid_linked_id": "03f451ca",
            "image_case_url": "https://medpix.nlm.nih.gov/case?id=1",
            "image_name": f"synpic{i // 2}.jpg",
            "image_organ": ("HEAD", "CHEST", "ABD")[i],
            "evaluation": "evaluated",
            "question": question,
            "question_rephrase": "NULL",
            "question_relation": "NULL",
            "question_frame": "NULL",
            "question_type": "PRES",
            "answer": answer,
            "answer_type": sort,
        }
        for i, (question, answer, sort) in enumerate(told)
    ]


def vqa_rad(root: Path) -> dict[str, Any]:
    for i in range(2):
        picture(root / "VQA_RAD Image Folder" / f"synpic{i}.jpg", i)
    written(root / "VQA_RAD Dataset Public.json", rad_rows())
    return {"type": "vqa_rad", "root": str(root)}


def path_rows() -> list[dict[str, Any]]:
    told = [("is this normal?", "no"), ("what is present?", "liver tissue"), ("does it show a tumor?", "yes")]
    return [{"image": blob(i), "question": question, "answer": answer} for i, (question, answer) in enumerate(told)]


def path_vqa(root: Path) -> dict[str, Any]:
    rows = path_rows()
    for part, some in enumerate((rows[:2], rows[2:])):
        parquet_file(root / "data" / f"test-0000{part}-of-00002-abc.parquet", some, group=1)
    return {"type": "path_vqa", "root": str(root)}


MEDICAL = {maker.__name__: maker for maker in (slake, vqa_rad, path_vqa)}

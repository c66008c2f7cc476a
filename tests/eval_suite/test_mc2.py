"""MC²: the released file and the script's variant, the exact prompts, splits that share no picture, and what is said of
missing pictures.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from eval_suite.benchmarks.mc2 import Mc2, Mc2Params, read
from eval_suite.conflict import TASKS
from factory.errors import UserError
from tests.mc2 import PER_TASK, cut, entry
from tests.released import RELEASED

FILE = RELEASED / "mc2/evaluate_final.json"


def bench(folder: Path, **params: object) -> Mc2:
    return Mc2(Mc2Params(images=str(folder), **params))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cut(tmp_path_factory.mktemp("coco"))


def text_of(prompt) -> str:
    return prompt.messages()[0]["content"][-1]["text"]


def test_the_prompts_are_the_scripts(folder):
    b = bench(folder)
    sample = b.samples("test")[0]
    assert b.forms == ("order1", "order2")
    head = f"Text context: {sample.context}\n{sample.question}\n"
    tail = "\nAnswer the question by selecting the correct answer A or B."
    assert text_of(b.prompt(sample, "order1")) == f"{head}A. red\nB. blue{tail}"
    assert text_of(b.prompt(sample, "order2")) == f"{head}A. blue\nB. red{tail}"
    assert (
        text_of(b.prompt(sample, "open"))
        == f"Text context: {sample.context}\n{sample.question} Please directly answer the question."
    )
    assert b.prompt(sample, "order1").messages()[0]["content"][0] == {"type": "image"}
    assert (
        b.example(sample, "open", "text").segments[-1].text == "blue"
        and b.example(sample, "order2", "vision").segments[-1].text == "B"
    )


def test_splits_are_stratified_disjoint_and_the_same_every_time(folder):
    splits = {s: bench(folder).samples(s) for s in ("train", "dev", "test")}
    assert {s: Counter(x.task for x in each) for s, each in splits.items()} == {
        "train": dict.fromkeys(TASKS, 4),
        "dev": dict.fromkeys(TASKS, 1),
        "test": dict.fromkeys(TASKS, 1),
    }
    assert len({x.id for each in splits.values() for x in each}) == PER_TASK * len(TASKS)
    assert [x.id for x in splits["test"]] == [x.id for x in bench(folder).samples("test")]
    assert [x.id for x in splits["test"]] != [x.id for x in bench(folder, seed=1).samples("test")]
    assert [TASKS.index(x.task) for x in splits["train"]] == sorted(TASKS.index(x.task) for x in splits["train"])


def test_samples_that_share_a_picture_are_all_for_training(tmp_path):
    cut(tmp_path, pictures=False)
    entries = json.loads((tmp_path / "evaluate_final.json").read_text())
    for e in entries[:4]:
        e["image_id"] = entries[-1]["image_id"]
    (tmp_path / "evaluate_final.json").write_text(json.dumps(entries))
    b = bench(tmp_path)
    held = {s.tags["image_id"] for split in ("dev", "test") for s in b.samples(split)}
    assert entries[-1]["image_id"] not in held
    assert not held & {s.tags["image_id"] for s in b.samples("train")}


def test_the_papers_protocol_scores_what_it_trains_on_and_says_so(folder):
    b = bench(folder, protocol="paper")
    assert [s.id for s in b.samples("train")] == [s.id for s in b.samples("test")]
    assert b.protocol == "mc2/both_orders/scored-on-training-samples" and "LEAKAGE" in b.warnings[0]
    assert bench(folder).protocol == "mc2/both_orders" and bench(folder).warnings == ()


def test_the_scripts_keys_are_read_too(tmp_path):
    path = tmp_path / "e.json"
    plain = entry(1, "color")
    path.write_text(
        json.dumps(
            [
                plain,
                {"image_id": "x", "task": "color", "question": "q", "gt": "a", "hitem": "b", "context": {"icc": "c"}},
            ]
        )
    )
    first, second = read(path)
    assert (first.answer_vision, first.context) == ("red", plain["context"])
    assert (second.answer_vision, second.answer_text, second.context) == ("a", "b", "c")


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"image_id"', "not a whole JSON file"),
        ("{}", "should be a list"),
        ("[3]", "entry 0 is no object"),
        (json.dumps([entry(1, "color"), entry(2, "color", answer_text=None)]), "entry 1 has no text under answer_text"),
        (json.dumps([entry(1, "colours")]), "entry 0 is of the unknown task 'colours'"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "e.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_file_is_found_beside_the_pictures_or_told_where_to_get(folder, tmp_path, monkeypatch):
    assert bench(folder).path == folder / "evaluate_final.json"
    assert bench(folder / "train2014").path.samefile(folder / "evaluate_final.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is not in .*data\.file=FILE"):
        bench(tmp_path / "coco").samples("test")
    with pytest.raises(UserError, match="nowhere.json': no such file"):
        bench(folder, file="nowhere.json").samples("test")


def test_missing_pictures_are_counted_before_any_is_read(folder, tmp_path, monkeypatch):
    b = bench(folder)
    samples = b.samples("test")
    monkeypatch.setattr("factory.data.pictures.load", None)
    assert b.absent(samples)[0] == []
    gone = bench(tmp_path / "nowhere", file=str(folder / "evaluate_final.json"))
    names, line = gone.absent(samples)
    assert names == [s.id for s in samples]
    assert (
        f"0 of 8 found in {tmp_path / 'nowhere'} (no such folder)" in line
        and "data.images=FOLDER" in line
        and "\n" not in line
    )


@pytest.mark.parametrize("place", ["COCO_val2014_{}.jpg", "train2017/{}.jpg", "{}.jpg"])
def test_pictures_in_one_folder_or_under_the_later_names(folder, tmp_path, place):
    b = bench(tmp_path, file=str(folder / "evaluate_final.json"))
    sample = b.samples("test")[0]
    target = tmp_path / place.format(sample.tags["image_id"])
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(bench(folder).find(sample.tags["image_id"]).read_bytes())
    assert sample.load_image().size == (40, 30) and sample.load_image().mode == "RGB"


@pytest.mark.parametrize("keep", [0, 300])
def test_a_cut_picture_is_named(folder, tmp_path, keep):
    b = bench(tmp_path, file=str(folder / "evaluate_final.json"))
    sample = b.samples("test")[0]
    whole = bench(folder).find(sample.tags["image_id"]).read_bytes()
    path = tmp_path / f"{sample.tags['image_id']}.jpg"
    path.write_bytes(whole[: min(keep, len(whole) - 50)])
    with pytest.raises(OSError, match=f"{path.name}.* damaged or cut short"):
        sample.load_image()


@pytest.mark.skipif(not FILE.is_file(), reason="the authors' file is not here")
def test_the_released_file():
    b = Mc2(Mc2Params(file=str(FILE)))
    splits = {split: b.samples(split) for split in ("train", "dev", "test")}
    assert (
        {split: len(each) for split, each in splits.items()} == b.expected == {"train": 1280, "dev": 320, "test": 400}
    )
    assert all(set(Counter(s.task for s in each).values()) == {len(each) // 8} for each in splits.values())
    seen = {s.tags["image_id"] for s in splits["train"]}
    assert not any(s.tags["image_id"] in seen for split in ("dev", "test") for s in splits[split])
    assert Mc2(Mc2Params(file=str(FILE), protocol="paper")).expected["test"] == len(b.entries) == 2000


@pytest.mark.parametrize("image_id", ["0" * 5000, "a/../b", "a\0b", "\ud83d", "x\ny"])
def test_a_picture_of_any_name_is_missed_in_a_short_line(folder, tmp_path, image_id):
    entries = json.loads((folder / "evaluate_final.json").read_text())
    entries[0]["image_id"] = image_id
    (tmp_path / "evaluate_final.json").write_text(json.dumps(entries))
    b = bench(tmp_path, file=str(tmp_path / "evaluate_final.json"))
    samples = [s for split in ("train", "dev", "test") for s in b.samples(split)]
    absent, line = b.absent(samples)
    assert len(absent) == len(samples) and line.isprintable() and len(line) < 900
    assert all(len(s.id) < 60 and s.id.isprintable() for s in samples)

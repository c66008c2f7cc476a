"""Multiple choice about videos: files in the released layouts, damaged ones, and which frames are shown."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from eval_suite.scorers.video_mcq import letter
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.nodes import read_node

HEAD = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
NEXTQA = (
    '4010,369,640,480,how do the men play,2,6,CH,roll the handle,tap,"strum, twice",hit,pat',
    "4882,2697,640,480,why did the boy stop,0,1,TN,to share,to run,to wrap,to play,to sit",
    "4010,369,640,480,how many men are there,4,7,DC,one,two,three,four,five",
)
MVBENCH = (
    {"video": "S1.mp4", "question": "What happened?", "candidates": ["He ran.", "He sat."], "answer": "He sat."},
    {
        "video": "S2.mp4",
        "question": "What then?",
        "candidates": ["A", "B", "C"],
        "answer": "C",
        "start": 1.0,
        "end": 3.0,
    },
)


def frames(folder, n, ending=".jpg"):
    """Pictures 0 to n-1, whose grey says which they are."""
    folder.mkdir(parents=True)
    for i in range(n):
        Image.new("RGB", (8, 8), (10 * i,) * 3).save(folder / f"frame_{i}{ending}", quality=95)


def nextqa(root, rows=NEXTQA, **more):
    (root / "val.csv").write_text("\n".join((HEAD, *rows)) + "\n", encoding="utf-8")
    if not (root / "frames").exists():
        frames(root / "frames" / "4010", 12)
        frames(root / "frames" / "0101" / "4882", 3)
        (root / "map_vid_vidorID.json").write_text(json.dumps({"4882": "0101/4882"}))
    node = {"type": "video_mcq", "file": str(root / "val.csv"), "frames": str(root / "frames"), "number": 4, **more}
    return read_node("benchmark", node).make()


def mvbench(root, rows=MVBENCH, **more):
    (root / "action_sequence.json").write_text(json.dumps(list(rows)))
    if not (root / "frames").exists():
        frames(root / "frames" / "S1", 5, ".png")
        frames(root / "frames" / "S2", 20, ".png")
    file, folder = str(root / "action_sequence.json"), str(root / "frames")
    return read_node("benchmark", {"type": "video_mcq", "file": file, "frames": folder, "number": 4, **more}).make()


def test_nextqas_csv_is_read_as_released(tmp_path):
    b = nextqa(tmp_path)
    items = b.questions()
    assert [(i.id, i.unit, i.tasks) for i in items] == [
        ("4010_6", "4010", ("causal", "CH")),
        ("4882_1", "4882", ("temporal", "TN")),
        ("4010_7", "4010", ("descriptive", "DC")),
    ]
    assert [b.wanted(item) for item in items] == ["C", "A", "E"]
    assert [p.name for p in items[0].images] == ["frame_1.jpg", "frame_4.jpg", "frame_7.jpg", "frame_10.jpg"]
    assert [p.name for p in items[1].images] == ["frame_0.jpg", "frame_1.jpg", "frame_2.jpg"]  # by the released map
    prompt = items[0].prompt()
    assert [abs(image.getpixel((4, 4))[0] - 10 * i) < 4 for image, i in zip(prompt.images, (1, 4, 7, 10), strict=True)]
    assert [s.role for s in prompt.segments] == [Role.IMAGE] * 4 + [Role.QUESTION, Role.OPTIONS]
    assert prompt.segments[-1].text.splitlines()[2] == "C. strum, twice"
    told = [b.record(item, text) | {"text": text, "prompt_digest": ""} for item, text in zip(items, "CBE", strict=True)]
    rows = {row["task"]: row["metrics"]["accuracy"] for row in b.rows(told, draws=5)}
    assert rows["all"] == pytest.approx(2 / 3) and (rows["causal"], rows["temporal"]) == (1, 0)


def test_json_with_candidates_is_read_as_mvbench_has_it(tmp_path):
    b = mvbench(tmp_path, fps=3)
    one, two = b.questions()
    assert (one.tasks, b.wanted(one), b.wanted(two)) == (("action_sequence",), "B", "C")
    assert [p.name for p in one.images] == ["frame_0.png", "frame_1.png", "frame_3.png", "frame_4.png"]
    assert [p.name for p in two.images] == ["frame_3.png", "frame_5.png", "frame_6.png", "frame_8.png"]  # of 1 to 3 s
    whole = mvbench(tmp_path).questions()[1]
    assert [p.name for p in whole.images] == ["frame_2.png", "frame_7.png", "frame_12.png", "frame_17.png"]


def test_options_that_bring_their_letter_have_it_once(tmp_path):
    row = {"video": "S1", "question": "Which?", "options": ["A. a cat", "B. a dog"], "answer": "B"}
    (item,) = mvbench(tmp_path, [row]).questions()
    assert item.gold == (["a cat", "a dog"], 1)
    assert item.prompt().segments[-1].text.splitlines()[:2] == ["A. a cat", "B. a dog"]


@pytest.mark.parametrize(
    "text, found",
    [("B", "B"), ("(b) a dog", "B"), ("B. a dog", "B"), ("The answer is A.", "A"), ("a big dog", "C"), ("E", None)]
    + [("It shows a dog.", "B"), ("a cat and a big dog", None), ("", None), ("Because of rain", None)],
)
def test_the_option_that_an_answer_names(text, found):
    assert letter(text, ["a cat", "a dog", "a big dog"]) == found


@pytest.mark.parametrize(
    "row, said",
    [
        ("4010,1,1,1,why,5,6,CH,a,b,c,d,e", "val.csv:2: 'answer' should be 0 or 1 or 2 or 3 or 4"),
        ("4010,1,1,1,,0,6,CH,a,b,c,d,e", "val.csv:2: 'question' should be a text"),
        ("4010,1,1,1,why,0,6,CH,a,b,,d,e", "val.csv:2: 'a2' should be a text"),
        ("4010,1,1,1,why,0,6,CH,a,b,c,d", "val.csv:2: it has more cells than there are columns, or fewer"),
        (f"{NEXTQA[0]}\n{NEXTQA[0]}", "val.csv:3: video qid 4010_6 stands in .*val.csv:2 too"),
        ('4010,1,1,1,"why,0,6,CH,a,b,c,d,e', r"val.csv:\d: damaged from here on"),
    ],
)
def test_a_damaged_row_is_told_with_its_place(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        nextqa(tmp_path, row.split("\n")).questions()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"candidates": ["one"]}, "'candidates' should be a list of 2 texts or more"),
        ({"answer": "He flew."}, "'answer' should be 0 or 1"),
        ({"video": 3.5}, "'video' should be a name or a number"),
    ],
)
def test_a_damaged_entry_is_told_with_its_place(tmp_path, change, said):
    with pytest.raises(UserError, match=f"action_sequence.json:1: {said}"):
        mvbench(tmp_path, [MVBENCH[0] | change]).questions()


def test_what_is_missing_is_told(tmp_path):
    b = nextqa(tmp_path, [*NEXTQA, "999,1,1,1,why,0,6,CH,a,b,c,d,e"])
    assert [p.is_file() for item in b.questions() for p in item.images[:1]] == [True, True, True, False]
    with pytest.raises(UserError, match=r"holds no pictures of any of the 1 questions' videos; .*frames/999"):
        nextqa(tmp_path, ["999,1,1,1,why,0,6,CH,a,b,c,d,e"]).questions()
    with pytest.raises(UserError, match=r"frames '.*': no such folder; looked for .*/none"):
        nextqa(tmp_path, frames=str(tmp_path / "none")).questions()
    with pytest.raises(UserError, match=r"file '.*': no such file; looked for .*/gone\.csv"):
        nextqa(tmp_path, file=str(tmp_path / "gone.csv")).questions()
    (tmp_path / "frames/4010/frame_4.jpg").write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"frame_4\.jpg"):
        nextqa(tmp_path).questions()[0].prompt()


def test_questions_about_videos_can_be_put_under_pressure(tmp_path):
    node = {"type": "video_mcq", "file": "", "frames": "", "number": 4}
    b = nextqa(tmp_path)
    node |= {"file": str(b.params.file), "frames": str(b.params.frames)}
    pressed = read_node("benchmark", {"type": "pressure", "kinds": ["mimicry"], "of": node}).make().questions()
    assert len(pressed) == 6
    for first, pushed in (
        ("C", "[ABDE]"),
        ("A", "C"),
    ):  # a right answer is pushed to a wrong one, a wrong one to the right
        prompt = pressed[1].follow(pressed[0].prompt(), first)
        (words,) = [s.text for s in prompt.segments if s.role == Role.INSTRUCTION]
        assert re.search(rf"\b{pushed}\b", words) and len(prompt.images) == 4

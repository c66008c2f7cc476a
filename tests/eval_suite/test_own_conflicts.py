"""Your own conflicts: both forms of file, splits that share no picture, what is told of damage, and a whole run."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import factory
from eval_suite.benchmarks.conflicts import ConflictsParams, Entry, OwnConflicts, divide, read
from eval_suite.benchmarks.scenes import PerTask, Scenes, ScenesParams
from factory.cli import main
from factory.errors import UserError
from factory.recipe import dump, load
from factory.run.samples import fault
from tests.tiny import saved_tiny

SPLITS = ("train", "dev", "test")
HEAD = ["image", "context", "question", "answer_vision", "answer_text", "task"]


def write_csv(path: Path, rows: list[list[str]], head: list[str] = HEAD, delimiter: str = ",", mark: str = "") -> Path:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([head, *rows])
    path.write_bytes((mark + out.getvalue()).encode())
    return path


def row(picture: int = 0, task: str = "color", **changes: str) -> list[str]:
    said = dict(zip(HEAD, [f"{picture}.png", "It is blue, they say.", "What color?", "red", "blue", task], strict=True))
    return list((said | changes).values())


def photos(folder: Path, n: int = 10) -> Path:
    """``n`` pictures, each of a colour of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (8, 6), (20 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def bench(file: Path, **params: object) -> OwnConflicts:
    return OwnConflicts(ConflictsParams(file=str(file), **params))


def by_split(b: OwnConflicts) -> dict[str, list]:
    return {split: list(b.samples(split)) for split in SPLITS}


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    photos(folder)
    return write_csv(folder / "c.csv", [row(i, "color" if i < 5 else "counting") for i in range(10)])


@pytest.mark.parametrize("form", ["csv", "semicolons", "jsonl"])
def test_a_row_is_a_sample_whatever_the_file(tmp_path, form):
    photos(tmp_path, 3)
    rows = [row(i, context=f"It is blue, they say;\nall {i} of them.") for i in range(3)]
    if form == "jsonl":
        path = tmp_path / "c.jsonl"
        told = [dict(zip(HEAD, r, strict=True)) for r in rows]
        for each in told:
            each["answer_image"] = each.pop("answer_vision")
        path.write_text("\ufeff" + "\n\n".join(map(json.dumps, told)), encoding="utf-8")
    else:
        head = [name.replace("vision", "image") for name in HEAD]
        path = write_csv(tmp_path / "c.csv", rows, head, ";" if form == "semicolons" else ",", "\ufeff")
    samples = sorted((s for each in by_split(bench(path)).values() for s in each), key=lambda s: s.place)
    first = samples[0]
    assert (first.context, first.question) == ("It is blue, they say;\nall 0 of them.", "What color?")
    assert (first.answer_vision, first.answer_text, first.task) == ("red", "blue", "color")
    assert first.load_image().getpixel((0, 0)) == (0, 0, 0) and samples[2].load_image().getpixel((0, 0)) == (40, 0, 0)
    lines = [1, 3, 5] if form == "jsonl" else [2, 4, 6]  # those that the rows begin in
    assert [s.place for s in samples] == [f"{path}:{line}" for line in lines]
    assert [s.id for s in samples] == [f"line-{line}" for line in lines]


def test_it_is_asked_and_read_as_other_conflicts_are(ten):
    both, open_ended = bench(ten), bench(ten, scoring="open_ended")
    sample = both.samples("test")[0]
    assert both.forms == ("order1", "order2") and bench(ten, scoring="loglik_forced").letters == ("A", "B")
    assert "A. blue\nB. red" in both.prompt(sample, "order2").segments[-1].text
    verdicts = [
        open_ended.judge(sample, "open", said) for said in ("Red.", "blue", "The picture contradicts the text.")
    ]
    assert verdicts == ["vision", "text", "flags"]
    assert open_ended.outcome(["flags"], "vision") == "flags" and open_ended.scorer == "conflict/2"
    assert open_ended.protocol.startswith("conflicts/open_ended/")
    assert open_ended.protocol != bench(ten, scoring="open_ended", seed=3).protocol  # other test samples


def test_shares_are_of_each_task_and_the_seed_draws_them(ten):
    splits = by_split(bench(ten))
    assert {name: Counter(s.task for s in each) for name, each in splits.items()} == {
        "train": {"color": 3, "counting": 3},
        "dev": {"color": 1, "counting": 1},
        "test": {"color": 1, "counting": 1},
    }
    ids = lambda each: [[s.id for s in each[split]] for split in SPLITS]
    assert ids(splits) == ids(by_split(bench(ten)))
    drawn = {tuple(s.id for s in bench(ten, seed=seed).samples("test")) for seed in range(8)}
    assert len(drawn) > 3


def test_a_picture_under_two_names_is_one(tmp_path):
    photos(tmp_path, 8)
    for i in range(4):
        (tmp_path / f"copy{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes())
    rows = [row(i) for i in range(8)] + [row(image=f"copy{i}.png") for i in range(4)]
    path = write_csv(tmp_path / "c.csv", rows)
    for seed in range(5):
        splits = by_split(bench(path, seed=seed))
        seen = {name: {s.load_image().tobytes() for s in each} for name, each in splits.items()}
        assert not seen["train"] & seen["dev"] and not seen["test"] & (seen["train"] | seen["dev"])
    given_splits = [[*r, "train" if i else "test"] for i, r in enumerate(rows)]
    write_csv(path, given_splits, [*HEAD, "split"])
    with pytest.raises(UserError, match=r"c\.csv:10: its picture 'copy0.png' is of split train, and of test in .*:2"):
        bench(path).samples("train")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=3, max_size=40),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_every_split_has_pictures_and_the_seed_alone_decides(tasks, test_share, dev_share, seed):
    place = divide(tasks, test_share, dev_share, seed)
    assert len(place) == len(tasks) and set(place) == set(SPLITS)
    assert place == divide(tasks, test_share, dev_share, seed)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=3, max_size=60),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
    st.integers(),
)
def test_of_pictures_with_a_row_each_every_task_has_its_share_within_one(tasks, test_share, dev_share, seed):
    place = divide([[task] for task in tasks], test_share, dev_share, seed)
    rows, of_test = len(tasks), place.count("test")
    assert of_test == min(max(1, round(test_share * rows)), rows - 2)
    assert place.count("dev") == min(max(1, round(dev_share * (rows - of_test))), rows - of_test - 1)
    for task in set(tasks):
        n = tasks.count(task)
        own = sum(t == task and p == "test" for t, p in zip(tasks, place, strict=True))
        assert abs(own - Fraction(of_test * n, rows)) < 1
        left = n - own
        own = sum(t == task and p == "dev" for t, p in zip(tasks, place, strict=True))
        assert abs(own - Fraction(place.count("dev") * left, rows - of_test)) < 1


def test_questions_of_one_picture_stay_together_near_their_shares():
    place = divide([["color", "counting"]] * 20, 0.2, 0.2, 0)
    assert Counter(place) == {"train": 13, "dev": 3, "test": 4}


def test_the_files_own_splits_are_taken(tmp_path):
    photos(tmp_path, 4)
    splits = ["train", "test", "dev", "train"]
    path = write_csv(tmp_path / "c.csv", [[*row(i), split] for i, split in enumerate(splits)], [*HEAD, "split"])
    assert {name: [s.id for s in each] for name, each in by_split(bench(path)).items()} == {
        "train": ["line-2", "line-5"],
        "dev": ["line-4"],
        "test": ["line-3"],
    }


@pytest.mark.parametrize(
    "head, rows, message",
    [
        ([*HEAD[:-1], "tsak"], [row()], r"c\.csv:1: unknown column 'tsak'\. Did you mean task\? There are: image, "),
        ([*HEAD, ""], [[*row(), ""]], r"c\.csv:1: unknown column ''"),
        (HEAD[1:], [row()[1:]], r"c\.csv:1: has no image; every row needs image, context"),
        ([*HEAD, "answer_image"], [[*row(), "x"]], r"c\.csv:1: the column answer_vision is there twice"),
        (HEAD, [row(), row()[:-1]], r"c\.csv:3: has 5 cells, and the file 6 columns"),
        (HEAD, [], r"c\.csv: holds no rows"),
        (HEAD, [row(0), row(1)], r"c\.csv: its rows show 2 different pictures"),
        (HEAD, [row(task="all")], r"c\.csv:2: no task can be called 'all'"),
        (HEAD, [row(task="x" * 90)], r"c\.csv:2: task should be a name"),
        ([*HEAD, "id"], [[*row(), "a"], [*row(), "a"]], r"c\.csv:3: the id 'a' stands in .*c\.csv:2 too"),
        ([*HEAD, "split"], [[*row(), "train"], [*row(), ""]], r"c\.csv:3: split should be train, dev or test"),
        ([*HEAD, "split"], [[*row(), "val"]], r"c\.csv:2: split should be .* and is 'val'"),
        ([*HEAD, "split"], [[*row(), "train"]], r"c\.csv: no row is of split dev or test"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line_with_its_place(tmp_path, head, rows, message):
    photos(tmp_path, 1)
    with pytest.raises(UserError, match=message) as error:
        bench(write_csv(tmp_path / "c.csv", rows, head)).samples("train")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("c.csv", b'image,"context\n', r"c\.csv:1: damaged from here on"),
        ("c.csv", b"image,context\nx.png,caf\xe9", r"c\.csv:2: is not UTF-8 text; .*CSV UTF-8"),
        ("c.csv", b"", r"holds no rows"),
        ("c.jsonl", b'\n{"image": ', r"c\.jsonl:2: not a line of JSON"),
        ("c.jsonl", b"[1]", r"c\.jsonl:1: should be one object of named fields a line"),
        ("c.jsonl", b'{"image": "a", "image": "b"}', r"c\.jsonl:1: .*'image' occurs twice"),
        (
            "c.jsonl",
            json.dumps(dict(zip(HEAD, [["a"], *row()[1:]], strict=True))).encode(),
            r":1: image should be a text",
        ),
        ("c.xlsx", b"PK", r"ends in \.csv or \.jsonl"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_befalls_a_file_it_is_read_or_told_in_one_line(tmp_path_factory, data):
    whole = {
        "csv": ",".join(HEAD) + "\n" + "\n".join(",".join(f'"{cell}"' for cell in row(i)) for i in range(3)),
        "jsonl": "\n".join(json.dumps(dict(zip(HEAD, row(i), strict=True))) for i in range(3)),
    }
    form = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[form].encode())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=6))
    path = tmp_path_factory.getbasetemp() / f"damaged.{form}"
    path.write_bytes(bytes(content))
    try:
        assert all(isinstance(e, Entry) for e in read(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"answer_text": "a Red"}, "its two answers are the same, 'red' and 'a Red'"),
        ({"answer_vision": "two", "answer_text": "2"}, "its two answers are the same, 'two' and '2'"),
        ({"answer_vision": "", "answer_text": ""}, "its answer_vision is empty"),
        ({"context": "  "}, "its context is empty"),
        ({"image": ""}, "it names no picture under image"),
        ({"image": "bad.png"}, "its image cannot be read: "),
    ],
)
def test_a_row_that_cannot_be_scored_is_counted_with_its_place(tmp_path, changes, why):
    photos(tmp_path, 4)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    path = write_csv(tmp_path / "c.csv", [row(0, **changes), row(1), row(2), row(3)])
    samples = [s for each in by_split(bench(path)).values() for s in each]
    faults = {s.place: told for s in samples if (told := fault(s))}
    assert set(faults) == {f"{path}:2"} and faults[f"{path}:2"].startswith(f"{path}:2: {why}")


def test_pictures_that_are_not_there_are_named_before_any_is_read(tmp_path):
    photos(tmp_path, 4)
    path = write_csv(tmp_path / "c.csv", [row(0), row(1), row(2), row(image="gone.png"), row(image="x\0.png")])
    b = bench(path)
    lost, line = b.absent([s for each in by_split(b).values() for s in each])
    assert sorted(lost) == ["line-5", "line-6"] and f"'gone.png' ({path}:5)" in line
    assert f"not in {tmp_path}" in line and "data.images=FOLDER" in line and "\n" not in line


def test_paths_are_taken_from_the_recipes_folder_then_from_where_one_stands(ten, tmp_path, monkeypatch):
    recipe = tmp_path / "mine" / "own.yaml"
    recipe.parent.mkdir()
    recipe.write_text(
        "name: own\nmodel: {zoo: tiny}\ndata: {type: conflicts, file: c.csv, images: p}\nsteering: [none]\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load(recipe).data.make().samples("test")
    assert str(error.value) == f"file 'c.csv': no such file; looked for {recipe.parent}/c.csv and {tmp_path}/c.csv"
    (tmp_path / "c.csv").write_bytes(ten.read_bytes())
    with pytest.raises(UserError, match=rf"images 'p': no such folder; looked for {recipe.parent}/p and {tmp_path}/p"):
        load(recipe).data.make().samples("test")
    photos(tmp_path / "p")
    assert load(recipe).data.make().path == Path("c.csv")
    photos(recipe.parent / "p")
    (recipe.parent / "c.csv").write_bytes(ten.read_bytes())
    b = load("mine/own.yaml").data.make()
    assert (b.path, b.folder) == (Path("mine/c.csv"), Path("mine/p")) and len(b.samples("train")) == 6
    (tmp_path / "resolved.yaml").write_text(dump(load("mine/own.yaml")))
    assert load(tmp_path / "resolved.yaml") == load("mine/own.yaml") == load(recipe)  # found again, however named


def test_ten_drawn_scenes_as_a_file_go_to_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    scenes = Scenes(ScenesParams(per_task=PerTask(train=1, dev=1, test=2))).samples("test")[:10]
    for i, s in enumerate(scenes):
        s.load_image().save(tmp_path / "photos" / f"{i}.png")
    texts = [[s.context, s.question, s.answer_vision, s.answer_text, s.task] for s in scenes]
    write_csv(tmp_path / "conflicts.csv", [[f"{i}.png", *each] for i, each in enumerate(texts)])
    recipe = (Path(__file__).parents[2] / "recipes" / "own_conflicts.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(recipe)
    small = [
        f"model={{path: {saved_tiny(tmp_path / 'model')}, layer: 1}}",
        "diagnostic=null",
        "steering=[none, static]",
    ]
    small += ["evaluate.strengths=[1]", "evaluate.max_new_tokens=2", "report.plots=false"]
    assert main(["run", "mine.yaml", *small, "--limit", "2"]) == 0
    run = factory.read("runs/own_conflicts-limit2")
    assert {row["benchmark"] for row in run.results["rows"]} == {"conflicts"} and run.report.is_file()
    assert {row["scorer"] for row in run.results["rows"]} == {"conflict/2"}
    assert (tmp_path / "runs/own_conflicts-limit2/report/pictures/conflicts.png").is_file()
    capsys.readouterr()
    assert main(["show", "mine.yaml"]) == 0
    sheet = Image.open(capsys.readouterr().out.strip())
    assert sheet.width > 900 and sheet.height > 3 * 240

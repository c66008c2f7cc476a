"""Released files that were damaged, joined twice or mislabelled: one line that says where, and never another score."""

from __future__ import annotations

import copy
import json
from functools import reduce
from operator import getitem

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_suite.benchmark import AnswerBenchmark, Item
from factory.cli import main
from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.recipe.schema import read_node
from tests.eval_suite.released_files import MAKERS, hallusion_row, picture, written
from tests.tiny import saved_tiny

FILES = {
    "vqav2": "v2_OpenEnded_mscoco_val2014_questions.json",
    "gqa": "testdev_balanced_questions.json",
    "vizwiz": "val.json",
    "textvqa": "TextVQA_0.5.1_val.json",
    "scienceqa": "problems.json",
    "pope": "coco_pope_popular.json",
    "mmvet": "mm-vet.json",
    "hallusionbench": "HallusionBench.json",
    "flickr30k": "dataset_flickr30k.json",
    "iconqa": "test/choose_txt/1/data.json",
    "mme": "existence/0001.txt",
}
IN = {"vqav2": "questions", "textvqa": "data", "flickr30k": "images"}  # lists under a name
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


def made(name, root, **more):
    """The benchmark of files that its maker has put at ``root``, or of those there now."""
    node = read_node("benchmark", {"type": name, "root": str(root), **more})
    return node.make()


def entries(name, path):
    """A file's content and its entries, which can be changed in place."""
    if name == "pope":
        held = [json.loads(line) for line in path.read_text().splitlines()]
        return held, held
    held = json.loads(path.read_text())
    if name == "iconqa":
        return held, [held]
    rows = held[IN[name]] if name in IN else held
    return held, list(rows.values()) if isinstance(rows, dict) else rows


def refused(name, root, **more):
    with pytest.raises(UserError) as told:
        made(name, root, **more).questions()
    assert "\n" not in str(told.value)
    return str(told.value)


WRONG = [  # benchmark, what is done to its second entry, what the line says beside the file and the entry
    ("vqav2", {"question": "  "}, "'question' should be a text, and is '  '"),
    ("vqav2", {"image_id": "100"}, "'image_id' should be a whole number, and is '100'"),
    ("vqav2", {"question_id": 77}, f"question 77 has no annotation in {ANNOTATIONS}"),
    ("gqa", {"answer": None}, "'answer' should be a text, and is None"),
    ("gqa", {"types": [1]}, "an entry is [1] where fields with names should be"),
    ("vizwiz", {"answers": []}, "'answers' should be a list of entries, and is []"),
    ("vizwiz", {"answers": [{"answer": 3}]}, "'answer' should be a text, and is 3"),
    ("textvqa", {"answers": []}, "'answers' should be a list of texts, and is []"),
    ("textvqa", {"image_id": "im9"}, "image im9 has no entry in TextVQA_Rosetta_OCR"),
    ("scienceqa", {"answer": 3}, "'answer' should be one of 0 to 2, and is 3"),
    ("scienceqa", {"answer": True}, "'answer' should be one of 0 to 2, and is True"),
    ("scienceqa", {"choices": ["rock"]}, "'choices' should be a list of 2 texts or more"),
    ("pope", {"label": "Yes"}, "'label' should be yes or no, and is 'Yes'"),
    ("pope", {"label": 1}, "'label' should be yes or no, and is 1"),
    ("pope", {"label": "yes."}, "'label' should be yes or no, and is 'yes.'"),
    ("pope", {"text": ""}, "'text' should be a text, and is ''"),
    ("mmvet", {"capability": "ocr"}, "'capability' should be a list of texts, and is 'ocr'"),
    ("hallusionbench", {"gt_answer": "yes"}, "'gt_answer' should be 0 or 1, and is 'yes'"),
    ("hallusionbench", {"gt_answer": None}, "'gt_answer' should be 0 or 1, and is None"),
    ("hallusionbench", {"visual_input": "3"}, "'visual_input' should be 0 or 1 or 2, and is '3'"),
    ("hallusionbench", {"category": "vd"}, "'category' should be VD or VS, and is 'vd'"),
    ("flickr30k", {"sentences": []}, "'sentences' should be a list of entries, and is []"),
    ("iconqa", {"answer": 2}, "'answer' should be one of 0 to 1, and is 2"),
    ("iconqa", {"choices": None}, "'choices' should be a list of 2 texts or more, and is None"),
]


@pytest.mark.parametrize(("name", "change", "told"), WRONG)
def test_a_wrong_value_is_told_with_file_and_entry(name, change, told, tmp_path):
    MAKERS[name](tmp_path)
    path = tmp_path / FILES[name]
    held, rows = entries(name, path)
    rows[0 if name == "iconqa" else 1].update(change)
    written(path, held)
    line = refused(name, tmp_path)
    assert told in line and f"{path}" in line
    if name != "iconqa":
        assert f"{path}:{list(held)[1] if name in ('gqa', 'scienceqa', 'mmvet') else 2}" in line


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("iconqa", "mme")])
def test_a_question_that_is_there_twice_is_refused(name, tmp_path):
    """By the entries' own key, so that one answer never counts twice, nor once or twice as the batches fall."""
    MAKERS[name](tmp_path)
    path = tmp_path / FILES[name]
    held, rows = entries(name, path)
    if isinstance(held, dict) and name not in IN:  # keyed by its name: JSON can hold a name twice
        first = next(iter(held))
        again = path.read_text().replace(json.dumps(list(held)[1]) + ":", json.dumps(first) + ":", 1)
        path.write_text(again)
        assert f"the key '{first}' occurs twice" in refused(name, tmp_path)
        return
    rows.append(dict(rows[0]))
    written(path, held)
    line = refused(name, tmp_path)
    assert f"{path}:{len(rows)}: " in line and f"stands in {path}:1 too" in line


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": [}', b"\xff\xfe", b"null", b"[" * 4000, b'"text"', b"7"])
def test_a_damaged_file_is_one_line(name, content, tmp_path):
    MAKERS[name](tmp_path)
    (tmp_path / FILES[name]).write_bytes(content)
    assert str(tmp_path / FILES[name]).removesuffix("/0001.txt") in refused(name, tmp_path)


VALUES = [
    None,
    True,
    -1,
    3.5,
    10**400,
    "",
    "x",
    "\x00",
    "a" * 254,
    "a" * 6000,
    "../../x",
    [],
    {},
    [1],
    {"a": 1},
    [None],
    float("nan"),
]
GONE = object()


def places(value, at=()):
    """Every place in a value that is made of dicts and lists."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def spoilt(value, at, new):
    if not at:
        return new
    value = copy.deepcopy(value)
    inner = reduce(getitem, at[:-1], value)
    if new is GONE:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return value


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Each benchmark's files, and the content of the one that is spoilt."""
    homes = {name: tmp_path_factory.mktemp(name) for name in FILES if name != "mme"}
    for name, home in homes.items():
        MAKERS[name](home)
    return {name: (home, entries(name, home / FILES[name])[0]) for name, home in homes.items()}


@given(st.data())
def test_any_value_in_the_place_of_another_is_read_or_refused_in_one_line(released, data):
    name = data.draw(st.sampled_from(sorted(released)))
    home, held = released[name]
    at = data.draw(st.sampled_from([at for at in places(held) if at or name != "pope"]))
    written(home / FILES[name], spoilt(held, at, data.draw(st.sampled_from([*VALUES, GONE] if at else VALUES))))
    try:
        bench = made(name, home)
        for item in bench.questions():
            if all(path.is_file() for path in item.images):
                item.prompt()
            bench.record(item, "Yes")
    except UserError as told:
        assert "\n" not in str(told) and len(str(told)) < 1000


def test_questions_need_their_annotations_once(tmp_path):
    MAKERS["vqav2"](tmp_path)
    held = json.loads((tmp_path / ANNOTATIONS).read_text())
    written(tmp_path / ANNOTATIONS, {**held, "annotations": [*held["annotations"], held["annotations"][0]]})
    assert f"{ANNOTATIONS}:5: question_id 1000 stands in" in refused("vqav2", tmp_path)
    written(tmp_path / ANNOTATIONS, {**held, "annotations": held["annotations"][1:]})
    assert f"{FILES['vqav2']}:1: question 1000 has no annotation" in refused("vqav2", tmp_path)


def test_a_person_may_have_said_nothing(tmp_path):
    MAKERS["vqav2"](tmp_path)
    held = json.loads((tmp_path / ANNOTATIONS).read_text())
    held["annotations"][0]["answers"][0]["answer"] = ""
    written(tmp_path / ANNOTATIONS, held)
    assert made("vqav2", tmp_path).questions()[0].gold[0] == ""


def test_an_empty_or_repeated_split_of_pope_is_refused(tmp_path):
    MAKERS["pope"](tmp_path)
    (tmp_path / "coco_pope_popular.json").write_text("\n")
    assert "coco_pope_popular.json: holds no question" in refused("pope", tmp_path)
    assert len(made("pope", tmp_path, splits=["random"]).questions()) == 4
    for splits in (["random", "random"], []):
        with pytest.raises(ValueError, match=r"once|least 1|item|one"):
            made("pope", tmp_path, splits=splits)


def test_mme_asks_more_than_for_yes_or_no(tmp_path):
    MAKERS["mme"](tmp_path)
    (tmp_path / FILES["mme"]).write_text("Is this red?\tYes\nPlease answer yes or no.\tNo\n")
    assert f"{tmp_path / FILES['mme']}:2: should hold a question, a tab and Yes or No" in refused("mme", tmp_path)


@pytest.mark.parametrize("label", ["yes.", "1", "Ja", ""])
def test_mme_labels_are_yes_or_no(label, tmp_path):
    MAKERS["mme"](tmp_path)
    (tmp_path / FILES["mme"]).write_text(f"Is this red?\tYes\nIs this blue?\t{label}\n")
    assert f"{tmp_path / FILES['mme']}:2: should hold a question, a tab and Yes or No" in refused("mme", tmp_path)


@pytest.mark.parametrize("lines", ["Is this red?\tYes\n", "Is this red?\tYes\n" * 2, "a\tYes\nb\tNo\nc\tNo\n"])
def test_mme_asks_two_questions_on_each_picture(lines, tmp_path):
    MAKERS["mme"](tmp_path)
    (tmp_path / FILES["mme"]).write_text(lines)
    assert f"{tmp_path / FILES['mme']}: should hold two questions" in refused("mme", tmp_path)


def test_mme_says_how_many_of_its_subtasks_there_are(tmp_path):
    MAKERS["mme"](tmp_path)
    bench = made("mme", tmp_path)
    assert bench.protocol == "mme/3-of-14-subtasks/llava-1.5" and len(bench.questions()) == 12
    for path in (tmp_path / "existence").glob("*.txt"):
        path.unlink()
    assert "existence: holds no file of questions" in refused("mme", tmp_path)


def test_mme_is_thinned_by_picture(tmp_path):
    """By question the first of each two would be asked, whose answer is yes: an all-yes model would get 200 of 200."""
    for i in range(30):
        picture(tmp_path / "existence" / f"{i:04d}.jpg")
        (tmp_path / "existence" / f"{i:04d}.txt").write_text("Is this red?\tYes\nIs this blue?\tNo\n")
    bench = made("mme", tmp_path)
    for limit in (1, 2, 7, 30, 59, 60, 100):
        asked = bench.questions(limit)
        assert len(asked) == max(2, min(limit, 60) // 2 * 2)
        said_yes = [{**bench.record(item, "Yes"), "text": "Yes", "prompt_digest": ""} for item in asked]
        assert bench.rows(said_yes, draws=0)[0]["metrics"]["points"] == 50  # half right, no picture whole


def test_pope_is_thinned_by_picture(tmp_path):
    """Yes and no stand by turns: of every second question, every thirtieth, all answers would be yes."""
    for split in ("random", "popular"):
        rows = [
            {"question_id": i, "image": f"{i // 6}.jpg", "text": f"Is there a {i}?", "label": ("yes", "no")[i % 2]}
            for i in range(600)
        ]
        (tmp_path / f"coco_pope_{split}.json").write_text("\n".join(map(json.dumps, rows)))
    bench = read_node("benchmark", {"type": "pope", "root": str(tmp_path), "splits": ["random", "popular"]}).make()
    for limit in (1, 6, 10, 12, 40, 60, 100, 120, 300, 599, 600, 1199):
        asked = bench.questions(limit)
        assert len(asked) == max(6, limit // 6 * 6) and sum(item.gold[0] == "yes" for item in asked) == len(asked) / 2
        of_random = sum(item.gold[1] == "random" for item in asked)
        assert limit < 12 or abs(of_random - len(asked) / 2) <= 3
    assert len({item.unit for item in bench.items()}) == 1, "answers are as independent as before"


def test_hallusionbench_is_thinned_by_set(tmp_path):
    rows = [
        hallusion_row("VD", 1 + (figure > 0), figure, question, 1, group)
        for group in range(6)
        for figure in range(1 + group % 3)
        for question in range(2)
    ]
    written(tmp_path / "HallusionBench.json", rows)
    bench = made("hallusionbench", tmp_path)
    whole = {item.unit: 0 for item in bench.items()}
    for item in bench.items():
        whole[item.unit] += 1
    for limit in range(1, len(rows) + 1):
        asked = bench.questions(limit)
        assert len(asked) <= max(limit, 2)
        assert all(sum(item.unit == unit for item in asked) in (0, n) for unit, n in whole.items())
    assert len(bench.questions(12)) > 6


def test_a_run_refuses_before_it_reads_the_model(tmp_path, capsys, monkeypatch):
    model = saved_tiny(tmp_path / "model")
    monkeypatch.setattr("factory.run.pipeline.load", None)
    MAKERS["pope"](tmp_path / "pope")
    path = tmp_path / "pope" / FILES["pope"]
    path.write_text(path.read_text() * 2)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: r\nmodel: {{path: {model}}}\nbenchmarks: [{{type: pope, root: {tmp_path / 'pope'}}}]\n")
    capsys.readouterr()
    assert main([str(recipe), f"run.root={tmp_path / 'runs'}"]) == 2
    told = capsys.readouterr().err
    assert f"{path}:5: question_id 1 stands in {path}:1 too" in told and told.count("\n") == 1


def test_a_question_that_the_model_has_no_positions_for_is_left_out_counted_and_named(tmp_path, capsys):
    model = saved_tiny(tmp_path / "model")
    MAKERS["pope"](tmp_path / "pope")
    path = tmp_path / "pope" / "coco_pope_random.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    written(path, [rows[0], rows[1] | {"text": "Is there a dog in the image? " * 200}, *rows[2:]])
    for i in range(4):
        picture(tmp_path / "pope/val2014" / f"COCO_val2014_{i:012d}.jpg", i, (48, 48))
    recipe = tmp_path / "r.yaml"
    asked = f"{{type: pope, root: {tmp_path / 'pope'}, splits: [random]}}"
    recipe.write_text(f"name: r\nmodel: {{path: {model}}}\nbenchmarks: [{asked}]\n")
    run = [str(recipe), f"run.root={tmp_path / 'runs'}", "evaluate.max_new_tokens=2"]
    assert main(run) == 2
    assert "1 of 4 samples cannot be used" in (told := capsys.readouterr().err) and "has 512" in told
    assert main([*run, "evaluate.max_skipped=0.3"]) == 0
    results = json.loads((tmp_path / "runs/r/results.json").read_text())
    assert {row["n"] for row in results["rows"]} == {3}
    (lost,) = results["run"]["skipped"]
    assert lost["sample"] == "random/2" and "positions" in lost["reason"]


class Joined(AnswerBenchmark):
    """A benchmark whose author thought of nothing."""

    name, scorer = "joined", "none/1"

    def items(self):
        return [Item(str(i % 3), lambda: Prompt(())) for i in range(self.n)]


def test_any_benchmark_refuses_what_it_holds_twice_or_not_at_all():
    bench = Joined(Joined.Params())
    bench.n = 4
    with pytest.raises(UserError, match="benchmark joined: question 0 occurs 2 times"):
        bench.questions()
    bench.n = 0
    with pytest.raises(UserError, match="benchmark joined: no question in split test"):
        bench.questions()


def test_free_text_needs_prompts():
    for prompts in ([], ["Tell a story.", " \n"]):
        with pytest.raises(ValueError, match=r"prompts"):
            read_node("benchmark", {"type": "fluency", "prompts": prompts})


def test_iconqa_is_scored_by_words_or_by_the_released_index(tmp_path):
    MAKERS["iconqa"](tmp_path)
    words, index = made("iconqa", tmp_path), made("iconqa", tmp_path, answers="index")
    assert [item.gold for item in words.items()] == ["yes", "no", "yes"]
    assert [item.gold for item in index.items()] == ["0", "1", "0"]  # str(data["answer"]), as MoReS compares
    assert (words.protocol, index.protocol) == ("iconqa/test/mores/txt", "iconqa/test/mores/txt-index")
    assert [i.prompt().digest for i in words.items()] == [i.prompt().digest for i in index.items()]
    with pytest.raises(ValueError, match="form: txt"):
        made("iconqa", tmp_path, form="blank", answers="index")

"""Every question benchmark from its released files to a score, on a tiny model."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
from PIL import Image

from eval_suite.benchmark import prompt_hash
from eval_suite.scorers.captions import requirements
from eval_suite.scorers.conflict import VERDICTS
from factory.cli import main
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe.schema import read_node
from factory.registry import lookup
from factory.run import rundir
from factory.run.questions.arms import Arm
from factory.statistics.intervals import wilson
from tests.eval_suite.released_conflicts import chartqa_conflict, clash
from tests.eval_suite.released_files import MAKERS, mmmu_rows
from tests.eval_suite.released_medical import MEDICAL
from tests.tiny import interrupts, saved_tiny, tiny_view

PARQUET = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
MARKS = {
    "mmmu": PARQUET,
    "vlms_are_biased": PARQUET,
    "path_vqa": PARQUET,
    "flickr30k": pytest.mark.slow,
}  # captions start Java three times
EVERY = {**MAKERS, **MEDICAL}
NAMES = [pytest.param(name, marks=MARKS[name]) if name in MARKS else name for name in EVERY]


def made(name, tmp_path, **more):
    node = read_node("benchmark", {**EVERY[name](tmp_path / name), **more})
    return node.make()


def ask(benchmark, answer=None):
    """Records of all items, answered by ``answer(item)`` or by a tiny model."""
    items = list(benchmark.items())
    prompts = [item.prompt() for item in items]
    texts = [answer(item) for item in items] if answer else Arm().answer(tiny_view(), prompts, 4)
    records = [
        {**benchmark.record(i, t), "text": t, "prompt_digest": p.digest}
        for i, t, p in zip(items, texts, prompts, strict=True)
    ]
    return benchmark.settle(records)


@pytest.mark.parametrize("name", NAMES)
def test_from_released_files_to_a_score(name, tmp_path):
    benchmark = made(name, tmp_path)
    if name == "flickr30k" and requirements():
        pytest.skip(requirements())
    records = ask(benchmark)
    rows = benchmark.rows(records, draws=20, method="none")
    total = rows[0]
    assert total["task"] == "all" and total["n"] == len(records) >= 2
    assert total["protocol"].startswith(f"{name}/") and total["prompt_hash"] == prompt_hash(records) and total["scorer"]
    if benchmark.unscorable():
        assert total["metrics"] == {} and total["not_scored"]
    else:
        assert total["main"] in total["metrics"]
        for metric, (low, high) in total["ci"].items():
            assert low <= total["metrics"][metric] + 1e-9 and total["metrics"][metric] - 1e-9 <= high
    json.dumps(rows)


RIGHT = {
    "vqav2": lambda i: i.gold[0],
    "gqa": lambda i: i.gold.capitalize() + ".",
    "vizwiz": lambda i: "Unanswerable",
    "textvqa": lambda i: "stop",
    "scienceqa": lambda i: "ABC"[i.gold[1]] + ". because",
    "pope": lambda i: i.gold[0].capitalize(),
    "mme": lambda i: i.gold,
    "mmmu": lambda i: f"({i.gold[1][0]})" if i.gold[0] else f"so it is {i.gold[1][0]}",
    "hallusionbench": lambda i: i.gold[0],
    "iconqa": lambda i: i.gold,
    "chair": lambda i: f"There is a {' and a '.join(i.gold)}.",
    "vlms_are_biased": lambda i: f"{{{i.gold[0]}}}",
    **dict.fromkeys(("slake", "vqa_rad", "path_vqa"), lambda i: i.gold[0]),
}


@pytest.mark.parametrize("name", [p for p in NAMES if (p if isinstance(p, str) else p.values[0]) in RIGHT])
def test_right_answers_score_full_marks_and_empty_ones_are_counted(name, tmp_path):
    benchmark = made(name, tmp_path)
    full = benchmark.rows(ask(benchmark, RIGHT[name]), draws=5)[0]
    assert (
        full["metrics"][full["main"]] == pytest.approx(600 if name == "mme" else 1) and full["parse_failure_rate"] == 0
    )
    none = benchmark.rows(ask(benchmark, lambda i: ""), draws=5)[0]
    assert (
        none["parse_failure_rate"] == 1
        and none["empty_share"] == 1
        and none["metrics"][none["main"]] < full["metrics"][full["main"]]
    )


def texts(prompt):
    return prompt.messages()[0]["content"][1:]


@pytest.mark.parametrize(
    ("name", "more", "asked"),
    [
        ("vqav2", {}, "What colour is thing 0?\nAnswer the question using a single word or phrase."),
        (
            "vizwiz",
            {},
            (
                "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\nAnswer the"
                " question using a single word or phrase."
            ),
        ),
        (
            "textvqa",
            {},
            (
                "what does the sign say?\nReference OCR token: STOP, here\nAnswer the question using a single word or"
                " phrase."
            ),
        ),
        ("textvqa", {"ocr": False}, "what does the sign say?\nAnswer the question using a single word or phrase."),
        (
            "scienceqa",
            {},
            "Which is it?\nA. rock\nB. tree\nC. sea\nAnswer with the option's letter from the given choices directly.",
        ),
        ("pope", {}, "Is there a dog in the image?\nAnswer the question using a single word or phrase."),
        ("mme", {}, "Is this red?\nAnswer the question using a single word or phrase."),
        (
            "iconqa",
            {},
            (
                "How many shapes are there? (_) Choices: yes, no. Choose an option from the choices to answer the"
                " question."
            ),
        ),
        (
            "iconqa",
            {"form": "blank"},
            "How many shapes are there? (_) Fill in the blanks in (_) or answer this question",
        ),
        ("mmvet", {}, "What is x?"),
        ("chair", {}, "Please describe this image in detail."),
        ("flickr30k", {}, "Provide a one-sentence caption for the provided image."),
    ],
)
def test_prompts_are_the_protocols(name, more, asked, tmp_path):
    assert texts(made(name, tmp_path, **more).items()[0].prompt()) == [{"type": "text", "text": asked}]


def test_mmmu_puts_pictures_where_the_text_names_them(tmp_path):
    benchmark = lookup("benchmark", "mmmu")(lookup("benchmark", "mmmu").Params(root="."))
    first, opened, pictured = (
        benchmark.item(tmp_path / "Accounting" / "x.parquet", row).prompt() for row in mmmu_rows()
    )
    assert [s.text if s.image is None else "IMAGE" for s in first.segments] == [
        "See ",
        "IMAGE",
        ". Which?",
        "(A) $6\n(B) $7\n(C) $8\n\nAnswer with the option's letter from the given choices directly.",
    ]
    assert [s.role for s in pictured.segments] == [
        Role.QUESTION,
        Role.OPTIONS,
        Role.IMAGE,
        Role.OPTIONS,
        Role.IMAGE,
        Role.OPTIONS,
    ]
    assert opened.segments[-1].text == "\nAnswer the question using a single word or phrase."


def test_hidden_answers_give_a_submission_file_and_no_score(tmp_path):
    for name, split, keys in (
        ("vqav2", "test-dev2015", {"question_id", "answer"}),
        ("vizwiz", "test", {"image", "answer"}),
    ):
        benchmark = made(name, tmp_path, split=split)
        records = ask(benchmark, lambda i: "Two, dogs")
        assert benchmark.rows(records, draws=5)[0]["metrics"] == {}
        _, content = benchmark.submission(records)
        assert set(content[0]) == keys and content[0]["answer"] == "2 dogs"


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_told_in_one_line(name, tmp_path):
    node = read_node("benchmark", {"type": name, "root": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="nowhere") as told:
        node.make().items()
    assert "\n" not in str(told.value) and "root=FOLDER" in str(told.value)


def test_a_malformed_file_is_told_by_name(tmp_path):
    MAKERS["pope"](tmp_path)
    (tmp_path / "coco_pope_popular.json").write_text('{"question_id": 1}\n')
    with pytest.raises(UserError, match="coco_pope_popular.json:1: an entry has no 'image'"):
        lookup("benchmark", "pope")(lookup("benchmark", "pope").Params(root=str(tmp_path))).items()


RECIPE = """\
name: asked
model: {{path: {model}}}
benchmarks: [{pope}, {gqa}]
evaluate: {{controls: [], batch_size: {size}}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A recipe with two benchmarks on a saved tiny model, and where its runs are."""
    home = tmp_path_factory.mktemp("home")
    fill = {"model": saved_tiny(home / "model"), "root": home / "runs", "size": 5}
    recipe = home / "asked.yaml"
    recipe.write_text(
        RECIPE.format(**fill, **{name: json.dumps(MAKERS[name](home / name)) for name in ("pope", "gqa")})
    )
    assert main([str(recipe)]) == 0
    return recipe, home / "runs" / "asked"


def rows_of(run):
    return json.loads((run / "results.json").read_text())["rows"]


def test_a_run_keeps_rows_predictions_submissions_and_costs(asked):
    _, run = asked
    rows = rows_of(run)
    assert {(r["label"], r["task"]) for r in rows} >= {("pope", "all"), ("pope", "adversarial"), ("gqa", "verify")}
    lines = [json.loads(line) for line in (run / "predictions" / "pope" / "none.jsonl").read_text().splitlines()]
    assert (
        len(lines) == 12
        and lines[0]["prompt"].count("<image>") == 1
        and "Is there a dog" in lines[0]["prompt"]
        and "text" in lines[0]
    )
    assert (
        json.loads((run / "submissions/gqa/none/testdev_balanced_predictions.json").read_text())[0]["questionId"]
        == "200"
    )
    assert json.loads((run / "costs.json").read_text())["pope/none"]["generated"] > 0
    about, shown = ((run / "report" / "samples" / f"{name}.js").read_text() for name in ("index", "0-000"))
    assert "Is there a dog in the image?" in about and '["Right answer","yes"]' in shown and "[[0,0]]]" in about


def test_every_number_of_a_run_is_recomputed_from_its_answers(asked, tmp_path, capsys):
    run = shutil.copytree(asked[1], tmp_path / "run")
    assert main(["verify", str(run)]) == 0
    n = len(rows_of(run))
    assert f"{n} of {n} rows recomputed, 0 numbers differ" in capsys.readouterr().out
    file = run / "predictions" / "pope" / "none.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    right = [{**row, "text": row["label"]} for row in kept]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in right))
    assert main(["verify", str(run)]) == 1
    assert "the first: pope" in capsys.readouterr().out
    assert main(["verify", str(tmp_path)]) == 2 and "is it a finished run?" in capsys.readouterr().err


def test_lower_precision_says_with_which_batch_size(asked, tmp_path):
    recipe, run = asked
    assert {json.dumps(r["generation"]) for r in rows_of(run)} == {
        '{"max_new_tokens": 128, "do_sample": false, "dtype": "float32"}'
    }
    assert main([str(recipe), f"run.root={tmp_path}", "model.dtype=bfloat16", "--limit", "2"]) == 0
    assert rows_of(tmp_path / "asked-limit2")[0]["generation"] == {
        "max_new_tokens": 128,
        "do_sample": False,
        "dtype": "bfloat16",
        "batch_size": 5,
    }


def test_a_dry_run_prints_three_prompts_and_reads_no_weights(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("factory.model.load.load", None)
    monkeypatch.chdir(tmp_path)
    assert main(["show", str(asked[0])]) == 0
    shown = capsys.readouterr().out
    for name in ("pope", "gqa"):
        with Image.open(tmp_path / "runs" / "show" / f"{name}.png") as sheet:
            assert len(sheet.convert("RGB").getcolors(1 << 24)) > 20, "pictures and words are drawn"
    assert (
        shown.count("\n-- ") == 6
        and "== pope: 12 questions, protocol pope/random+popular+adversarial/llava-1.5, scorer pope/1, 128 new tokens"
        in shown
    )
    assert (
        "-- random/1\nUSER: <image>\nIs there a dog in the image?\nAnswer the question using a single word or phrase."
        " ASSISTANT:" in shown
    )


def test_a_plan_counts_the_answers(asked, capsys):
    assert main(["plan", str(asked[0])]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "question benchmarks, 1 arms or more" in shown and "12" in shown


def test_batch_size_does_not_change_answers(asked, tmp_path):
    for name, size in (("one", 1), ("five", 5)):
        assert main([str(asked[0]), f"run.root={tmp_path / name}", f"evaluate.batch_size={size}", "--limit", "4"]) == 0
    assert rows_of(tmp_path / "one" / "asked-limit4") == rows_of(tmp_path / "five" / "asked-limit4")
    answers = [
        (tmp_path / name / "asked-limit4/predictions/pope/none.jsonl").read_text().splitlines()
        for name in ("one", "five")
    ]
    assert [json.loads(line)["text"] for line in answers[0]] == [json.loads(line)["text"] for line in answers[1]]


def test_answers_come_from_the_cache_of_another_run(asked, tmp_path, monkeypatch):
    recipe, run = asked
    shutil.copytree(run.parent / ".responses", tmp_path / ".responses")

    def worked(*args, **kwargs):
        raise AssertionError("an answer was generated again")

    monkeypatch.setattr("factory.run.questions.arms.answer_prompts", worked)
    assert main([str(recipe), f"run.root={tmp_path}", "name=other"]) == 0
    assert rows_of(tmp_path / "other") == rows_of(run)


@pytest.mark.parametrize("stop", [3])
def test_a_killed_run_ends_with_the_same_results(asked, tmp_path, stop):
    recipe, run = asked
    with rundir.watched_stores(interrupts(stop)):
        assert main([str(recipe), f"run.root={tmp_path}"]) == 130
    assert main([str(recipe), f"run.root={tmp_path}"]) == 0
    assert (tmp_path / "asked" / "results.json").read_bytes() == (run / "results.json").read_bytes()


def test_missing_pictures_stop_a_run_before_the_model_is_read(asked, tmp_path, capsys, monkeypatch):
    recipe, _ = asked
    root = tmp_path / "pope"
    MAKERS["pope"](root)
    (root / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    monkeypatch.setattr("factory.run.pipeline.load", None)
    few = [str(recipe), f"run.root={tmp_path}", f"benchmarks=[{{type: pope, root: {root}}}]"]
    assert main(few) == 2
    told = capsys.readouterr().err
    assert "3 of 12 samples cannot be used" in told and "000000000001.jpg" in told
    monkeypatch.undo()
    assert main([*few, "evaluate.max_skipped=0.3"]) == 0
    results = json.loads((tmp_path / "asked" / "results.json").read_text())
    assert results["rows"][0]["n"] == 9 and len(results["run"]["skipped"]) == 3


def test_conflicts_are_asked_as_questions_with_margins_beside_the_answers(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(lookup("benchmark", "chartqa_conflict"), "answer_tokens", 4)
    charts = {**chartqa_conflict(tmp_path / "charts", 3), "levels": [0, 5]}
    alone = [str(asked[0]), f"run.root={tmp_path}", "data=null", "steering=[]", "evaluate.batch_size=2"]
    assert main([*alone, f"benchmarks={json.dumps([charts])}"]) == 0
    total, *levels = rows_of(tmp_path / "asked")
    assert (total["n"], total["main"], total["scorer"]) == (2, "vision", "chartqa-conflict/2")
    assert [row["task"] for row in levels] == ["clean", "heavy"]
    assert sum(total["metrics"][verdict] for verdict in VERDICTS) == pytest.approx(1)
    kept = [json.loads(line) for line in (tmp_path / "asked/predictions/chartqa_conflict/none.jsonl").open()]
    margins = [row["cll_text"] - row["cll_image"] for row in kept]
    assert total["metrics"]["cll_margin"] == pytest.approx(sum(margins) / 2) and all(margins)
    assert "?\n\nYou are given two conflicting evidence sources." in kept[0]["prompt"]


def test_conflicts_as_questions_count_each_sample_once(tmp_path):
    scenes = read_node("benchmark", {"type": "scenes", "per_task": {"train": 1, "dev": 1, "test": 1}}).make()
    questions = scenes.as_questions()
    of_order = {"order1": "A", "order2": "B"}
    row = questions.rows(ask(questions, lambda item: of_order[item.gold[1]]), draws=5)[0]
    assert row["n"] == 16 and row["metrics"]["vision"] == row["metrics"]["vision_ratio"] == 1
    assert row["metrics"]["first_option"] == 0.5
    row = questions.rows(ask(questions, lambda item: "A"), draws=5)[0]
    assert (
        row["metrics"]["vision"] == 0
        and row["metrics"]["other"] == row["metrics"]["first_option"] == 1
        and row["ci"]["other"][0] == pytest.approx(wilson(8, 8)[0])
    )
    control = {**clash(tmp_path, 4), "scoring": "open_ended", "wo_contr": True, "asked": "all"}
    questions = read_node("benchmark", control).make().as_questions()
    said = iter(("red", "white or blue", "they conflict", ""))
    row = questions.rows(ask(questions, lambda item: next(said)), draws=5)[0]
    assert row["main"] == "vision" and row["n"] == 4
    assert (row["metrics"]["flags"], row["metrics"]["error"]) == (0.25, 0)

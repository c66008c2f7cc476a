"""Conflicts between two texts: their file, prompts and verdicts, and a run on a model that reads text alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

import factory
from eval_suite.benchmarks.conflicts import ConflictsParams, OwnConflicts
from eval_suite.results import result_rows
from factory.cli import main
from factory.data.instructions import OF_ANY, instruction
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sources import PICTURE_AND_TEXT, two_texts
from factory.errors import UserError
from factory.instruments.pathways import role_sets
from factory.recipe import dump, loads
from factory.recipe.nodes import read_node
from factory.run.pipeline import run
from factory.run.samples import fault
from tests.tiny import saved_tiny
from tests.tiny_families import family_view

MEMO = two_texts("memo", "email")
COLORS = ("red", "blue", "green", "yellow")
RECIPE = """\
name: two
model: {{path: {model}, device: cpu}}
data: {{type: conflicts, file: {file}, sources: [memo, email], scoring: open_ended}}
{rest}
run: {{root: {runs}}}
"""


def rows(n: int = 12) -> list[dict[str, str]]:
    told = []
    for i in range(n):
        one, two = COLORS[i % 4], COLORS[(i + 1 + i // 4) % 4]
        texts = {"context_memo": f"Box {i} is {one}.", "context_email": f"They say box {i} is {two}."}
        answers = {"answer_memo": one, "answer_email": two}
        told.append({**texts, "question": f"What color is box {i}?", **answers})
    return told


def written(path: Path, told: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(told[0]))
            table.writeheader()
            table.writerows(told)
    else:
        path.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    return path


def bench(file: Path, **params: object) -> OwnConflicts:
    return OwnConflicts(ConflictsParams.model_validate({"file": str(file), "sources": ("memo", "email"), **params}))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("texts") / "c.jsonl", rows())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder, view = tmp_path_factory.mktemp("gpt2"), family_view("gpt2")
    view.model.save_pretrained(folder)
    view.processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name, letters", [("c.jsonl", False), ("c.csv", False), ("c.csv", True)])
def test_a_row_of_two_texts_is_a_sample_however_its_columns_are_called(tmp_path, name, letters):
    told = rows(4)
    if letters:  # context_a and answer_b in place of context_memo and answer_email
        told = [{k.replace("memo", "a").replace("email", "b"): text for k, text in row.items()} for row in told]
    b = bench(written(tmp_path / name, told))
    samples = sorted((s for split in ("train", "dev", "test") for s in b.samples(split)), key=lambda s: s.question)
    assert samples[0].contexts == {"memo": "Box 0 is red.", "email": "They say box 0 is blue."}
    assert samples[0].answers == {"memo": "red", "email": "blue"}
    assert not [why for s in samples if (why := fault(s))] and b.absent(samples) == ([], "")
    with pytest.raises(OSError, match="no picture"):
        samples[0].load_image()


def test_questions_about_one_pair_of_texts_are_of_one_split(tmp_path):
    told = [{**row, "question": f"{row['question']} {again}"} for row in rows(6) for again in ("", "Say it again.")]
    b = bench(written(tmp_path / "c.csv", told))
    pairs = [{s.context_a for s in b.samples(split)} for split in ("train", "dev", "test")]
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 6
    named = [{**row, "split": "train" if i else "test"} for i, row in enumerate(told)]
    with pytest.raises(UserError, match=r"c\.csv:3: its pair of texts 'Box 0 is red.' is of split train, and of test"):
        bench(written(tmp_path / "c.csv", named)).samples("train")


def test_a_prompt_heads_each_text_by_its_name_and_gives_it_a_role(file):
    b = bench(file)
    sample = next(s for split in ("train", "dev", "test") for s in b.samples(split) if s.id == "line-1")
    prompt = b.prompt(sample, "order2")
    assert [(s.role, s.text) for s in prompt.segments] == [
        (Role.CONTEXT_A, "Memo: Box 0 is red."),
        (Role.CONTEXT, "Email: They say box 0 is blue."),
        (Role.QUESTION, "What color is box 0?"),
        (Role.OPTIONS, "A. blue\nB. red\nAnswer the question by selecting the correct answer A or B."),
    ]
    assert b.alone(sample, "order2", "email").segments[0].role == Role.CONTEXT
    assert [s.role for s in prompt.only("memo").segments] == [Role.CONTEXT_A, Role.QUESTION, Role.OPTIONS]
    assert b.answer(sample, "order2", "memo") == "B" and b.answer(sample, "open", "email") == "blue"
    with pytest.raises(UserError, match=r"'vision' is no source of this conflict\. There are: memo, email"):
        b.alone(sample, "open", "vision")


def test_exchanged_texts_keep_their_names_roles_and_answers(file):
    named, exchanged = bench(file, scoring="open_ended"), bench(file, scoring="open_ended", order="exchanged")
    sample = named.samples("test")[0]
    first, second, *rest = named.prompt(sample, "open").segments
    assert list(exchanged.prompt(sample, "open").segments) == [second, first, *rest]
    assert exchanged.alone(sample, "open", "memo") == named.alone(sample, "open", "memo")
    assert exchanged.answer(sample, "open", "memo") == named.answer(sample, "open", "memo") == "red"
    assert exchanged.protocol == named.protocol.replace("open_ended", "open_ended/exchanged") != named.protocol
    told = [read_node("benchmark", {"type": "scene_texts", "order": order}).make() for order in ("named", "exchanged")]
    one, other = (b.prompt(b.samples("test")[0], "order1").segments for b in told)
    assert (one[0], one[1]) == (other[1], other[0]) and one[2:] == other[2:]
    with pytest.raises(ValueError, match="order: exchanged exchanges two texts"):
        ConflictsParams.model_validate({"file": str(file), "order": "exchanged"})


def test_verdicts_and_ratios_bear_the_sources_names(file):
    b = bench(file, scoring="open_ended")
    sample = b.samples("test")[0]
    answers = (sample.answer_vision, sample.answer_text, "They contradict each other.", "I cannot tell.")
    verdicts = [b.judge(sample, "open", text) for text in answers]
    assert verdicts == ["memo", "email", "flags", "unknown"]
    assert [b.outcome([v], "email") for v in verdicts] == ["compete", "follow", "flags", "other"]
    about = {"task": "t", "split": "test", "direction": "email", "method": "none", "strength": None, "variant": ""}
    told = [
        {**about, "sample": str(i), "outcome": b.outcome([v], "email"), "verdicts": [v], "chosen": True}
        | {"prompt_hash": ""}
        for i, v in enumerate(("memo", "email", "memo", "flags", "memo"))
    ]
    row = result_rows(told, ("open",), MEMO.names)[0]
    assert row["metrics"]["memo_ratio"] == 3 / 4 and row["beside"] == ["flags", "error", "memo_ratio"]


WORDS = {
    "amps_eq9": "based on the weather report",
    "amps_rq1": "Follow the weather report rather than the memo",
    "mc2": "In case there is an inconsistency between the memo and the weather report, you must rely on the weather"
    " report rather than the memo. ",
    "mc2_prioritize": "In case there is an inconsistency between the memo and the weather report, prioritize the"
    " information from the weather report. ",
    "mc2_original": "In case there is an inconsistency between the memo and the weather report, you should follow the"
    " weather report rather than the memo. ",
    "anchor": "You should follow the weather report rather than the memo.",
    "anchor_prioritize": "Prioritize the information in the weather report over the memo",
    "anchor_focus": "Focus on the weather report; ignore the memo.",
}


@pytest.mark.parametrize("style", OF_ANY)
def test_an_instruction_names_the_source_in_the_words_of_each_style(style):
    assert instruction(style, "weather_report", two_texts("memo", "weather_report")).text == WORDS[style]
    assert "image" in instruction(style, "vision").text or "visual" in instruction(style, "vision").text
    with pytest.raises(UserError, match="is no source"):
        instruction(style, "memo", PICTURE_AND_TEXT)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_each_text_has_its_own_tokens_and_pathways_lead_from_the_one_that_is_asked_for(name):
    view = family_view(name)
    texts = (Segment(Role.CONTEXT_A, "Memo: red."), Segment(Role.CONTEXT, "Email: blue."))
    prompts = [Prompt((*texts, Segment(Role.QUESTION, "Which?")), MEMO)] * 2
    batch = view.encode(prompts)
    sets = role_sets(batch.roles, batch.attention_mask, ["memo", "email"], MEMO)
    own = [[int(r) for r in row] for row in batch.roles]
    assert all(int(Role.CONTEXT_A) in row and int(Role.CONTEXT) in row for row in own)
    for i, (wanted, other) in enumerate(((Role.CONTEXT_A, Role.CONTEXT), (Role.CONTEXT, Role.CONTEXT_A))):
        assert sets["compliant"][i].tolist() == [r == wanted for r in own[i]]
        assert sets["competing"][i].tolist() == [r == other for r in own[i]]
        assert sets["cues"][i].tolist() == [r in (wanted, other) for r in own[i]]


def test_static_is_the_mean_difference_of_the_two_named_instructions(file):
    view, b, layer = family_view("gpt2"), bench(file, scoring="open_ended"), 1
    prompts = [b.prompt(s, "open") for s in b.samples("train")]
    found = factory.fit(view, "static", prompts, direction="email", layer=layer)
    words = {"memo": "based on the memo", "email": "based on the email"}
    states = {}
    for name, text in words.items():
        asked = [view.encode([p.append(Segment(Role.INSTRUCTION, text))]) for p in prompts]
        out = [view.model(**one, output_hidden_states=True).hidden_states[layer + 1][0, -1] for one in asked]
        states[name] = torch.stack(out).float()
    torch.testing.assert_close(found.state["v"], (states["email"] - states["memo"]).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_texts_go_to_a_report_with_their_names(file, saved, tmp_path, capsys):
    rest = (
        "collect: {layer: 1}\ndiagnostic: {type: mcr, draws: 1}\n"
        "steering: [none, instruction, unimodal, few_shot, static, dose, {type: amps, beta_policy: fixed}]\n"
        "evaluate: {strengths: [1], max_new_tokens: 2, known: unimodal}"
    )
    recipe = tmp_path / "two.yaml"
    recipe.write_text(RECIPE.format(model=saved, file=file, rest=rest, runs=tmp_path / "runs"))
    assert main(["run", str(recipe)]) == 0
    done = factory.read(tmp_path / "runs" / "two")
    total = [row for row in done.rows if row["task"] == "all" and row["split"] == "test"]
    methods = ("none", "instruction", "unimodal", "few_shot", "static", "dose", "amps")
    assert {(r["method"], r["direction"]) for r in total} == {(m, d) for m in methods for d in ("memo", "email")}
    sample = done.samples[0]
    assert set(sample) >= {"context_memo", "context_email", "question", "answer_memo", "answer_email"}
    asked = {d: p["asked"][0] for p in done.predictions if p["method"] == "unimodal" for d in [p["direction"]]}
    assert "Memo:" in asked["memo"] and "Email:" not in asked["memo"] and "Memo:" not in asked["email"]
    shifts = done.results["diagnostics"]["mcr"]["findings"]
    assert len(shifts) == 3 and "R_A is higher under the memo instruction than under the email" in shifts[0]["text"]
    page = done.report.read_text()
    assert "Towards the memo" in page and "Towards the email" in page and "Towards the image" not in page
    assert (done.report.parent / "samples.html").is_file()
    assert not list(done.report.parent.glob("samples/pictures-*"))
    for name in ("static-memo", "dose-email"):
        assert (done.folder / "artefacts" / name / "steering_config.json").is_file()
    capsys.readouterr()
    assert main(["show", str(recipe)]) == 0 and Path(capsys.readouterr().out.strip()).is_file()


REFUSED = {
    "directions": ("evaluate: {directions: [emial]}", r"'emial' is no source of this conflict\. Did you mean email\?"),
    "of a diagnostic": ("diagnostics: [{type: heads, directions: [vision]}]", "diagnostics.0.directions.0: 'vision'"),
    "vcd": ("steering: [vcd]", "'vcd' needs pictures"),
    "lmar": ("diagnostic: lmar", "'lmar' needs pictures"),
    "knockout": ("diagnostics: [{type: knockout, pathways: ['image->generated']}]", "'knockout' needs pictures"),
    "answers": (
        "diagnostics: [{type: answer_knockout, pathways: ['instruction->image']}]",
        "'answer_knockout' needs pictures",
    ),
    "inside": ("steering: [{type: dsas, of: {type: dose, of: static}}]", None),
}


@pytest.mark.parametrize("sees", [False, True])
@pytest.mark.parametrize("what", REFUSED)
def test_what_asks_for_no_source_or_for_pictures_is_refused_by_name(file, saved, tmp_path, what, sees):
    model = saved_tiny(tmp_path / "model") if sees else saved
    rest, message = REFUSED[what]
    rest = rest if "steering" in rest else f"{rest}\nsteering: [none]"
    text = RECIPE.format(model=model, file=file, rest=rest, runs=tmp_path / "runs")
    if message is None:
        assert loads(text).steering[0].params.of.type == "dose"
        return
    with pytest.raises(UserError, match=message) as error:
        run(loads(text))
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_directions_are_the_sources_unless_named(file, saved):
    read = lambda rest: loads(RECIPE.format(model=saved, file=file, rest=f"{rest}\nsteering: [none]", runs="runs"))
    both = read("diagnostics: [heads]")
    assert both.evaluate.directions == both.diagnostics[0].params.directions == ("memo", "email")
    assert loads(dump(both)) == both
    assert read("evaluate: {directions: [email]}").evaluate.directions == ("email",)
    pictures = loads("name: p\nmodel: {zoo: tiny}\ndata: scenes\ndiagnostics: [heads]\nsteering: [none]\n")
    assert pictures.evaluate.directions == pictures.diagnostics[0].params.directions == ("vision", "text")


@pytest.mark.parametrize(
    "params, message",
    [
        ({"sources": ("memo", "memo")}, "two texts need two names"),
        ({"sources": ("vision", "memo")}, "no text can be called 'vision'"),
        ({"sources": ("flags", "memo")}, "no text can be called 'flags'"),
        ({"sources": ("Memo", "email")}, "pattern"),
        ({"images": "photos"}, "sources names two texts, which show no pictures"),
    ],
)
def test_names_that_results_need_otherwise_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        ConflictsParams.model_validate({"file": "c.csv", "sources": ("memo", "email"), **params})


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"context_email": "Box 0 is red."}, "its two texts are the same"),
        ({"context_memo": " "}, "its context_memo is empty"),
        ({"answer_email": "Red."}, "its two answers are the same, 'red' and 'Red.'"),
    ],
)
def test_a_row_that_is_no_conflict_is_counted_with_its_place(tmp_path, changes, why):
    told = rows(4)
    told[0] |= changes
    path = written(tmp_path / "c.jsonl", told)
    b = bench(path)
    found = {s.place: told for split in ("train", "dev", "test") for s in b.samples(split) if (told := fault(s))}
    assert found == {f"{path}:1": f"{path}:1: {why}"}


def test_columns_of_two_texts_without_names_say_how_to_name_them(file):
    with pytest.raises(UserError, match=r"unknown column 'context_memo'.*name them: data\.sources=\[NAME,NAME\]"):
        OwnConflicts(ConflictsParams(file=str(file))).samples("train")
    with pytest.raises(UserError, match=r":1: unknown column 'context_memo'.*There are: context_note, context_email"):
        bench(file, sources=("note", "email")).samples("train")


def test_scenes_in_words_are_the_scenes_conflicts_with_the_picture_told():
    node = {"type": "scene_texts", "per_task": {"train": 1, "dev": 1, "test": 16}}
    told = read_node("benchmark", node).make().samples("test")
    drawn = read_node("benchmark", {**node, "type": "scenes"}).make().samples("test")
    assert [(s.id, s.question, s.context, s.answer_text) for s in told] == [
        (s.id, s.question, s.context, s.answer_text) for s in drawn
    ]
    assert len(told) == 128 and not [why for s in told if (why := fault(s))]
    direct = [s for s in told if s.tags["text_tier"] == 0 and s.task in ("color", "counting")]
    assert len(direct) >= 6
    for s in direct:  # what is said outright is said in the answer's own word
        assert s.answer_vision in s.contexts["memo"] and s.answer_vision not in s.contexts["email"]
        assert s.answer_text in s.contexts["email"] and s.answer_text not in s.contexts["memo"]

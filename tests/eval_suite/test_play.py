"""The playground without its page: what it asks, shows, refuses and exports, and that visitors do not meet."""

from __future__ import annotations

import runpy
import socket
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from eval_suite.commands.play import check_free
from eval_suite.play import draw
from eval_suite.play.export import archive, code
from eval_suite.play.methods import Offer, of_artefacts
from eval_suite.play.opening import find, open_session
from eval_suite.play.session import Asked, Session, read_picture
from factory.bench import answer_prompts
from factory.cli import main
from factory.errors import UserError
from factory.model.load import load
from factory.model.view import ModelView
from factory.recipe.nodes import read_node
from factory.recipe.schema import ModelSpec
from factory.steer import Steering, artefact, steer
from tests.eval_suite.play_session import SPEC, STRENGTHS, asked, last, vector
from tests.tiny import saved_tiny


def plainly(view: ModelView, session: Session, question: Asked, steering: Steering | None) -> str:
    """The steered answer by the engine alone, on the whole prompt."""
    with steer(view, [replace(steering, strength=question.strength)] if steering else []):
        return answer_prompts(view, [session.posed(question).prompt], 6)[0]


def test_answers_are_the_engines_and_grow_token_by_token(view, session):
    answers = set()
    for sample in list(session.samples)[::5]:
        for strength in STRENGTHS:
            question = replace(session.asked(sample, "push"), strength=strength)
            told = list(session.answers(question))
            assert told[-1].done and not any(each.done for each in told[:-1])
            assert told[-1].steered == plainly(view, session, question, vector(view))
            assert told[-1].unsteered == plainly(view, session, question, None)
            assert strength or told[-1].steered == told[-1].unsteered
            texts = [each.steered for each in told]
            assert all(told[-1].steered.startswith(text) for text in texts) and len(texts) > 1
            answers.add(told[-1].steered)
    assert len(answers) > 4, "strengths and samples must make a difference"


def test_visitors_at_once_get_what_they_get_alone(session):
    questions = [asked(session, strength=s, direction=d) for s in STRENGTHS for d in ("vision", "text")]
    alone = [last(session, each) for each in questions]
    with ThreadPoolExecutor(len(questions)) as visitors:
        together = list(visitors.map(lambda q: [last(session, q) for _ in range(4)], questions))
    assert together == [[each] * 4 for each in alone]
    assert len({each.steered for each in alone}) > 2


def test_who_leaves_leaves_nothing_steered(view, session):
    before = last(session, asked(session, strength=0.0))
    stream = session.answers(asked(session, strength=30.0, method="push"))
    next(stream)
    stream.close()
    del stream
    waiting = [session.answers(asked(session, strength=8.0)) for _ in range(3)]
    for each in waiting:
        each.close()  # before it began
    assert last(session, asked(session, strength=0.0)) == before
    assert not view.steps.blocks and not view.steps.users
    assert all(not layer._forward_hooks for layer in view.layers)


def test_a_fault_reaches_who_asked_and_nobody_else(session):
    bad = asked(session, method="broken")
    session.methods.offers["broken"] = Offer("broken", {"vision": lambda: 1 / 0}, {"vision": 1.0})
    try:
        with pytest.raises(ZeroDivisionError):
            list(session.answers(bad))
    finally:
        del session.methods.offers["broken"]
    assert last(session, asked(session)).done


def test_the_curve_shows_where_the_answer_turns(session):
    found = session.curve(asked(session))
    assert (found.strengths[0], found.strengths[-1], len(found.strengths)) == (0.0, 30.0, 13)
    assert all(0 <= v + t <= 1.0001 for v, t in zip(found.vision, found.text, strict=True))
    assert max(found.vision) - min(found.vision) > 0.05
    beyond = session.curve(asked(session, strength=45.0))
    assert (beyond.strengths[-1], len(beyond.strengths)) == (45.0, 13) and beyond.vision[0] == found.vision[0]
    assert "at 45" in draw.curve(beyond, 45.0)
    shown = draw.curve(found, 7.0)
    assert shown.count("<polyline") == 2 and "at 7" in shown
    assert session.curve(asked(session, vision="")).note and not session.curve(asked(session, method="vcd")).strengths
    plain = session.curve(asked(session, method="instruction"))
    assert len(set(plain.vision)) == 1, "an instruction has no strength"


def test_the_diagnostic_and_the_attention_follow_what_is_hidden(view, session):
    shown, hidden = session.ratios(asked(session)), session.ratios(asked(session, hide_context=True))
    assert shown["R_V"] + shown["R_T"] == pytest.approx(1) and shown["R_V"] != hidden["R_V"]
    assert session.ratios(asked(session, hide_picture=True))["R_V"] == 0
    assert session.looks(asked(session, hide_picture=True)) is None
    plain, steered = session.looks(asked(session, strength=30.0))
    assert plain.maps.shape == (view.depth, 6, 6) and torch.equal(plain.maps[:5], steered.maps[:5])
    assert not torch.equal(plain.maps[5], steered.maps[5]), "what is steered in block 4 looks otherwise in block 5"
    shown = draw.attention((plain, steered), 5)
    assert shown.count("data:image/png") == 2 and "Layer 5, steered" in shown
    assert draw.attention(None, 0) == draw.note("the prompt shows no picture")


@pytest.mark.parametrize("change, why", [
    ({"question": "  "}, "the question is empty"),
    ({"strength": float("nan")}, "not a finite number"),
    ({"strength": -3.0}, "strength -3 lies below 0: steer toward the other side"),
    ({"method": "pusch"}, "no method 'pusch' here. Did you mean push"),
    ({"method": "image", "direction": "text"}, "toward vision alone"),
    ({"method": "image", "picture": None}, "steers the tokens of the image, and this prompt has none"),
    ({"method": "vcd", "hide_picture": True}, "works on the picture, and this prompt has none"),
    ({"method": "vcd", "direction": "text", "context": ""}, "works on the context, and this prompt has none"),
])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(session, change, why):
    with pytest.raises(UserError, match=why) as refused:
        list(session.answers(asked(session, **change)))
    assert "\n" not in str(refused.value)


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="the picture cannot be read: cat.png: is no picture"):
        read_picture(tmp_path / "cat.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(tmp_path / "gone.png")
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255), "as the engine reads it"
    assert read_picture(None) is None


def test_ones_own_question_needs_no_answers(session):
    own = Asked("push", "What color is the square?", "the square is red", Image.new("RGB", (60, 40), "blue"))
    found = last(session, own)
    assert found.steered and found.verdicts == ("", "")
    assert last(session, replace(own, context="", picture=None, strength=0.0)).done
    optioned = Session(session.view, read_node("benchmark", {"type": "scenes", "scoring": "order1"}).make(),
                       session.methods, model=SPEC)  # fmt: skip
    with pytest.raises(UserError, match="give both answers"):
        list(optioned.answers(own))
    assert last(optioned, replace(own, vision="blue", text="red")).done
    optioned.close()


@pytest.mark.parametrize("change", [
    {"strength": 8.0}, {"method": "instruction", "direction": "text"}, {"method": "vcd", "hide_context": True},
], ids=lambda change: change.get("method", "push"))  # fmt: skip
def test_the_exported_code_runs_as_printed(session, change, tmp_path, capsys, monkeypatch):
    question = asked(session, **change)
    shown = last(session, question).steered
    with zipfile.ZipFile(archive(session, question, tmp_path)) as file:
        file.extractall(tmp_path / "kept")
    assert (tmp_path / "kept" / "play.py").read_text() == code(session, question)
    assert (tmp_path / "kept" / "artefact").is_dir() == (question.method == "push")
    monkeypatch.chdir(tmp_path / "kept")
    runpy.run_path("play.py")
    assert capsys.readouterr().out.strip() == shown


def test_a_run_an_artefact_and_a_model_open_by_their_folders(view, session, tmp_path, monkeypatch):
    run = tmp_path / "run"
    steering = vector(view)
    for direction in ("vision", "text"):
        artefact.save(run / "artefacts" / f"push-{direction}", steering, view, {"direction": direction})
    head = "name: r\nmodel: {zoo: tiny}\n"
    recipe = head + "data: {type: scenes, scoring: open_ended}\nsteering: [none, {type: static, as: push}, vcd]\n"
    (run / "resolved.yaml").write_text(recipe)
    with pytest.raises(UserError, match="not finished"):
        find(str(run))
    (run / "results.json").write_text("{}")
    opened = open_session(str(run))
    assert list(opened.methods.offers) == ["push", "vcd"]
    assert opened.methods.offers["push"].directions == ("vision", "text")
    assert last(opened, asked(opened, strength=8.0)) == last(session, asked(session, strength=8.0))
    opened.close()
    alone = open_session(str(run / "artefacts" / "push-text"))
    assert {o.label: o.directions for o in alone.methods.offers.values()} == {"push": ("text",)}
    alone.close()
    other = load(ModelSpec(path=str(saved_tiny(tmp_path / "other"))))
    with pytest.raises(UserError, match="made for another base model"):
        of_artefacts(other, [run / "artefacts" / "push-text"])
    (run / "resolved.yaml").write_text(head + "benchmarks: [fluency]\n")
    with pytest.raises(UserError, match="compares no steering methods"):
        find(str(run))


def test_what_is_nothing_is_one_line(capsys, monkeypatch):
    for what, why in (
        ("tinny", "no run, no artefact, no recipe and no model. Did you mean tiny"),
        ("gone.yaml", "not found"),
    ):
        with pytest.raises(UserError, match=why):
            find(what)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["play"]) == 2
    told = capsys.readouterr().err
    assert "needs gradio, the extra 'play'" in told and "Traceback" not in told


def test_a_place_that_is_taken_is_told_before_a_model_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match="cannot be served at"):
            check_free("127.0.0.1", other.getsockname()[1])
    check_free("127.0.0.1", 0)
    with pytest.raises(UserError, match="cannot be served at"):
        check_free("127.0.0.1", 1 << 20)

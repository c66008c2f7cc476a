"""The playground's page through its HTTP client: the same answers as the session's, two visitors apart, refusals."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio, the extra 'play', is not installed")

from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from eval_suite.play.page import serve
from eval_suite.play.session import Asked, Session
from factory.run.methods.cost import decoder_work
from tests.eval_suite.play_session import last


@pytest.fixture(scope="module")
def address(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    blocks, local = serve(session, "127.0.0.1", 0, tmp_path_factory.mktemp("exports"))
    yield local
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    return Client(address, verbose=False)


def first(session: Session) -> str:
    return next(iter(session.samples))


@pytest.fixture(scope="module")
def given(client: Client, session: Session) -> dict[str, Any]:
    """The fields of the page after a sample was chosen on it."""
    picture, context, question, vision, text = client.predict(first(session), api_name="/sample")
    fields = {"picture": handle_file(picture["path"] if isinstance(picture, dict) else picture), "context": context}
    return {**fields, "question": question, "vision": vision, "text": text}


def fields(session: Session, given: dict[str, Any], **more: Any) -> list[Any]:
    told = {"method": "push", "direction": "vision", "strength": 1.0, "hidden": [], **given, **more}
    names = ("picture", "context", "question", "vision", "text", "method", "direction", "strength", "hidden")
    return [told.get("sample", first(session)), *(told[name] for name in names)]


def test_the_page_says_what_the_session_says(client, session, given):
    for strength in (0.0, 8.0):
        unsteered, steered, _, verdict = client.predict(*fields(session, given, strength=strength), api_name="/answer")
        question = replace(session.asked(first(session), "push"), strength=strength)
        found = last(session, question)
        assert (unsteered, steered) == (found.unsteered, found.steered), "the picture came and went unchanged"
        assert ("follows the picture" in verdict) == (found.verdicts[1] == "vision")
    curve, ratios = client.predict(*fields(session, given, strength=8.0), api_name="/behind")
    attention = client.predict(*fields(session, given, strength=8.0), 5, api_name="/layer")
    assert "Probability over strength; at 8" in curve and "<sub>V</sub>" in ratios and "Layer 5, steered" in attention


def test_two_visitors_at_once_get_their_own_answers(address, session, given):
    strengths, got = (0.0, 2.0, 8.0, 30.0), {}
    alone = {s: last(session, replace(session.asked(first(session), "push"), strength=s)).steered for s in strengths}
    assert len(set(alone.values())) > 1

    def visit(mine: tuple[float, ...]) -> None:
        visitor = Client(address, verbose=False)
        jobs = [(s, visitor.submit(*fields(session, given, strength=s), api_name="/answer")) for s in mine * 3]
        got[mine] = [(s, job.result()[1]) for s, job in jobs]

    visitors = [Thread(target=visit, args=(mine,)) for mine in (strengths[:2], strengths[2:])]
    for each in visitors:
        each.start()
    for each in visitors:
        each.join()
    assert sorted(got) == [strengths[:2], strengths[2:]]
    assert all(text == alone[s] for told in got.values() for s, text in told)


def test_a_moved_slider_runs_the_steered_answer_alone_above_its_block(client, session, view, given):
    client.predict(*fields(session, given), api_name="/answer")
    prompt = session.posed(session.asked(first(session), "push")).prompt
    tokens = view.encode([prompt]).input_ids.shape[1]
    for strength in (1.1, 1.2):
        with decoder_work(view) as work:
            client.predict(*fields(session, given, strength=strength), api_name="/answer")
        answered = view.depth * (session.max_new_tokens - 1)
        assert (
            0
            < sum(done.tokens for done in work)
            <= (view.depth - session.layer) * tokens + answered
            < view.depth * tokens
        )


def test_a_visitor_who_leaves_leaves_nothing_steered(address, session, view, given):
    leaving = Client(address, verbose=False)
    job = leaving.submit(*fields(session, given, strength=30.0), api_name="/answer")
    job.cancel()
    plain = last(session, replace(session.asked(first(session), "push"), strength=0.0))
    assert plain.steered == plain.unsteered and not view.steps.blocks and not view.steps.users
    assert all(not layer._forward_hooks for layer in view.layers)


@pytest.mark.parametrize("change, why", [
    ({"question": ""}, "the question is empty"),
    ({"method": "image", "picture": None}, "and this prompt has none"),
    ({"method": "vcd", "hidden": ["picture"]}, "works on the picture"),
])  # fmt: skip
def test_a_refusal_reaches_the_page_in_one_line(client, session, given, change, why, capfd):
    with pytest.raises(AppError, match=why) as refused:
        client.predict(*fields(session, given, **change), api_name="/answer")
    assert "\n" not in str(refused.value)
    assert "Traceback" not in capfd.readouterr().err


def test_ones_own_picture_is_read_by_the_engine_or_refused(client, session, given, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"no picture")
    with pytest.raises(AppError, match=r"the picture cannot be read: .*is no picture"):
        client.predict(*fields(session, given, picture=handle_file(tmp_path / "cat.png")), api_name="/answer")
    Image.new("RGB", (90, 40), "blue").save(tmp_path / "blue.png")
    own = {"picture": handle_file(tmp_path / "blue.png"), "context": "the square is red", "vision": "", "text": ""}
    told = client.predict(*fields(session, given, **own, strength=2.0, sample=None), api_name="/answer")
    question = Asked("push", given["question"], "the square is red", Image.open(tmp_path / "blue.png"), strength=2.0)
    assert told[1] == last(session, question).steered


def test_the_export_is_an_archive_with_its_code(client, session, given):
    printed, file = client.predict(*fields(session, given, strength=8.0), api_name="/export")
    path = Path(file["value"] if isinstance(file, dict) else file)
    with zipfile.ZipFile(path) as kept:
        assert kept.read("play.py").decode().strip() == printed.strip()
        assert "artefact/steering.safetensors" in kept.namelist()

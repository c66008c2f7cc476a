"""The playground in real browsers: each gets its own answers, and one that is killed leaves nothing steered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="gradio, the extra 'play', is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")
from eval_suite.site.look import FLAGS, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="needs chromium"),
]

from playwright.sync_api import Page, sync_playwright

from eval_suite.play.page import serve
from eval_suite.play.session import Session
from eval_suite.play.shots import PATIENCE, shown
from tests.eval_suite.play_session import last


@pytest.fixture(scope="module")
def address(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    blocks, local = serve(session, "127.0.0.1", 0, tmp_path_factory.mktemp("exports"))
    yield local
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with sync_playwright() as playwright:
        yield playwright.chromium


def browser(driver: Any) -> Any:
    return driver.launch(executable_path=chromium(), args=list(FLAGS))


def answers(page: Page) -> tuple[str, str]:
    """What stands on the page: the answer as it is, and the steered one."""
    return page.get_by_label("As it is", exact=True).input_value(), page.get_by_label(
        "Steered", exact=True
    ).input_value()


def alone(session: Session, strength: float) -> tuple[str, str]:
    """The same by the session, for the sample and method that the page opens with."""
    found = last(session, replace(session.asked(session.turned, "push"), strength=strength))
    return found.unsteered, found.steered


def move(page: Page, strength: float) -> None:
    slider = page.get_by_label("number input for Strength")
    slider.fill(f"{strength:g}")
    slider.press("Enter")


def test_two_browsers_at_once_get_their_own_answers(address, session, driver):
    strengths = {"one": 30.0, "other": 2.0}
    expected = {name: alone(session, strength) for name, strength in strengths.items()}
    assert len(set(expected.values())) == 2, "the two strengths are answered differently"
    browsers = {name: browser(driver) for name in strengths}
    pages = {name: each.new_page(viewport={"width": 1280, "height": 900}) for name, each in browsers.items()}
    for page in pages.values():
        assert shown(page, address, 1.0) == [], "nothing goes wrong, nothing is fetched from elsewhere"
    for _ in range(2):  # both are asked before either has answered
        for name, page in pages.items():
            move(page, strengths[name])
        for name, page in pages.items():
            page.wait_for_selector(f'svg[aria-label*="at {strengths[name]:g}:"]', timeout=PATIENCE)
            page.wait_for_timeout(500)
            assert answers(page) == expected[name]
        for page in pages.values():
            move(page, 0.0)
            page.wait_for_selector('svg[aria-label*="at 0:"]', timeout=PATIENCE)
    for each in browsers.values():
        each.close()


def test_a_killed_browser_leaves_nothing_steered(address, session, view, driver):
    leaving = browser(driver)
    page = leaving.new_page()
    shown(page, address, 1.0)
    move(page, 30.0)
    leaving.close()  # while it is answered
    deadline = time.monotonic() + 60
    while any(layer._forward_hooks for layer in view.layers) and time.monotonic() < deadline:
        time.sleep(0.05)
    unsteered, steered = alone(session, 0.0)
    assert unsteered == steered and not view.steps.blocks and not view.steps.users
    assert all(not layer._forward_hooks for layer in view.layers)
    staying = browser(driver)
    page = staying.new_page()
    assert shown(page, address, 0.0) == [] and answers(page) == (unsteered, unsteered)
    staying.close()


def test_the_map_is_of_the_layer_that_is_chosen_while_an_answer_is_looked_behind(address, session, driver, monkeypatch):
    opened = browser(driver)
    page = opened.new_page()
    shown(page, address, 1.0)
    measured = session.ratios
    monkeypatch.setattr(session, "ratios", lambda asked: time.sleep(3) or measured(asked))  # a large model's
    move(page, 2.0)
    page.wait_for_selector('svg[aria-label*="at 2:"]', timeout=PATIENCE)
    layer = page.get_by_label("number input for Layer")
    layer.fill("1")
    layer.press("Enter")
    page.wait_for_timeout(6000)
    told = page.evaluate("[...document.querySelectorAll('.sf-maps img')].map((each) => each.alt)")
    assert len(told) == 2 and all(each.startswith("Layer 1,") for each in told), told
    opened.close()


def test_a_refused_question_leaves_no_answers_of_another_on_the_page(address, driver):
    opened = browser(driver)
    page = opened.new_page()
    shown(page, address, 1.0)
    assert all(answers(page))
    question = page.get_by_label("Question", exact=True)
    question.fill("")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_text("the question is empty").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(1000)
    assert answers(page) == ("", "") and page.locator(".sf-maps img").count() == 0
    question.fill("What color is the square?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_selector(".sf-maps img", timeout=PATIENCE)
    assert all(answers(page))
    opened.close()


def test_a_strength_typed_beyond_the_slider_is_answered_and_one_below_it_refused(address, session, driver, capfd):
    expected, opened = alone(session, 45.0), browser(driver)
    page = opened.new_page()
    shown(page, address, 1.0)
    move(page, 45.0)
    page.wait_for_selector('svg[aria-label*="at 45:"]', timeout=PATIENCE)
    page.wait_for_timeout(500)
    assert answers(page) == expected
    move(page, -3.0)
    page.get_by_text("strength -3 lies below 0").first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(500)
    assert answers(page) == ("", "")
    move(page, 1.0)
    page.wait_for_selector('svg[aria-label*="at 1:"]', timeout=PATIENCE)
    layer = page.get_by_label("number input for Layer")
    layer.fill("99")
    layer.press("Enter")
    page.get_by_text("layer 99 is out of range").first.wait_for(timeout=PATIENCE)
    assert "Traceback" not in capfd.readouterr().err
    opened.close()

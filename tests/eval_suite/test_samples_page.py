"""The page of single samples: what its files hold, and what a browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval_suite.report.samples.gather import collections, scored
from eval_suite.report.samples.write import write
from eval_suite.speed.samples_page import in_browser, made_up
from factory.run.labels import CURVE

EVIL = "</script><img src=x onerror=\"document.title='caught'\">\u2028"


def plain(number: int) -> Image.Image:
    """Two samples share a picture."""
    return Image.new("RGB", (400, 300), (number // 2 * 40 % 256, 90, 120))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Forty samples; the second was asked at some strengths only, the third has texts that would be markup."""
    made = made_up(40, tmp_path_factory.mktemp("run"), plain)
    samples = list(made.samples)
    samples[2] = replace(samples[2], context=EVIL, question=EVIL)
    kept = [p for p in made.predictions if not (p["sample"] == samples[1].id and p["strength"] in (0.5, 3.0))]
    return replace(
        made, samples=samples, predictions=[p | {"answers": [EVIL]} if p["sample"] == "sample-2" else p for p in kept]
    )


@pytest.fixture(scope="module")
def page(run):
    return write(collections(run), run.folder / "report", EVIL, [("model", EVIL)])


def content(page: Path, name: str):
    text = (page.parent / "samples" / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r'steeringSamples\.receive\("[\w-]+",(.*)\);\n', text, re.DOTALL).group(1))


def test_every_sample_has_its_texts_answers_and_numbers(run, page):
    [told] = content(page, "index")["sets"]
    size = content(page, "index")["part"]
    parts = [detail for n in range(-(-40 // size)) for detail in content(page, f"0-{n:03d}")]
    assert [sample[0] for sample in told["samples"]] == [s.id for s in run.samples] and len(parts) == 40
    for sample, detail in zip(run.samples, parts, strict=True):
        assert dict(detail["facts"])["Context"] == sample.context
        for arm, (letters, said) in zip(told["arms"], detail["arms"], strict=True):
            own = {
                f"{p['strength']:g}" if p["strength"] is not None else "—": p
                for p in run.predictions
                if p["sample"] == sample.id
                and p["method"] == arm["method"]
                and {"vision": "the image", "text": "the text"}[p["direction"]] == arm["direction"]
            }
            want = [own[s]["outcome"] if s in own else None for s in arm["strengths"]]
            names = {letter: name for letter, name, _ in told["outcomes"]}
            assert [names.get(letter) for letter in letters] == want
            assert [detail["texts"][i] if i >= 0 else None for i in said] == [
                own[s]["answers"][0] if s in own else None for s in arm["strengths"]
            ]
        r_v = [r["value"] for r in run.diagnostics if r["sample"] == sample.id and r["metric"] == "R_V"]
        assert list(detail["numbers"]["R_V"].values()) == pytest.approx(r_v, abs=1e-3)
    first, second, third, *_ = (sample[5] for sample in told["samples"])
    assert first == second != third


def expected(run, method: str, change: str) -> int:
    """How many samples a method flips or breaks at its strength, in a plain loop."""
    found = set()
    for p in run.predictions:
        if p["method"] == method and p["chosen"]:
            [before] = [
                q["outcome"]
                for q in run.predictions
                if q["method"] == "none" and (q["sample"], q["direction"]) == (p["sample"], p["direction"])
            ]
            end = {"flipped": "follow", "broke": "error"}[change]
            if before != end and p["outcome"] == end:
                found.add(p["sample"])
    return len(found)


@pytest.mark.parametrize(("change", "bit"), [("flipped", 1), ("broke", 2)])
def test_flipped_and_broken_samples_are_those_of_a_plain_loop(run, page, change, bit):
    [told] = content(page, "index")["sets"]
    own = [i for i, arm in enumerate(told["arms"]) if arm["method"] == "amps"]
    marked = [s for s in told["samples"] if any(int(s[4][i], 16) & bit for i in own)]
    assert len(marked) == expected(run, "amps", change) > 0


def test_the_strip_is_of_the_share_of_test_that_curves_are_of(run):
    """As under ``evaluate.curve: chosen``: all of test at the chosen strengths, and every fourth sample at all."""
    share = {s.id for s in run.samples[::4]}
    chosen = [p for p in run.predictions if p["chosen"]]
    swept = [p | {"split": CURVE} for p in run.predictions if p["sample"] in share]
    [whole], [found] = (collections(replace(run, predictions=kept)) for kept in (run.predictions, chosen + swept))
    assert found.arms == whole.arms and found.total == whole.total
    for own, every in zip(found.entries, whole.entries, strict=True):
        at = {(i, arm.strength) for i, arm in enumerate(found.arms)}
        kept = every.answers if own.id in share else {key: a for key, a in every.answers.items() if key in at}
        assert own.answers == kept and len(kept) > 0


def test_texts_stay_texts_and_a_page_without_samples_goes(run, page):
    for path in (*(page.parent / "samples").iterdir(), page):
        assert "</script><img" not in path.read_text(encoding="utf-8")
    folder = run.folder / "shrunk"
    write(collections(run), folder, "", [])
    assert write([], folder, "", []) is None
    assert not (folder / "samples.html").exists() and not list((folder / "samples").iterdir())


@pytest.mark.parametrize(
    ("record", "letter"),
    [
        ({"value": 1.0}, "R"),
        ({"value": 0}, "W"),
        ({"value": 0.3}, "P"),
        ({"value": 0.0, "failed": True}, "U"),
        ({"value": None}, "N"),
        ({"value": 41.5}, "N"),
    ],
)
def test_an_answer_to_a_question_is_marked_by_its_score(record, letter):
    assert scored({"text": "yes", **record}).letter == letter


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_opens_the_file_filters_and_runs_nothing_of_a_text(run, page):
    """Also what a text would do as markup: the third sample's is a script that renames the page."""
    found = in_browser(page, "chromium")
    method, _, task, words, *_ = found["filters"]
    assert task[0].startswith(f"{sum(s.task == run.samples[2].task for s in run.samples)} samples of 40")
    assert words[0].startswith(f"{sum('colour 19' in s.question for s in run.samples)} sample of 40")
    assert method[0].startswith(f"{expected(run, 'amps', 'flipped')} samples of 40")
    assert found["title"] != "caught" and EVIL[:12] in found["shown"]

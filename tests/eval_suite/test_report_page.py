import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eval_suite.report import build, print_tables
from eval_suite.report.tables import main_tables
from factory.diagnose.summary import Predictor, Summary
from factory.registry import lookup
from tests.eval_suite.synthetic_report import RECIPE, results, simple, synthetic, two_methods

OF_A_STRANGER = Summary("Strange", predictors=(Predictor("strange", "strangeness"),))


@pytest.fixture(scope="module")
def full():
    return synthetic(per_task=12)


def said_by_mcr(rows: list[dict]) -> Summary:
    """What a run hands in of its ``diagnostic: mcr``."""
    Mcr = lookup("diagnostic", "mcr")
    return Mcr(Mcr.Params()).summary(rows).under("mcr")


def test_only_a_clear_win_over_the_reference_is_emphasised(tmp_path):
    for amps, emphasised in ((140, True), (102, False), (60, False)):
        data, predictions = two_methods(100, amps)
        text, _ = parse(build(tmp_path, data, [], predictions.records, ""))
        line = re.search(r"<tr><th scope=\"row\">amps − l2s.*?</tr>", text).group()
        assert ('class="best"' in line) == emphasised


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.stack, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.targets += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "poster", "action")]
        if tag not in ("meta", "img", "br", "link", "input", "hr"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def parse(path: Path) -> tuple[str, Links]:
    text = path.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.stack == []
    return text, links


def test_full_report_is_complete_and_self_contained(full, tmp_path):
    picture = tmp_path / "scenes.png"
    Image.new("RGB", (40, 30), "navy").save(picture)
    pictures = [("Scenes", picture), ("Gone", tmp_path / "gone.png")]
    index = build(tmp_path, *full, RECIPE, pictures, summaries=(said_by_mcr(full[1]), OF_A_STRANGER))
    assert index == tmp_path / "report" / "index.html"
    text, links = parse(index)
    assert links.targets and all(target.startswith("data:") for target in links.targets)
    assert not re.search(r"url\(|@import|<script|<link", text)
    assert sorted(p.name for p in (tmp_path / "report" / "figures").iterdir()) == [
        "by_R_V.png",
        "mcr-by_prompt.png",
        "mcr-by_task.png",
        "strength.png",
        "tiers.png",
        "turned.png",
    ]
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "index.html",
        "figures",
        "mcr-shift.csv",
        "outcomes.csv",
        "table.csv",
        "table.md",
        "table.tex",
        "turned.csv",
    }
    for block in main_tables(full[0]):
        for line in block.lines:
            assert line.entries["all"].interval in text
    section = text[text.index("<h2>Modality contribution ratio</h2>") :]
    assert section.index("Visual MCR by task.") < section.index("Visual MCR by prompt.") < section.index("<h2>", 1)
    assert "Follow and error by MCR of the target." in text
    assert "By strangeness (scenes, mc2_both_orders, options@1, seed 0): it was not measured on test" in text
    assert "error budget of 5.0 %" in text
    assert "3f9a1c" in text and "options@1" in text and "versions.torch" in text
    assert "gone.png cannot be read" in text


def test_same_inputs_give_the_same_page(tmp_path):
    data = synthetic(per_task=4, tasks=("color",), directions=("vision",), methods=["none", "l2s"])
    first = build(tmp_path / "a", *data, RECIPE).read_bytes()
    assert build(tmp_path / "b", *data, RECIPE).read_bytes() == first


def test_everything_from_outside_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>"
    data = results(
        simple(evil, 20),
        simple("l2s", 10, protocol=None),
        name=evil,
        notes=evil,
        skipped=[{"sample": evil, "reason": evil}],
        versions={evil: evil},
    )
    diagnostics = [
        {
            "sample": 1,
            "task": evil,
            "split": "test",
            "prompt": "base",
            "metric": "R_V",
            "layer": None,
            "head": None,
            "value": 0.4,
            "visual_tier": evil,
            "text_tier": evil,
        }
    ]
    text, links = parse(build(tmp_path, data, diagnostics, [], evil))
    assert "script" not in links.tags
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "change",
    [
        {"directions": ("text",)},
        {"methods": ["none", "instruction"]},
        {"methods": ["static", "amps"], "directions": ("vision",)},
        {"splits": ("test",), "directions": ("vision",)},
        {"splits": ("dev",), "directions": ("vision",)},
        {"per_task": 1, "directions": ("vision",)},
    ],
)
def test_partial_runs_still_report(change, tmp_path):
    data, diagnostics, predictions = synthetic(**{"per_task": 30, "tasks": ("counting",), **change})
    text, _ = parse(build(tmp_path, data, diagnostics, predictions, RECIPE))
    assert ("Towards the image" in text) == ("vision" in change.get("directions", ("vision", "text")))
    print_tables(data, Console(file=io.StringIO(), width=120))


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("diagnostics", "no diagnostic of the run offers a predictor"),
        ("predictions", "no paired comparison"),
    ],
)
def test_missing_inputs_are_named_on_the_page(drop, said, tmp_path):
    data, diagnostics, predictions = synthetic(per_task=4, tasks=("color",), directions=("text",))
    kept = {"diagnostics": diagnostics, "predictions": predictions, drop: []}
    text, _ = parse(build(tmp_path, data, kept["diagnostics"], kept["predictions"], ""))
    assert said in text


def test_an_empty_run_has_a_page(tmp_path):
    text, _ = parse(build(tmp_path, {"schema": 1, "run": {}, "rows": []}, [], [], ""))
    assert "No modality-preference results were measured" in text


def test_a_figure_no_longer_drawn_does_not_linger(tmp_path):
    _, diagnostics, _ = synthetic(per_task=2, tasks=("color",), methods=["none"])
    figures = tmp_path / "report" / "figures"
    build(tmp_path, results(), diagnostics, [], RECIPE, summaries=[said_by_mcr(diagnostics)])
    assert sorted(p.name for p in figures.iterdir()) == ["mcr-by_prompt.png", "mcr-by_task.png"]
    build(tmp_path, results(), [], [], RECIPE)
    assert list(figures.iterdir()) == []


def test_skipped_samples_are_named(tmp_path):
    data = results(simple("none", 1), skipped=[{"sample": "img_17", "reason": "unreadable image"}])
    text, _ = parse(build(tmp_path, data, [], [], ""))
    assert "img_17" in text and "unreadable image" in text

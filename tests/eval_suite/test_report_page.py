import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eval_suite.report import build, print_tables
from eval_suite.report.tables import main_tables
from factory.diagnose.summary import Finding, Predictor, Summary, Table
from factory.registry import lookup
from tests.eval_suite.synthetic_report import RECIPE, outcome_records, results, simple, synthetic, two_methods
from tests.latex import needs_latex, set_in_two_columns

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


def figures_of(run: Path) -> set[str]:
    return {p.name for p in (run / "report" / "figures").iterdir()}


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
    assert links.targets and all(target.startswith(("data:", "#")) for target in links.targets)
    assert {target[1:] for target in links.targets if target.startswith("#")} == set(
        re.findall(r'<h2 id="(.+?)"', text)
    )
    assert not re.search(r"url\(|@import|<script|<link", text)
    drawn = ("by_R_V", "mcr-by_prompt", "mcr-by_task", "strength", "tiers", "turned")
    assert figures_of(tmp_path) == {f"{name}.{suffix}" for name in drawn for suffix in ("pdf", "png", "svg")}
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
    section = text[text.index("Modality contribution ratio</h2>") :]
    assert section.index("Visual MCR by task.") < section.index("Visual MCR by prompt.") < section.index("<h2 ", 1)
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
    build(tmp_path, results(), diagnostics, [], RECIPE, summaries=[said_by_mcr(diagnostics)])
    assert {name.partition(".")[0] for name in figures_of(tmp_path)} == {"mcr-by_prompt", "mcr-by_task"}
    build(tmp_path, results(), [], [], RECIPE)
    assert figures_of(tmp_path) == set()


def test_skipped_samples_are_named(tmp_path):
    data = results(simple("none", 1), skipped=[{"sample": "img_17", "reason": "unreadable image"}])
    text, _ = parse(build(tmp_path, data, [], [], ""))
    assert "img_17" in text and "unreadable image" in text


def test_a_reader_without_eyes_or_mouse_reaches_everything(full, tmp_path):
    """Each table has a caption, each heading cell a scope, each scrolling area a label and the focus, and each figure
    says what is seen in it."""
    text, _ = parse(build(tmp_path, *full, RECIPE))
    assert text.count("<table") == text.count("<caption>") > 3
    assert len(re.findall("<th[ >]", text)) == len(re.findall(r'<th scope="(?:row|col)"', text))
    scrolling = re.findall('<div class="scroll"[^>]*>', text)
    assert len(scrolling) == text.count("<table")
    assert all(re.search('tabindex="0" role="region" aria-label="[^"]+"', area) for area in scrolling)
    [alt] = re.findall('alt="(Follow and error against strength[^"]*)"', text)
    follows = [r for r in full[0]["rows"] if (r["method"], r["task"], r["split"]) == ("amps", "all", "test")]
    first = next(r for r in follows if r["direction"] == "vision" and r["strength"] == 0.25)["metrics"]["follow"]
    assert f"amps from {100 * first:.3g} at 0.25 to" in alt and "against Steering strength" in alt


def test_what_dev_chose_beside_the_strength_stands_in_the_table(tmp_path):
    data = results(simple("none", 20), simple("amps", 30, strength=1.0, chosen=True, variant="beta=0.5"))
    folder = build(tmp_path, data, [], [], "").parent
    assert all("beta=0.5" in (folder / f"table.{kind}").read_text() for kind in ("csv", "md", "tex"))
    assert '<th scope="row">amps <span class="tag">beta=0.5</span>' in (folder / "index.html").read_text()


@pytest.mark.parametrize(("random", "verdict"), [(138, "none: other does as well"), (60, "follows more")])
def test_a_method_whose_random_control_does_as_well_gets_no_verdict(random, verdict, tmp_path):
    follows = {"l2s": 100, "amps": 140, "other": random}
    outcomes = {m: ["follow"] * k + ["compete"] * (200 - k) for m, k in follows.items()}
    rows = [simple(m, k, n=200, strength=1.0, chosen=True) for m, k in follows.items()]
    records = [p for m, some in outcomes.items() for p in outcome_records(m, some)]
    text, _ = parse(build(tmp_path, results(*rows, controls={"amps": "other"}), [], records, ""))
    line = re.search(r'<tr><th scope="row">amps − l2s.*?</tr>', text).group()
    assert verdict in line and ('class="best"' in line) == (random < 100)
    assert ("amps beats l2s" in text) == (random < 100)


def test_claims_are_told_before_the_tables(tmp_path):
    told = Summary("What the paper claims", (Finding("heads matter", True),), leads=True)
    text, _ = parse(build(tmp_path, results(simple("none", 20)), [], [], "", summaries=[Summary("Later", ()), told]))
    assert text.index("heads matter") < text.index("Main table</h2>")


def test_a_page_that_a_finding_leads_has_no_empty_sections_and_wide_tables_are_set_small(tmp_path):
    wide = Table("wide", "Wide", tuple(f"c{i}" for i in range(19)), ((-0.0001, *[1.0] * 18),))
    narrow = Table("narrow", "Narrow", ("a", "b"), ((1.0, 2.0),))
    told = Summary("Does it beat the null?", (Finding("it does not", False),), (wide, narrow), leads=True)
    about = {"run": {"name": "claim", "data": "scenes"}, "rows": []}
    text, _ = parse(build(tmp_path, about, [], [], "", summaries=[told]))
    assert "Main table" not in text and "modality-preference" not in text and "data <b>scenes</b>" in text
    assert text.count('<table class="numbers dense">') == 1 and "-0.000" not in text


def test_whole_numbers_of_a_diagnostic_are_written_as_such(tmp_path):
    columns = ("way", "bytes", "strength", "share", "layer", "tau")
    rows = (("a", 3545088.0, 2.0, 1.0, 1000, 0.5), ("b", 12.0, None, 0.0, 3, 2.0))
    told = Summary("Counts", (), (Table("counts", "Counts", columns, rows),))
    text, _ = parse(build(tmp_path, results(simple("none", 20)), [], [], "", summaries=[told]))
    shown = [re.findall(r">([^<]+)</t[hd]>", line) for line in text.split("Counts.</b>")[1].split("<tr>")[2:4]]
    assert shown == [["a", "3,545,088", "2", "1.000", "1,000", "0.500"], ["b", "12", "—", "0.000", "3", "2.000"]]


def test_directions_stand_apart_in_the_table_of_all_outcomes(tmp_path):
    about = results(*(simple(m, 20, direction=d) for d in ("vision", "text") for m in ("none", "l2s")))
    text, _ = parse(build(tmp_path, about, [], [], ""))
    shown = text[text.index('id="outcomes"') :].split("</table>")[0]
    rows = re.findall(r'<tr( class="gap")?><td class="left">([^<]*)</td>', shown)
    assert [(bool(apart), toward) for apart, toward in rows] == [
        (False, "the image"),
        (False, "the image"),
        (True, "the text"),
        (False, "the text"),
    ]


def test_the_header_says_which_run_it_was(tmp_path):
    (tmp_path / "environment.json").write_text('{"git": {"commit": "0123456789abcdef", "dirty": true}}')
    opened = {"time": "2026-01-02T03:04:05.000+00:00", "event": "run_opened"}
    (tmp_path / "events.jsonl").write_text(
        json.dumps(opened) + "\n" + json.dumps(opened | {"time": "2027-01-01"}) + "\n"
    )
    data = results(simple("none", 20), model={"card": "tiny", "class": "Llava", "layer": 4}, seed=7)
    beside = {
        "label": "control: blank picture",
        "control": "blank picture",
        "main": "vision",
        "metrics": {"vision": 0.5},
    }
    data["rows"].append({**data["rows"][0], **beside})
    text, _ = parse(build(tmp_path, data, [], [], "", limit=16))
    [line] = re.findall('<p class="byline">(.*?)</p>', text)
    assert "control" not in line, "a control is asked beside the data"
    for said in ("tiny, Llava, layer 4", "scenes", "16 samples", "2026-01-02 03:04", "0123456789 with changes", ">7<"):
        assert said in line


@needs_latex
def test_the_table_compiles_and_fits_a_page_of_two_columns(full, tmp_path):
    folder = build(tmp_path, *full, RECIPE, plots=False).parent
    assert "Overfull" not in set_in_two_columns(folder / "table.tex")

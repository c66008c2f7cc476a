"""Reports in a real browser: nothing is wider than its page or cut, at 1280 and 420 pixels and on paper."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="playwright is not installed")

from eval_suite.report import build
from eval_suite.report.samples.gather import collections
from eval_suite.report.samples.write import write
from eval_suite.site import look
from eval_suite.speed.samples_page import made_up
from factory.diagnose.summary import Figure, Finding, Summary, Table
from tests.eval_suite.synthetic_report import RECIPE, synthetic
from tests.eval_suite.test_samples_page import plain

pytestmark = pytest.mark.skipif(look.chromium() is None, reason="needs chromium")
LONG = "a_name_without_a_blank_" * 12  # a path or a digest, as data and people have them


@pytest.fixture(scope="module")
def opened():
    with look.browser() as browser:
        yield browser


@pytest.mark.parametrize(
    ("body", "views"),
    [
        ("<p>short</p>", set()),
        ("<p style='width: 500px'>wide</p>", {"420"}),
        ("<p style='width: 1100px'>wide</p>", {"420", "print"}),
        (f"<p style='overflow: hidden'>{LONG}</p>", {"420", "1280", "print"}),
        ("<div style='overflow-x: auto'><p style='width: 1100px'>a table that scrolls</p></div>", {"print"}),
        ("<div style='overflow-x: auto; width: 2000px'>its window is too wide itself</div>", {"420", "1280", "print"}),
    ],
)
def test_what_is_cut_is_found_and_nothing_else(opened, tmp_path, body, views):
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta name=viewport content='width=device-width'><body>{body}</body>")
    assert set(look.cut(opened, page.as_uri())) == views


@pytest.mark.parametrize("parted", [True, False])
@pytest.mark.parametrize(("before", "what"), [(560, "p"), (620, "p"), (660, "h2")])
def test_what_a_sheet_parts_is_found(opened, tmp_path, before, what, parted):
    """A heading and its paragraph at a sheet's end, 703 pixels down: which is parted goes by what is before them."""
    page = tmp_path / "page.html"
    style = "" if parted else "h2, p { break-inside: avoid } h2 { break-after: avoid }"
    free = "h2 { break-after: auto } p { orphans: 1; widows: 1 }" if parted else ""
    body = f"<div style='height: {before}px'></div><h2>Of it</h2><p>{'some words ' * 150}</p><p>{'more ' * 9000}</p>"
    page.write_text(f"<!doctype html><style>* {{ margin: 0; padding: 0 }} {style} {free}</style><body>{body}</body>")
    told = look.cut(opened, page.as_uri()).get("print", [])
    assert [line.split(maxsplit=1)[0] for line in told] == ([what] if parted else []), told


@pytest.mark.parametrize("rows", [3, 90])
def test_a_report_keeps_a_paragraph_under_its_heading(opened, tmp_path, rows):
    """Over every place on a sheet where a heading can come to stand, before a short table and one of several sheets."""
    data, diagnostics, predictions = synthetic(per_task=2, methods=["none", "l2s"])
    page = build(tmp_path, data, diagnostics, predictions, RECIPE)
    style = page.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    cells = "".join(f"<tr><td>{i}</td></tr>" for i in range(rows))
    table = f"<div class='scroll'><table><caption><span>Of it.</span></caption>{cells}</table></div>"
    for before in (500, 560, 620, 680):
        body = f"<div style='height: {before}px'></div><h2>A heading</h2><p>{'a few words ' * 60}</p>{table}"
        made = tmp_path / f"{before}.html"
        made.write_text(f"<!doctype html><style>{style}</style><body><main>{body}</main></body>")
        assert look.cut(opened, made.as_uri()) == {}, before


def many(of: str, place: int) -> str:
    """A list, a glossary or a table, of which the last entry comes to stand somewhere else at each ``place``."""
    if of == "table":  # begins on a sheet of its own, as it is longer than one
        rows = "".join(f"<tr><td>{i}</td></tr>" for i in range(26 + place))
        return f"<div class='scroll'><table>{rows}</table></div>"
    before = f"<div style='height: {300 + 16 * place}px'></div>"
    if of == "list":
        return before + "<ul>" + f"<li>{'words of one entry ' * 12}</li>" * 5 + "</ul>"
    return before + "<dl>" + "<dt>a word</dt><dd>what it means</dd>" * 9 + "</dl>"


@pytest.mark.parametrize("of", ["list", "glossary", "table"])
def test_the_last_of_many_is_not_alone_on_a_sheet(opened, tmp_path, of):
    """Over every place on a sheet where it can come to stand; where breaks are not avoided some are found."""
    data, diagnostics, predictions = synthetic(per_task=2, methods=["none", "l2s"])
    page = build(tmp_path, data, diagnostics, predictions, RECIPE, plots=False)
    style = page.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")[0]
    parts = "".join(f"<section style='break-before: column'>{many(of, place)}</section>" for place in range(24))
    found = {}
    for free in ("", "@media print { * { break-after: auto !important } }"):
        made = tmp_path / f"{len(free)}.html"
        made.write_text(f"<!doctype html><style>{style} {free}</style><body><main>{parts}</main></body>")
        found[bool(free)] = look.cut(opened, made.as_uri()).get("print", [])
    assert found[False] == [] and any("alone on sheet" in line for line in found[True]), found


def test_pages_of_one_name_have_pictures_of_their_own(tmp_path):
    """Also where joined folders would read alike."""
    folders = ("one/report", "other/report", "far/one/report", "site", "a-b/c", "a/b-c", "a/b/c")
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "index.html").write_text("<!doctype html><p>a page</p>")
    pages = [str(tmp_path / folder / "index.html") for folder in folders]
    command = [sys.executable, "-P", "-m", "eval_suite.site.look", str(tmp_path / "out"), *pages]
    subprocess.run(command, check=True)
    made = list((tmp_path / "out").iterdir())
    assert sum(each.suffix == ".pdf" for each in made) == len(folders)
    assert sum(each.suffix == ".png" for each in made) == len(folders) * len(look.VIEWS)


def test_a_picture_shows_what_nobody_has_scrolled_to(opened, tmp_path):
    page = tmp_path / "page.html"
    far = "<div style='height: 3000px'></div><div style='height: 100px; background: rgb(200, 0, 0)'></div>"
    style = "body { margin: 0 } section { content-visibility: auto; contain-intrinsic-size: 100px 3100px }"
    body = f"<section><p>near</p></section><section>{far}</section>"
    page.write_text(f"<!doctype html><style>{style}</style><body>{body}</body>")
    look.cut(opened, page.as_uri(), tmp_path / "far")
    for view in look.VIEWS:
        picture = np.asarray(Image.open(tmp_path / f"far-{view}.png").convert("RGB"))
        assert tuple(picture[-50, 50]) == (200, 0, 0)


def test_a_folder_without_pages_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        look.main([str(tmp_path / "out"), str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: there is no page in it\n"


def hard(columns: int) -> Summary:
    """What is hardest to fit of what a diagnostic may say: long words, words as cells, many columns."""
    cells = ("of " + "some words " * 6, LONG[:46], "0.123 [0.045, 0.678]", 0.5)
    row = tuple(cells[i % len(cells)] if i < 8 else 0.123456 for i in range(columns))
    heads = tuple(f"how much of it {i}" for i in range(columns))
    figure = Figure("long", "A long figure", LONG, lambda drawn: drawn.subplots().plot([1, 2]), size=(24.0, 3.0))
    return Summary(
        LONG, findings=(Finding(LONG, holds=True),), tables=(Table("wide", LONG, heads, (row,) * 3),), figures=(figure,)
    )


@pytest.mark.parametrize("columns", [3, 12])
def test_a_report_of_long_words_and_many_columns_fits(opened, tmp_path, columns):
    methods = ["none", "l2s", *(f"a_method_of_a_long_name_{i}" for i in range(3))]
    data, diagnostics, predictions = synthetic(per_task=2, methods=methods)
    data["run"]["name"] = LONG
    page = build(tmp_path, data, diagnostics, predictions, RECIPE + f"data: {LONG}\n", summaries=(hard(columns),))
    assert LONG[:46] in page.read_text(encoding="utf-8")
    assert look.cut(opened, page.as_uri()) == {}


def test_a_page_of_samples_with_long_words_fits(opened, tmp_path):
    run = made_up(6, tmp_path, plain)
    run = replace(
        run,
        samples=[replace(sample, context=LONG, question=LONG) for sample in run.samples],
        predictions=[{**each, "answers": [LONG]} for each in run.predictions],
    )
    page = write(collections(run), tmp_path / "report", LONG, [("model", LONG)])
    assert look.cut(opened, page.as_uri()) == {}

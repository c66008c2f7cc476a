"""What is printed from files commands neither a terminal nor a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.plain import csv_text, number_of, say, shown
from factory.terminal import Console

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\r\x08gone\u202etxt.exe\ud800\u2028"


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_is_printed(text):
    made = shown(text)
    assert not any(c < " " and c not in "\n\t" or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in made)
    made.encode()


def test_plain_texts_stay_as_they_are():
    for text in ("plain\ttext\n", "图像 — ▁ é", "a\\x1b", "שלום"):
        assert shown(text) == text


def test_say_and_console_print_escapes(capsys):
    say(EVIL)
    console = Console(force_terminal=True, width=200)
    console.print(EVIL, markup=False)
    console.print("fine", style="red")
    out = capsys.readouterr().out
    assert out.count("\\x1b") == 4 and "\x07" not in out and "\u202e" not in out
    assert "\x1b[31mfine\x1b[0m" in out


@pytest.mark.parametrize(
    "text", ["=HYPERLINK('http://x')", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\uff1d1"]
)
def test_cells_that_a_spreadsheet_would_compute_get_a_quote(text):
    [row] = csv.reader(io.StringIO(csv_text([[text, "-0.5", -0.5, "+3e5", "none", None]])))
    assert row == ["'" + text, "-0.5", "-0.5", "+3e5", "none", ""]


@pytest.mark.parametrize(("n", "said"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (2000, "2,000 samples")])
def test_one_is_no_plural(n, said):
    assert number_of(n, "sample") == said

"""A log gets a handful of plain lines, a terminal a bar."""

import io

import pytest
from rich.console import Console

from factory import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(work, monkeypatch, seconds_a_call=0.0):
    """What `work(console)` prints to a log, on a clock that moves `seconds_a_call` each time it is read."""
    now = [0.0]

    def clock():
        now[0] += seconds_a_call
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", clock)
    console = Console(file=io.StringIO())
    work(console)
    return console.file.getvalue().splitlines()


def advance(console, total, by=1, done=0):
    with progress.stage("diagnose", total=total, done=done, console=console) as bar:
        for _ in range(done, total, by):
            bar.advance(by)


def test_a_fast_stage_prints_a_line_every_tenth(monkeypatch):
    printed = lines(lambda console: advance(console, 1000), monkeypatch)
    assert len(printed) == 11
    assert printed[0] == "diagnose: 0/1000 (0 %)"
    assert printed[5].startswith("diagnose: 500/1000 (50 %), ") and printed[5].endswith(" left")
    assert printed[-1].startswith("diagnose: 1000/1000 (100 %), ") and printed[-1].endswith("done")


def test_a_slow_stage_prints_by_the_clock_but_ever_more_rarely(monkeypatch):
    printed = lines(lambda console: advance(console, 20_000), monkeypatch, seconds_a_call=1.0)
    assert 60 < len(printed) < 250


def test_what_an_earlier_start_did_is_shown_and_not_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO())
    with progress.stage("diagnose", total=100, done=90, console=console) as bar:
        now[0] = 20.0
        bar.advance(2)
    assert console.file.getvalue().splitlines()[:2] == [
        "diagnose: 90/100 (90 %)",
        "diagnose: 92/100 (92 %), 0:00:20, 0:01:20 left",
    ]


def test_an_exception_is_told_and_passed_on(monkeypatch):
    def work(console):
        with pytest.raises(KeyError), progress.stage("fit", total=4, console=console) as bar:
            bar.advance()
            raise KeyError

    assert lines(work, monkeypatch)[-1] == "fit: 1/4 (25 %), 0:00:00, stopped"


def test_nothing_to_do_is_no_error(monkeypatch):
    assert len(lines(lambda console: advance(console, 0), monkeypatch)) == 2


def test_a_skipped_stage_is_one_line(monkeypatch):
    assert lines(lambda console: progress.skipped("fit [a]", console), monkeypatch) == ["fit [a]: done before"]


def test_a_terminal_gets_one_bar():
    console = Console(file=Terminal(), force_terminal=True, width=100, _environ={"TERM": "xterm"})
    advance(console, 40, by=8)
    shown = console.file.getvalue()
    assert "diagnose" in shown and "40/40" in shown and "\x1b[" in shown

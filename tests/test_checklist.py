"""docs/checklist.md: each promise names what shows it, and that is there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "checklist.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
CODE = re.compile(r"`([^`]+)`")
CHAPTERS = (
    "The start",
    "The documents",
    "Commands",
    "Your own conflicts",
    "The report",
    "Notebooks",
    "The playground",
    "The methods",
)
GENERATED = ("reference/", "adding/", "notebooks/")  # pages that the site's build makes; it checks links to them itself


def rows() -> list[tuple[str, str, str]]:
    """Chapter, promise and where it shows, of each row of the page's tables."""
    found, chapter = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            chapter = line[3:]
        if line.startswith("| ") and not line.startswith("| promise"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found.append((chapter, cells[0], " | ".join(cells[1:])))
    return found


def shown(cell: str) -> list[str]:
    """What a row points to: links, commands, paths of the repository; each must be there."""
    found = []
    for target in LINK.findall(cell):
        path = target.partition("#")[0]
        assert path.startswith(GENERATED) or (PAGE.parent / path).is_file(), f"{target} is not there"
        found.append(target)
    for code in CODE.findall(cell):
        if re.match(r"(bash launch\.sh|steering-factory) ", code):
            found.append(code)  # that it is a command is held by the test of all printed commands
        elif module := re.match(r"python -m ([\w.]+)", code):
            assert importlib.util.find_spec(module[1]) is not None, f"{code}: no such module"
            found.append(code)
        elif re.match(r"(tests|docs|factory|eval_suite|\.ci)/", code):
            assert (ROOT / code).exists(), f"{code} is not there"
            found.append(code)
    return found


def test_every_chapter_of_the_doors_has_rows():
    assert {chapter for chapter, *_ in rows()} == set(CHAPTERS) and len(rows()) > 40


@pytest.mark.parametrize(("promise", "cell"), [row[1:] for row in rows()], ids=lambda text: text[:50])
def test_a_promise_names_what_shows_it(promise, cell):
    assert shown(cell) or "README" in cell, f"'{promise}' names no page, command or test"

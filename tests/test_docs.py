"""README and docs/: what docstrings cite is there, links lead somewhere, and what is printed runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CITED = re.compile(r"SPEC(?:\.md)?(?:\s+section)?\s+(A?\d+(?:\.\d+)?)(?:-(A?\d+))?")
SOURCES = [path for room in ("factory", "plugins", "eval_suite", "model_zoo") for path in (ROOT / room).rglob("*.*")]


def cited() -> dict[str, str]:
    """Every section and choice of the specification that code and cards cite, with a file that does."""
    found = {}
    for path in SOURCES:
        if path.suffix in (".py", ".yaml"):
            for first, last in CITED.findall(path.read_text(encoding="utf-8")):
                numbers = range(int(first[1:]), int(last[1:]) + 1) if last else ()
                found |= dict.fromkeys([first, *(f"A{n}" for n in numbers)], str(path.relative_to(ROOT)))
    return found


def test_every_cited_section_of_the_specification_is_there():
    page = (DOCS / "SPEC.md").read_text(encoding="utf-8")
    there = set(re.findall(r"^#+ (\d+(?:\.\d+)?) ", page, re.MULTILINE)) | set(re.findall(r"</a>(A\d+) \|", page))
    found = cited()
    assert len(found) > 15
    assert not {name: file for name, file in found.items() if name not in there}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("reference/") and "../reference/" not in target:  # made as the site is built
            assert (page.parent / target).exists(), target

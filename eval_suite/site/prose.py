"""Docstrings as Markdown: formulas stay as they are set, sources and the specification are linked."""

from __future__ import annotations

import re
from functools import cache
from inspect import cleandoc
from pathlib import Path
from unicodedata import normalize

SPECIFICATION = Path(__file__).parents[2] / "docs" / "SPEC.md"
SPEC = re.compile(r"\bSPEC(?:\.md)?(?: section)?\s+(A?)(\d+(?:\.\d+)?)|\b(A)((?:1\d|20|[1-9])(?![\d.]))\b")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
CODE = re.compile(r"(``?[^`]+``?)")


def markdown(docstring: str | None, root: str) -> str:
    """A docstring's text; ``root`` leads from the page to the documents' top, as in ``../../``."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n", cleandoc(docstring or "")):
        lines = block.split("\n")
        head = [line for line in lines if not line.startswith("    ")]
        formula = [line[4:] for line in lines if line.startswith("    ")]
        if head and formula and lines.index(head[-1]) > lines.index("    " + formula[0]):  # a formula, then its notes
            blocks += [fenced("\n".join(formula)), text(" ".join(head), root)]
            continue
        if head:
            blocks.append(text(" ".join(head), root))
        if formula:
            blocks.append(fenced("\n".join(formula)))
    return "\n\n".join(block for block in blocks if block)


def fenced(lines: str, language: str = "text") -> str:
    """A block of code, however many backticks it holds."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", lines) or [""]))
    return f"{fence}{language}\n{lines}\n{fence}"


def text(words: str, root: str) -> str:
    """One paragraph on one line: ``names`` as code, all else as it is read, with links."""
    parts = CODE.split(" ".join(words.split()))
    return "".join(f"`{part.strip('`')}`" if i % 2 else _linked(_escaped(part), root) for i, part in enumerate(parts))


def cell(words: str) -> str:
    """Words that do not end the cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\|", words).replace("\n", " ")


def _escaped(words: str) -> str:
    return re.sub(r"([*_\[\]<>|#])", r"\\\1", words)


def _linked(words: str, root: str) -> str:
    words = SPEC.sub(lambda m: f"[{m[0]}]({root}SPEC.md{_anchor(m[1] or m[3], m[2] or m[4])})", words)
    return ARXIV.sub(lambda m: f"[{m[0]}](https://arxiv.org/abs/{m[1]})", words)


def _anchor(choice: str, number: str) -> str:
    """The place of a section or a choice in the specification; none for a section that it leaves out."""
    return f"#a{number}" if choice else f"#{place}" if (place := _places().get(number)) else ""


@cache
def _places() -> dict[str, str]:
    """Each section's number, and the name that its heading has in a link."""
    headings = re.findall(r"^#+ ((\d+(?:\.\d+)?) .*)$", SPECIFICATION.read_text(encoding="utf-8"), re.MULTILINE)
    return {number: slug(heading) for heading, number in headings}


def slug(heading: str) -> str:
    """What a heading is called in a link to it."""
    plain = normalize("NFKD", heading).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-")


def sentences(words: str) -> list[str]:
    """The sentences and clauses of a docstring."""
    return [each.strip() for each in re.split(r"(?<=[.;:])\s+(?=[A-Z`])|;\s+", " ".join(words.split())) if each.strip()]


def meaning(name: str, docstring: str) -> str:
    """What a docstring says of a parameter: the clauses that name it."""
    return "; ".join(
        clause.rstrip(".;:") for clause in sentences(docstring) if re.search(rf"``{name}(?::[^`]*)?``", clause)
    )


def ours(docstring: str) -> str:
    """The sentences that call a choice ours, as one text."""
    whole = re.split(r"(?<=[.])\s+(?=[A-Z])", " ".join(cleandoc(docstring).split()))
    return " ".join(each for each in whole if re.search(r"\bours?\b", each, re.IGNORECASE))

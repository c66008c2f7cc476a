"""What a diagnostic has to say about a whole run: sentences with their numbers, tables and figures, for report and
results.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import matplotlib.figure

Cell = str | int | float | None


@dataclass(frozen=True)
class Claim:
    """What a paper says; ``parts`` are the tests that it takes."""

    says: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One sentence and the numbers in it; ``holds`` answers it where it is a claim put to the test, None where it is
    not.

    ``p`` is that of the claim's null, as measured; a run corrects those of all its findings. ``part``: CLAIM/PART,
    of which claim of a paper it is one test (see ``factory.diagnose.claims``).
    """

    text: str
    holds: bool | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    p: float | None = None
    part: str | None = None


@dataclass(frozen=True)
class Table:
    """A small table; ``name`` is the stem of its CSV file."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A figure that ``draw`` puts on an empty matplotlib figure of ``size`` inches; ``name`` is the stem of its file.

    ``caption`` says what is against what, from how many samples.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[matplotlib.figure.Figure], None]
    size: tuple[float, float] = (10.0, 4.2)


@dataclass(frozen=True)
class JsonFile:
    """A JSON file for other programs, ``name``.json beside the tables; ``content`` is JSON-able. In ``lines``, a list
    of which name.jsonl has one entry a line.
    """

    name: str
    content: Any
    lines: bool = False


@dataclass(frozen=True)
class Predictor:
    """A metric of a prompt that may tell what steering does to it. ``toward(value, direction)`` makes it one of the
    modality steered to, which ``name`` says.
    """

    metric: str
    name: str
    toward: Callable[[float, str], float] = lambda value, direction: value


@dataclass(frozen=True)
class Summary:
    """A diagnostic's findings, tables and figures under one title; ``claims`` by name are those of which findings are
    parts, ``predictors`` the metrics to be held against what steering does. One that ``leads`` is told first.
    """

    title: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    predictors: tuple[Predictor, ...] = ()
    leads: bool = False
    documents: tuple[JsonFile, ...] = ()

    @property
    def shown(self) -> bool:
        """Whether it has anything for a reader; one that offers predictors alone has not."""
        return bool(self.findings or self.tables or self.figures)

    def under(self, label: str, titled: bool = False) -> Summary:
        """The same with file names of its own: those of several diagnostics of one type must not meet. ``titled``: its
        title is its own too.
        """
        own = lambda parts: tuple(replace(part, name=f"{label}-{part.name}") for part in parts)
        title = f"{self.title} ({label})" if titled else self.title
        return replace(
            self, title=title, tables=own(self.tables), figures=own(self.figures), documents=own(self.documents)
        )

    def record(self) -> dict[str, Any]:
        """The part that belongs in results.json: everything but the drawings."""
        return {
            "title": self.title,
            "findings": [{"text": f.text, "holds": f.holds, "values": dict(f.values)} for f in self.findings],
            "tables": [
                {"name": t.name, "title": t.title, "columns": list(t.columns), "rows": [list(r) for r in t.rows]}
                for t in self.tables
            ],
        }

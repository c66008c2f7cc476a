"""What a run would refuse: kept while a plan says all it can, and then the plan's own refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from factory.blame import blaming
from factory.errors import UserError
from factory.recipe import Recipe
from factory.terminal import Console


@dataclass
class Refusal:
    """Mistakes in the order in which a run meets them, each once."""

    recipe: Recipe
    lines: list[str] = field(default_factory=list)
    fetched: Sequence[str] = ()
    """What is not here and is no mistake, as the run gets it."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a ``UserError`` inside, told with its place as a run tells it."""
        try:
            with blaming(self.recipe):
                yield
        except UserError as error:
            self.add(str(error))

    def add(self, line: str) -> None:
        """Keep a line that is told with its place."""
        if line not in self.lines and not any(each in line for each in self.fetched):
            self.lines.append(line)

    def say(self, console: Console) -> None:
        """Print what was kept so far: a plan's tables may take a while, and stand between it and the end."""
        for line in self.lines:
            console.print("refused:", line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def tell(self) -> None:
        """Raises ``UserError`` with all that was kept, a line each; the first is what the run says."""
        if self.lines:
            error = UserError("\n".join(self.lines))
            error.placed = True
            raise error


def say_missing(console: Console, line: str) -> None:
    """A line on what is not here, or not usable, and ends no run."""
    console.print("missing:", line, style="yellow", markup=False, highlight=False, soft_wrap=True)

"""Printing what files hold: no label, answer or file name may move the cursor, colour the screen or hide text."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from factory.plain import shown


class Console(rich.console.Console):
    """rich's, with every text made safe as it is rendered; its own colours and cursor moves stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def warn(line: str) -> None:
    """One line on stderr that a person should see, whole and as it is."""
    Console(stderr=True).print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


@cache
def console() -> Console:
    """The one on which bars are drawn and lines between them are printed."""
    return Console()

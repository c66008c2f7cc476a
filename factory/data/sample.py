"""The sample that a conflict benchmark yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from factory.data.sources import PICTURE_AND_TEXT, Sources


def no_picture() -> Image.Image:
    """What shows the picture of a sample that has none. Raises ``OSError``."""
    raise OSError("it has no picture")


@dataclass(frozen=True)
class ConflictSample:
    """Two sources that contradict each other about one question: an image and a text context, or two texts.

    ``answer_vision`` is the answer by the first of the ``sources``, ``answer_text`` that by the second, ``context`` the
    second's text. Of two texts ``context_a`` is the first's.

    ``load_image`` returns the RGB picture and raises ``OSError`` when it cannot be read, so that one
    unreadable file is counted and named instead of ending a run. ``tags`` are tidy facts for the report. ``images``
    are the files that it reads, where it reads any: a mended one makes another sample. ``place`` is where it stands
    (file:line), for messages, and ``flaw`` why it cannot be used, both where its reader knows.
    """

    id: str
    task: str
    question: str
    context: str
    answer_vision: str
    answer_text: str
    load_image: Callable[[], Image.Image] = no_picture
    tags: Mapping[str, int | str] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    place: str = ""
    flaw: str = ""
    context_a: str = ""
    sources: Sources = PICTURE_AND_TEXT

    @property
    def answers(self) -> dict[str, str]:
        """The answer by each source, by its name, the first source's first."""
        return dict(zip(self.sources.names, (self.answer_vision, self.answer_text), strict=True))

    @property
    def contexts(self) -> dict[str, str]:
        """The text of each source that has one, by its name."""
        first, second = self.sources.names
        return {second: self.context} if self.sources.pictured else {first: self.context_a, second: self.context}

"""The sample that a conflict benchmark yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class ConflictSample:
    """An image and a text context that contradict each other about one question.

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
    load_image: Callable[[], Image.Image]
    tags: Mapping[str, int | str] = field(default_factory=dict)
    images: tuple[Path, ...] = ()
    place: str = ""
    flaw: str = ""

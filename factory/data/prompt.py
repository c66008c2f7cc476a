"""A prompt is a sequence of segments, each with the role its tokens will carry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import count, groupby

from PIL import Image

from factory.data.sources import PICTURE_AND_TEXT, Role, Sources

USER_TEXT = (Role.CONTEXT_A, Role.CONTEXT, Role.QUESTION, Role.OPTIONS)
SPEAKERS = {Role.SYSTEM: "system", Role.ANSWER: "assistant"}


@dataclass(frozen=True)
class Segment:
    """One piece of a prompt: either ``text`` or, for ``Role.IMAGE``, an ``image``. A text that is ``inline`` goes on
    after a space, where others begin a line. An answer that is not ``learnt`` is read in training, and no more.

    ``lacking``: what a text that speaks of other segments says instead where those of a role are left out (nothing: it
    is left out with them).
    """

    role: Role
    text: str = ""
    image: Image.Image | None = None
    inline: bool = False
    learnt: bool = True
    lacking: tuple[tuple[Role, str], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """Segments in reading order; an ``ANSWER`` segment closes a user turn (worked examples have one each). ``sources``
    are those of the conflict that it is about, if it is about one. ``task`` names its kind, where it is known.
    """

    segments: tuple[Segment, ...]
    sources: Sources = PICTURE_AND_TEXT
    task: str = ""

    @property
    def images(self) -> list[Image.Image]:
        return [s.image for s in self.segments if s.image is not None]

    @property
    def answered(self) -> bool:
        """Whether the last turn is the assistant's, so that nothing is left to generate."""
        return bool(self.segments) and self.segments[-1].role == Role.ANSWER

    def append(self, *segments: Segment) -> Prompt:
        """The prompt with ``segments`` after all others: ``T || P`` of AMPS eq. 9."""
        return replace(self, segments=self.segments + segments)

    def prepend(self, *segments: Segment) -> Prompt:
        return replace(self, segments=segments + self.segments)

    def before_question(self, segment: Segment) -> Prompt:
        """The prompt with ``segment`` between context and the last question (layout of MC²)."""
        at = max((i for i, s in enumerate(self.segments) if s.role == Role.QUESTION), default=len(self.segments))
        return replace(self, segments=(*self.segments[:at], segment, *self.segments[at:]))

    def without(self, *roles: Role) -> Prompt:
        """The prompt without the segments of ``roles``; others say what they say where these are ``lacking``."""
        said = (_said_without(s, roles) for s in self.segments if s.role not in roles)
        return replace(self, segments=tuple(s for s in said if s is not None))

    def only(self, direction: str) -> Prompt:
        """The prompt with the source of that name alone. Raises ``UserError`` for a name that no source has."""
        return self.without(self.sources.other(direction).role)

    def with_pictures(self, kept: Collection[int]) -> Prompt:
        """The prompt with those of its images alone whose places among them, from 0, are ``kept``."""
        place = count()
        return replace(self, segments=tuple(s for s in self.segments if s.image is None or next(place) in kept))

    def images_first(self) -> Prompt:
        """The prompt with the images of each turn before its texts, as templates want it that write them there. A text
        that an image parted from another goes on after a space.
        """
        segments: list[Segment] = []
        for _, turn in groupby(self.segments, lambda s: SPEAKERS.get(s.role, "user")):
            images: list[Segment] = []
            texts: list[Segment] = []
            after = False
            for segment in turn:
                shown = segment.image is not None
                if shown:
                    images.append(segment)
                else:
                    texts.append(replace(segment, inline=True) if texts and after else segment)
                after = shown
            segments += images + texts
        return replace(self, segments=tuple(segments))

    def messages(self, write: Callable[[int, Segment], str] = lambda _, s: s.text) -> list[dict]:
        """The chat-template form: turns of content items; ``write(index, segment)`` gives the text of a segment.

        Texts of one turn that follow each other are joined by newlines (layout of MC²), inline ones by a space.
        """
        turns: list[dict] = []
        for i, segment in enumerate(self.segments):
            speaker = SPEAKERS.get(segment.role, "user")
            if not turns or turns[-1]["role"] != speaker:
                turns.append({"role": speaker, "content": []})
            content = turns[-1]["content"]
            if segment.image is not None:
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += ("\n", " ")[segment.inline] + write(i, segment)
            else:
                content.append({"type": "text", "text": write(i, segment)})
        return turns

    @property
    def digest(self) -> str:
        """Hash of roles, texts and images."""
        h = hashlib.sha256()
        for s in self.segments:
            h.update(f"{int(s.role)}:{' ' * s.inline}{s.text}\0".encode())
            if s.image is not None:
                h.update(f"{s.image.mode} {s.image.size}\0".encode() + s.image.tobytes())
        return h.hexdigest()[:16]


def _said_without(segment: Segment, roles: Collection[Role]) -> Segment | None:
    """A segment as it is where those of ``roles`` are left out; None where it says nothing then."""
    for role, text in segment.lacking:
        if role in roles:
            return replace(segment, text=text) if text else None
    return segment

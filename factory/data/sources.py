"""Whose tokens are whose: the roles of tokens, and the two sources that a conflict sets against each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from factory.errors import UserError, did_you_mean


class Role(IntEnum):
    """Role of one token. ``TEMPLATE`` is what the chat template adds; ``ANSWER`` is an assistant turn. Of two texts
    that contradict each other the first is ``CONTEXT_A``, in the place of an image, and the second ``CONTEXT``.
    """

    PAD = 0
    TEMPLATE = 1
    SYSTEM = 2
    IMAGE = 3
    CONTEXT = 4
    QUESTION = 5
    OPTIONS = 6
    INSTRUCTION = 7
    ANSWER = 8
    CONTEXT_A = 9


SAID = {"vision": "the image", "text": "the text"}


def in_words(name: str) -> str:
    """How a report calls the source ``name``: "the image", "the text", "the memo"."""
    return SAID.get(name, f"the {name.replace('_', ' ')}")


@dataclass(frozen=True)
class Side:
    """One side of a conflict. ``name`` is the direction toward it, ``role`` that of its tokens, ``letter`` what it is
    called in the names of metrics (R_V).
    """

    name: str
    role: Role
    letter: str

    @property
    def said(self) -> str:
        """How a report calls it."""
        return in_words(self.name)


@dataclass(frozen=True)
class Sources:
    """The two sources of a conflict; a direction is the name of one of them."""

    first: Side
    second: Side

    @property
    def names(self) -> tuple[str, str]:
        return self.first.name, self.second.name

    @property
    def pictured(self) -> bool:
        """Whether one of them is a picture."""
        return self.first.role == Role.IMAGE

    def __getitem__(self, name: str) -> Side:
        """The source of a name. Raises ``UserError`` for a name that neither has."""
        for source in (self.first, self.second):
            if source.name == name:
                return source
        hint = did_you_mean(name, self.names)
        raise UserError(f"'{name}' is no source of this conflict.{hint} There are: {', '.join(self.names)}")

    def other(self, name: str) -> Side:
        """The source that stands against the one of a name. Raises ``UserError`` for a name that neither has."""
        return self.second if self[name] is self.first else self.first


PICTURE_AND_TEXT = Sources(Side("vision", Role.IMAGE, "V"), Side("text", Role.CONTEXT, "T"))


def two_texts(first: str = "text_a", second: str = "text_b") -> Sources:
    """The sources of a conflict between two texts of these names."""
    return Sources(Side(first, Role.CONTEXT_A, "A"), Side(second, Role.CONTEXT, "B"))

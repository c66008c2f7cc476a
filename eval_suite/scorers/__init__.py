"""From an answer's text to a score, by a stated rule with an id and a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Scorer:
    """Base of the scorers that others ask for by name: ``lookup("scorer", name)``, a class that is used as it is."""

    @staticmethod
    def missing() -> str | None:
        """What has to be installed before anything can be scored; None where nothing has."""
        return None

    @staticmethod
    def lacking() -> str | None:
        """Which of its scores cannot be computed here, and why; None where all can. Asked where nothing is missing."""
        return None

    @staticmethod
    def score(texts: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Scores of all texts together, by name; the texts and each one's references go by the sample's id."""
        raise TypeError("a scorer must define score(texts, references)")

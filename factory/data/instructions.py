"""The instructions that ask for one source of a conflict: for a picture or its text word for word from the papers, for
any other two sources in the same words (ours).
"""

from __future__ import annotations

from typing import Literal

from factory.data.prompt import Role, Segment
from factory.data.sources import PICTURE_AND_TEXT, Sources

Style = Literal[
    "amps_eq9", "amps_rq1", "mc2", "mc2_prioritize", "mc2_original", "anchor", "anchor_prioritize", "anchor_focus"
]

_MC2_VISION = (
    "In case there is an inconsistency between the text context and the image content, "
    "you should follow the image content rather than the text context. "
)
INSTRUCTIONS: dict[str, dict[str, str]] = {
    # AMPS eq. 9: the contrastive pair P+ and P-
    "amps_eq9": {"vision": "based on visual context", "text": "based on text context"},
    # AMPS sec. 4.1 (RQ1)
    "amps_rq1": {
        "vision": "Respond to the question based only on the image context",
        "text": "Follow the text context rather than the image content",
    },
    # MC² prompt.py: template1, variant 1 and variant 2 (SPEC.md 3.2); the image instruction is the same in all. Each
    # ends with a space, which stands before the newline that joins it to the question
    "mc2": {
        "vision": _MC2_VISION,
        "text": "In case there is an inconsistency between the Text Context and the input image content, "
        "you must rely on the text context rather than the input image content. ",
    },
    "mc2_prioritize": {
        "vision": _MC2_VISION,
        "text": "In case there is an inconsistency between the text context and the input image content, "
        "prioritize the information from the text context. ",
    },
    "mc2_original": {
        "vision": _MC2_VISION,
        "text": "In case there is an inconsistency between the text context and the image content, "
        "you should follow the text context rather than the image content. ",
    },
    # Instruction Anchor app. B and C.3; the wordings for the image are ours, with the sources exchanged
    "anchor": {
        "vision": "You should follow the visual content rather than the textual context.",
        "text": "You should follow the textual context rather than the visual content.",
    },
    "anchor_prioritize": {
        "vision": "Prioritize the information in the visual elements over any text",
        "text": "Prioritize the information in the text over any visual elements",
    },
    "anchor_focus": {
        "vision": "Focus on the visual content; ignore textual context.",
        "text": "Focus on the textual context; ignore visual content.",
    },
}

_DISAGREE = "In case there is an inconsistency between {first} and {second}, "
OF_ANY: dict[Style, str] = {
    "amps_eq9": "based on {this}",
    "amps_rq1": "Follow {this} rather than {other}",
    "mc2": _DISAGREE + "you must rely on {this} rather than {other}. ",
    "mc2_prioritize": _DISAGREE + "prioritize the information from {this}. ",
    "mc2_original": _DISAGREE + "you should follow {this} rather than {other}. ",
    "anchor": "You should follow {this} rather than {other}.",
    "anchor_prioritize": "Prioritize the information in {this} over {other}",
    "anchor_focus": "Focus on {this}; ignore {other}.",
}
"""The same wordings for any two sources, by what they are called."""


def instruction(style: Style, direction: str, sources: Sources = PICTURE_AND_TEXT) -> Segment:
    """The segment P that asks for ``direction``, the name of one of ``sources``."""
    this, other = sources[direction], sources.other(direction)
    if sources == PICTURE_AND_TEXT:
        return Segment(Role.INSTRUCTION, INSTRUCTIONS[style][direction])
    names = {"this": this.said, "other": other.said, "first": sources.first.said, "second": sources.second.said}
    return Segment(Role.INSTRUCTION, OF_ANY[style].format_map(names))

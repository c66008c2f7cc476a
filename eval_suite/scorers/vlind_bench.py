"""Rule ``vlind/1``: the released scoring of VLind-Bench (github.com/klee972/VLind-Bench at 62bf96e, eval/).

An answer is the first of its words, parted by spaces and without full stops and commas, that is true or false. A stage
is passed where the statement that holds is called true and the other false.
"""

from __future__ import annotations

RULE = "vlind/1"


def answer(text: str) -> str | None:
    """True or False as the text has it, None where it has neither."""
    words = text.lower().replace("\n", " ").replace(",", "").replace(".", "").split(" ")
    found = next((word for word in words if word in ("true", "false")), None)
    return found.capitalize() if found else None

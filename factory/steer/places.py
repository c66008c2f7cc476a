"""The token choices of learn-to-steer and AMPS (SPEC A13)."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import StringConstraints

from factory.steer.where import Where

ApplyTo = Annotated[str, StringConstraints(pattern=r"^(all|generated_only|last_and_generated|from_index:\d+)$")]


def place(apply_to: str) -> Where:
    """all (the learn-to-steer code), generated_only, last_and_generated, or from_index:K (all but the first K prompt
    tokens).
    """
    if index := re.fullmatch(r"from_index:(\d+)", apply_to):
        return Where(take=f"from:{index[1]}")
    return {"all": Where(), "generated_only": Where(role="none"), "last_and_generated": Where(take="last:1")}[apply_to]

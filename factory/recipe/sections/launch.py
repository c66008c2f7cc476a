"""`report:`, `run:` and `launch:`: what is shown, where runs are kept, and on how many processes they go."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from factory.recipe.nodes import Node, Spec, distinct, distinct_labels, plugin
from factory.recipe.sections.words import Text


class ReportSpec(Spec):
    """What the report shows; ``also`` are reports that are written beside the page which every run has.

    ``plots``: draw figures too, that of a tuning's loss among them.
    """

    plots: bool = True
    also: Annotated[tuple[Annotated[Node, plugin("report")], ...], AfterValidator(distinct_labels)] = Field(
        (), exclude_if=lambda nodes: not nodes
    )


class RunSpec(Spec):
    """Where runs are kept; a run's folder is ``root/name``.

    ``root`` is the folder of all runs.
    """

    root: Text = "runs"


class LaunchSpec(Spec):
    """How many ``processes`` on each host; ``hostfile`` (lines ``HOST slots=N``) names the hosts, null is this machine.

    ``zero`` is the ZeRO stage. 3 cuts the model over the processes, for one that no GPU holds; 1 and 2 cut what
    training keeps. ``offload`` names what ZeRO keeps in the host's memory while training.
    """

    processes: PositiveInt = 1
    hostfile: Text | None = None
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    offload: Annotated[tuple[Literal["optimizer", "parameters"], ...], AfterValidator(distinct)] = ()

    @model_validator(mode="after")
    def _offload_fits(self) -> LaunchSpec:
        least = max((3 if part == "parameters" else 1 for part in self.offload), default=0)
        if self.zero < least:
            raise ValueError(f"offload of {' and '.join(self.offload)} needs zero: {least} or more")
        return self

"""No steering: the model's own preference."""

from factory.registry import register
from factory.steer import PromptMethod


@register("steering", "none")
class NoSteering(PromptMethod):
    """The model as it is; the base of every comparison."""

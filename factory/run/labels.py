"""The labels that a run's numbers are read by: of the model as it is, and of what other methods are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from factory.recipe import Recipe
from factory.steer import PromptMethod, Steerer

AS_IT_IS = ("none", "unsteered", "model")
"""What the model as it is is called where a recipe has no method that changes nothing: the first that is free."""

CURVE = "curve"
"""The split of rows whose samples are the share of test that is asked at every strength (``evaluate.curve``)."""


@dataclass(frozen=True)
class Labels:
    """Labels of rows: ``unsteered`` is the model as it is; ``reference`` the method that others are tested against and
    whose strengths the oracle chooses among; ``controls`` name the random control of a method, where it has one."""

    unsteered: str = AS_IT_IS[0]
    reference: str | None = None
    controls: Mapping[str, str] = field(default_factory=dict)


def changes_nothing(method: type) -> bool:
    """Whether a plugin class leaves the model and its prompts as they are."""
    return issubclass(method, PromptMethod) and method.rewrite is PromptMethod.rewrite


def labels(recipe: Recipe) -> Labels:
    """The labels of a recipe's run. Where it names no ``evaluate.reference``, the first method that offers itself as a
    yardstick is it."""
    methods = {node.label: node.plugin for node in recipe.steering}
    tuners = [contender.tuner.label for contender in recipe.compare.tuners] if recipe.compare else []
    taken = (*methods, *tuners)
    free = next(name for name in (*AS_IT_IS, " ".join(("as it is", *taken))) if name not in taken)
    unsteered = next((label for label, method in methods.items() if changes_nothing(method)), free)
    yardstick = next((label for label, method in methods.items() if getattr(method, "yardstick", False)), None)
    return Labels(unsteered, recipe.evaluate.reference or yardstick, _controls(recipe))


def _controls(recipe: Recipe) -> dict[str, str]:
    """Of each steering method that is no control itself the first control of its plugin, else the first of all."""
    steerers = [(node, made) for node in recipe.steering if isinstance(made := node.make(), Steerer)]
    own = {node.type: node.label for node, made in reversed(steerers) if made.control == "plugin"}
    for_all = next((node.label for node, made in steerers if made.control == "all"), None)
    beside = {node.label: own.get(node.type, for_all) for node, made in steerers if not made.control}
    return {label: control for label, control in beside.items() if control is not None}

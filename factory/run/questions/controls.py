"""The controls that stand beside a recipe's conflicts: the same benchmark without a conflict, asked of every method."""

from __future__ import annotations

from factory.benchmark import Conflicts
from factory.blame import wrong
from factory.errors import did_you_mean
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import Node, seen_as
from factory.run.questions.suite import Suite

HEAD = "control: "


def controls(recipe: Recipe) -> dict[str, Node]:
    """The controls of a recipe that compares methods, by name: those that ``evaluate.controls`` names, or all that its
    benchmark can give. Raises ``UserError`` for one that it cannot give, or whose label is taken.
    """
    if not (recipe.data and recipe.steering) or recipe.train or recipe.tune or recipe.compare:
        return {}
    made = recipe.data.make()
    given = made.controls if isinstance(made, Conflicts) else {}
    asked = recipe.evaluate.controls
    for name in asked or ():
        if name not in given:
            there = f"{did_you_mean(name, given)} There are: {', '.join(given) or 'no controls'}"
            line = f"'{recipe.data.type}' has no control '{name}'.{there}"
            raise wrong(recipe.evaluate, "controls", line)
    taken = {seen_as(node.label) for node in recipe.benchmarks}
    found = {}
    for name in given if asked is None else asked:
        label = f"{HEAD}{name}"
        if seen_as(label) in taken:
            line = f"a benchmark is called '{label}' too; name it otherwise with 'as:', or leave that control out"
            raise wrong(recipe.evaluate, "controls", line)
        params = recipe.data.params.model_copy(update=dict(given[name]))
        found[name] = recipe.data.model_copy(update={"label": label, "params": params})
    return found


def beside(recipe: Recipe, limit: int | None, model: Wanted | None = None) -> list[Suite]:
    """The controls of the recipe's conflicts, once these are known to be there."""
    most = recipe.evaluate.control_questions
    asked = min(limit or most, most)
    return [Suite(node, recipe, asked, model, control) for control, node in controls(recipe).items()]

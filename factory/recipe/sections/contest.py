"""`compare:`: tuners side by side on equal terms."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from factory.recipe.explain import Loc, explain, refusal
from factory.recipe.nodes import Node, Spec, distinct, plugin
from factory.recipe.sections.training import TermsSpec, TuneDataSpec, TuneSpec
from factory.recipe.sections.words import FILE_NAME, FileName


class ContenderSpec(Spec):
    """A tuner in a comparison and the learning rates it may choose among; null are those that the tuner itself proposes
    (its ``sweep``). Where a task has nothing to choose on, one rate is named, or null is the tuner's default.

    ``tuner`` is the method; ``learning_rates`` are those it may choose among.
    """

    tuner: Annotated[Node, plugin("tuner")]
    learning_rates: (
        Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), AfterValidator(distinct)] | None
    ) = None


class TaskSpec(Spec):
    """What every tuner learns, and how it is scored: on each benchmark of ``score``, at the learning rate that scores
    best on ``choose``.

    ``name`` is that of its folders; ``data`` is what is learnt.
    """

    name: FileName
    data: TuneDataSpec
    choose: Annotated[Node, plugin("benchmark")] | None = None
    score: Annotated[tuple[Annotated[Node, plugin("benchmark")], ...], Field(min_length=1)]

    def nodes(self) -> list[tuple[tuple[str | int, ...], Node]]:
        """Its benchmarks, each with its place in the task."""
        chosen = [(("choose",), self.choose)] if self.choose else []
        return [*chosen, *((("score", i), node) for i, node in enumerate(self.score))]

    @model_validator(mode="after")
    def _chooses_elsewhere(self) -> TaskSpec:
        if self.choose and any(
            node.type == self.choose.type and node.params == self.choose.params for node in self.score
        ):
            raise refusal([(("choose",), "learning rates would be chosen on what is scored; choose on another split")])
        return self


class CompareSpec(TermsSpec):
    """Tuners side by side on equal terms: each learns each task from the recipe's model anew. ``diagnose_on``: prompts
    of a task's first scored benchmark on which the recipe's diagnostics look at every tuned model.

    ``tuners`` are compared, each on all ``tasks``.
    """

    tuners: Annotated[tuple[ContenderSpec, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    diagnose_on: PositiveInt = 100

    @model_validator(mode="after")
    def _names_are_apart(self) -> CompareSpec:
        labels, names = [c.tuner.label for c in self.tuners], [task.name for task in self.tasks]
        mistakes: list[tuple[Loc, str]] = [
            (("tuners", i, "tuner"), f"another one is called '{label}' too; name one with 'as:'")
            for i, label in enumerate(labels)
            if label in labels[:i]
        ]
        mistakes += [
            (
                ("tuners", i, "tuner"),
                f"'{label}' cannot name a file; name it with 'as:', of letters, digits, '.', '_' and '-'",
            )
            for i, label in enumerate(labels)
            if not re.fullmatch(FILE_NAME, label)
        ]
        mistakes += [
            (("tasks", i, "name"), f"another task is called '{name}' too")
            for i, name in enumerate(names)
            if name in names[:i]
        ]
        pairs = [(i, k, f"{task}-{label}") for i, task in enumerate(names) for k, label in enumerate(labels)]
        mistakes += [
            (("tuners", k, "tuner"), f"with task '{names[i]}' it would share the folder {name}; name one with 'as:'")
            for n, (i, k, name) in enumerate(pairs)
            if any(name == other and (names[i], labels[k]) != (names[j], labels[l]) for j, l, other in pairs[:n])
        ]
        nodes = [(("tasks", i, *loc), node) for i, task in enumerate(self.tasks) for loc, node in task.nodes()]
        seen = [node.label for _, node in nodes]
        mistakes += [
            (loc, f"another benchmark is called '{node.label}' too; name one with 'as:'")
            for k, (loc, node) in enumerate(nodes)
            if node.label in seen[:k]
        ]
        mistakes += [
            (
                ("tuners", i, "learning_rates"),
                f"task '{task.name}' has no 'choose', so that no rate can be chosen: name one",
            )
            for i, c in enumerate(self.tuners)
            for task in self.tasks
            if task.choose is None and c.learning_rates and len(c.learning_rates) > 1
        ]
        if not mistakes:
            mistakes = [found for i, task in enumerate(self.tasks) for found in self._untrainable(i, task)]
        if mistakes:
            raise refusal(mistakes)
        return self

    def _untrainable(self, number: int, task: TaskSpec) -> list[tuple[Loc, str]]:
        """What a tuning of its own would refuse of a task and these terms."""
        try:
            self.tune(self.tuners[0], task, 1.0)
        except ValidationError as error:
            found = explain(error, TuneSpec)
            return [(("tasks", number, *loc) if loc[:1] == ("data",) else loc, why) for loc, why in found]
        return []

    def rates(self, contender: ContenderSpec, task: TaskSpec) -> tuple[float, ...]:
        """The learning rates of one tuner on one task, in ascending order."""
        method = contender.tuner.plugin
        return tuple(sorted(contender.learning_rates or (method.sweep if task.choose else (method.learning_rate,))))

    def tune(self, contender: ContenderSpec, task: TaskSpec, rate: float) -> TuneSpec:
        """One tuning of the comparison as a recipe of its own would have it."""
        terms = {name: getattr(self, name) for name in TermsSpec.model_fields}
        return TuneSpec(tuner=contender.tuner, data=task.data, learning_rate=rate, **terms)

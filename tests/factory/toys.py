"""Toy plugins that the recipe and command-line tests name, as a person's own plugin file would hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from factory.benchmark import Benchmark
from factory.diagnose import Diagnostic, Row
from factory.recipe.nodes import Node, plugin
from factory.registry import Params, register
from factory.steer import Steerer
from factory.steer.around import Around


class Schedule(Params):
    warm_up: int = 0
    floor: float = 0.0


@register("benchmark", "toy_bench")
class ToyBench(Benchmark):
    """A benchmark of one picture."""

    class Params(Params):
        scoring: Literal["both_orders", "order1"] = "both_orders"
        per_task: dict[str, int] = {"train": 1}  # noqa: RUF012

    def pictures(self, folder: Path) -> list[tuple[str, Path]]:
        return [("Toy", folder / "toy_bench.png")]


@register("diagnostic", "toy_ratio")
class ToyRatio(Diagnostic):
    """A diagnostic."""

    def on_prefix(self, *_: Any, **__: Any) -> list[Row]:
        return []


@register("steering", "toy_around")
class ToyAround(Around):
    """A method around another one, which a recipe has to name."""


@register("steering", "toy_push")
class ToyPush(Steerer):
    """A method with every sort of parameter."""

    class Params(Params):
        beta: float | Literal["auto"] = 1.0
        layers: tuple[int, ...] = (1,)
        note: str = ""
        schedule: Schedule = Schedule()


@register("steering", "toy_needs")
class ToyNeeds(Steerer):
    """A method with a required parameter."""

    class Params(Params):
        rank: int


class Group(Params):
    members: tuple[Annotated[Node, plugin("steering")], ...] = ()


@register("steering", "toy_mix")
class ToyMix(Steerer):
    """A method of other methods, wherever parameters can hold one."""

    class Params(Params):
        of: Annotated[Node, plugin("steering")] | None = None
        group: Group = Group()
        by_name: dict[str, Annotated[Node, plugin("steering")]] = {}  # noqa: RUF012

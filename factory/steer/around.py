"""A method around another one: it takes the other's vectors and decides how strongly they act."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import field_validator
from torch import Tensor

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.recipe.nodes import Node, plugin
from factory.registry import Params
from factory.steer.base import Context, Direction, States, Steerer, Tensors
from factory.steer.where import Where


class AroundParams(Params):
    """``of``: the method whose vectors are taken, with its options, as a recipe names it."""

    of: Annotated[Node, plugin("steering")]

    @field_validator("of")
    @classmethod
    def _taken(cls, of: Node) -> Node:
        try:
            cls.check(inner_of(of))
        except UserError as error:
            raise ValueError(str(error)) from error
        return of

    @classmethod
    def check(cls, inner: Steerer) -> None:
        """Raises ``UserError`` where ``inner`` is none to be taken; here any is."""


class ActsLike(Steerer):
    """Acts where the ``inner`` method does: on its prompts and its tokens."""

    inner: Steerer

    def rewrite(self, prompt: Prompt, direction: Direction) -> Prompt:
        return self.inner.rewrite(prompt, direction)

    def where(self) -> Where:
        return self.inner.where()

    def placed(self, state: Tensors, layer: int) -> Where:
        return self.inner.placed(state, layer)

    def choose(self, h: Tensor, chosen: Tensor, state: Tensors) -> Tensor:
        return self.inner.choose(h, chosen, state)


class Around(ActsLike):
    """Where the inner method acts, on which prompts and tokens, and its vectors; a subclass adds the gain."""

    Params = AroundParams

    def __init__(self, params: AroundParams) -> None:
        super().__init__(params)
        self.inner = inner_of(params.of)
        self.reads, self.reads_tails = self.inner.reads, self.inner.reads_tails
        self.reads_agreeing = self.inner.reads_agreeing

    def unfit(self, diagnostic: str | None, diagnostics: Sequence[str]) -> str | None:
        return self.inner.unfit(diagnostic, diagnostics)

    def variants(self) -> dict[str, Self]:
        """One around each variant of the inner method."""
        copy = lambda inner: self.params.model_copy(
            update={"of": self.params.of.model_copy(update={"params": inner.params})}
        )
        return {name: type(self)(copy(inner)) for name, inner in self.inner.variants().items()}

    def fit(self, states: States) -> Tensors:
        return self.inner.fit(states)

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        return self.inner.delta(h, state, ctx)


def inner_of(of: Node) -> Steerer:
    """The steering method that ``of`` names. Raises ``UserError`` where it adds no vectors."""
    if not issubclass(of.plugin, Steerer):
        raise UserError(f"needs a method that adds vectors to states; '{of.type}' does not")
    method: Steerer = of.make()
    return method

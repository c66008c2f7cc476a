"""A method around another one: it takes the other's vectors and decides how strongly they act."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator
from torch import Tensor

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.registry import Params, lookup
from factory.steer.base import Context, Direction, States, Steerer, Tensors
from factory.steer.where import Where


class AroundParams(Params):
    """``of``: the method whose vectors are taken, with its options, as a recipe names it."""

    of: dict[str, Any] = Field(default_factory=lambda: {"type": "static"})

    @field_validator("of")
    @classmethod
    def _known(cls, of: dict[str, Any]) -> dict[str, Any]:
        try:
            cls.check(inner_of(of))
        except UserError as error:
            raise ValueError(str(error)) from error
        return of

    @classmethod
    def check(cls, inner: Steerer) -> None:
        """Raises ``UserError`` where ``inner`` is none to be taken; here any is."""


class Around(Steerer):
    """Where the inner method acts, on which prompts and tokens, and its vectors; a subclass adds the gain."""

    Params = AroundParams

    def __init__(self, params: AroundParams) -> None:
        super().__init__(params)
        self.inner = inner_of(params.of)
        self.reads = self.inner.reads

    def variants(self) -> dict[str, Self]:
        """One around each variant of the inner method."""
        return {name: type(self)(self.params.model_copy(update={"of": {"type": v.name, **v.params.model_dump()}})) for name, v in self.inner.variants().items()}

    def rewrite(self, prompt: Prompt, direction: Direction) -> Prompt:
        return self.inner.rewrite(prompt, direction)

    def where(self) -> Where:
        return self.inner.where()

    def placed(self, state: Tensors, layer: int) -> Where:
        return self.inner.placed(state, layer)

    def fit(self, states: States) -> Tensors:
        return self.inner.fit(states)

    def choose(self, h: Tensor, chosen: Tensor, state: Tensors) -> Tensor:
        return self.inner.choose(h, chosen, state)

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        return self.inner.delta(h, state, ctx)


def inner_of(of: dict[str, Any]) -> Steerer:
    """The steering method that ``of`` names. Raises ``UserError`` where there is none such, or it adds no vectors."""
    options = dict(of)
    method = lookup("steering", str(options.pop("type", "")))
    if not issubclass(method, Steerer):
        raise UserError(f"of: this needs a method that adds vectors to states; '{method.name}' does not")
    return method(method.Params(**options))

"""Which questions of a harness's task are asked, so that those that a method was fitted on are not among them."""

from __future__ import annotations

import numpy as np
from pydantic import Field, PositiveInt

from factory.registry import Params


def shuffled(n: int, seed: int) -> list[int]:
    """0 to n - 1 in the order that numpy's generator of ``seed`` shuffles them, as the released code of PIXEL does."""
    order = np.arange(n)
    np.random.default_rng(seed).shuffle(order)
    return order.tolist()


class Drawn(Params):
    """In the order that ``seed`` shuffles a task's questions: without the first ``skip``, at most ``take``."""

    seed: int = Field(ge=0)
    skip: int = Field(0, ge=0)
    take: PositiveInt | None = None

    @property
    def protocol(self) -> str:
        return f"drawn-{self.seed}-{self.skip}-{self.take or 'all'}"

    def of(self, n: int, limit: int | None = None) -> list[int]:
        """The numbers of the questions that are asked, of ``n``, at most ``limit``, in the task's own order."""
        rest = shuffled(n, self.seed)[self.skip :]
        return sorted(rest[: min(size for size in (self.take, limit, n) if size is not None)])

"""Which tokens a forward processes, for tuners that act on some of them: found anew at each forward, never by a fixed
index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.steps import Here, Step
from factory.model.view import ModelView


@dataclass(frozen=True)
class Ending:
    """Something that ends when it is removed."""

    remove: Callable[[], None]


class Roles:
    """Knows ``step``, the roles of the tokens in the forward that is running.

    They come from ``factory.model.prefix`` where it runs the model, from the batch's own ``roles`` [B, T], from its
    ``input_ids`` where they are those of ``view.encode``, or else from the tokens: where image tokens stand is where
    the image is spliced in, and ``words_known`` is then False.
    """

    def __init__(self, view: ModelView) -> None:
        self.view = view

    def handles(self) -> list[Ending]:
        """Begin to watch the view's model, until what is returned is removed."""
        return [Ending(self.view.steps.watch())]

    @property
    def words_known(self) -> bool:
        return self.view.steps.here.step is not None

    @property
    def step(self) -> Step:
        """Raises ``UserError`` for a forward without token ids."""
        here = self.view.steps.here
        if here.step is not None:
            return here.step
        if here.fallback is None:
            here.fallback = self._from_tokens(here)
        return here.fallback

    def _from_tokens(self, here: Here) -> Step:
        if here.ids is None:
            raise UserError(
                "a tuned model needs input_ids: inputs_embeds alone do not say which tokens are the image's"
            )
        if here.follows:
            return Step(torch.full_like(here.ids, int(Role.ANSWER)), generated=True)
        roles = torch.where(here.ids == self.view.image_token_id, int(Role.IMAGE), int(Role.TEMPLATE))
        mask = here.mask
        return Step(roles * mask if isinstance(mask, Tensor) and mask.shape == roles.shape else roles)

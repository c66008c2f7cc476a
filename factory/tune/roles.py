"""Which tokens a forward processes, for tuners that act on some of them: found anew at each forward, never by a fixed
index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from factory.data.prompt import Role
from factory.errors import UserError
from factory.model.prefix import Step, encoded_step
from factory.model.view import ModelView


class Roles:
    """Keeps ``step``, the roles of the tokens in the forward that is running.

    They come from ``factory.model.prefix`` where it runs the model, from the batch's own ``roles`` [B, T], from the
    batch encoded last, or else from the tokens: where image tokens stand is where the image is spliced in, and
    ``words_known`` is then False.
    """

    def __init__(self, view: ModelView) -> None:
        self.view = view
        self.given: Tensor | None = None
        self.step: Step | None = None
        self.words_known = False

    def handles(self) -> list[RemovableHandle]:
        """Hooks on the model, which takes ``roles`` out of a batch, and on its core, which every forward goes
        through.
        """
        model, core = self.view.model, self.view.core
        return [
            model.register_forward_pre_hook(self._take, with_kwargs=True),
            core.register_forward_pre_hook(self._see, with_kwargs=True),
        ]

    def _take(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        self.given = kwargs.get("roles")
        return args, {k: v for k, v in kwargs.items() if k != "roles"}

    def _see(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given, self.given = self.given, None
        self.words_known = True
        self.step = self.view.step or (
            Step(given)
            if given is not None
            else self._infer(kwargs.get("input_ids", args[0] if args else None), kwargs)
        )

    def _infer(self, ids: Tensor | None, kwargs: dict[str, Any]) -> Step:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if ids is None:
            raise UserError(
                "a tuned model needs input_ids: inputs_embeds alone do not say which tokens are the image's"
            )
        if cache is not None and cache.get_seq_length() > 0:
            return Step(torch.full_like(ids, int(Role.ANSWER)), generated=True)
        if (step := encoded_step(self.view, ids)) is not None:
            return step
        self.words_known = False
        roles = torch.where(ids == self.view.image_token_id, int(Role.IMAGE), int(Role.TEMPLATE))
        return Step(roles * mask if isinstance(mask, Tensor) and mask.shape == roles.shape else roles)

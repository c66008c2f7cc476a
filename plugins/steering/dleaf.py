"""D-LEAF: attention corrected in layers that lose sight of the image (arXiv 2509.07864). SPEC.md 7.3.

    LIAE_l = entropy of the heads' mean attention over the image tokens;   IAF_h = a head's attention mass on them
    where LIAE_l > best so far + margin:  h* = argmax_h IAF_h,  A_h <- gamma A_h* + (1 - gamma) A_h  for heads with
    IAF_h below the mean

From the abstract and reviews: LIAE flags layers and IAF heads during inference, a running best score decides which
layers are anomalous, and a bad head is interpolated toward the best with gamma. Everything else is our reconstruction,
since no formula is public: the entropy's normalisation, the query that is judged (the last token of each pass), the
running minimum and its margin, the mean as the heads' threshold, and that whole rows of attention are mixed. gamma is
the strength, at most 1. Toward text (ours) the tokens of the text context stand in for those of the image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.data.prompt import Prompt, Role
from factory.diagnose import attention
from factory.instruments.focus import applied, iaf, liae, visible, weights
from factory.model.prefix import Step, last_index
from factory.model.view import ModelView
from factory.registry import Params, register
from factory.steer import LogitsMethod

ROLES = {"vision": Role.IMAGE, "text": Role.CONTEXT}


class DleafParams(Params):
    """``margin`` in nats above the least entropy so far at which a layer is corrected. ``layers``: those astray, or all
    (ours): the uniform correction that finding layers is held against.
    """

    margin: float = Field(0.1, ge=0)
    layers: Literal["astray", "all"] = "astray"


@register("steering", "dleaf")
class Dleaf(LogitsMethod):
    """Attention heads that look away from the wanted modality are mixed with the one that looks at it most, where a
    layer looks astray.
    """

    pictured = True
    columned = True

    Params = DleafParams
    shares_prompt = False

    def copies(self, prompt: Prompt, direction: str) -> tuple[Prompt, ...]:
        return ()

    @contextmanager
    def running(self, view: ModelView, direction: str, blocks: int, strength: float) -> Iterator[None]:
        if strength == 0:
            yield
            return
        gamma, watch = min(strength, 1.0), _Watch(view, ROLES[direction])

        def attend(
            module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, None]:
            at, on = (t.to(q.device) for t in watch.look(k.shape[2]))
            A = weights(q, k, visible(module, q, k, mask), options)
            last = A[torch.arange(len(A), device=A.device), :, at]
            focus, astray = iaf(last, on), watch.astray(liae(last, on), self.params.margin)
            astray = on.any(-1) if self.params.layers == "all" else astray
            if not bool(astray.any()):
                return sdpa_attention_forward(module, q, k, v, mask, **options)
            return applied(corrected(A, focus, astray, gamma), v), None

        with attention(view, attend):
            yield


class _Watch:
    """The wanted tokens among all that were run so far, and the least entropy of the layers below."""

    def __init__(self, view: ModelView, role: Role) -> None:
        self.view, self.role = view, role
        self.step: Step | None = None
        self.on = torch.empty(0)
        self.best: Tensor | None = None

    def look(self, length: int) -> tuple[Tensor, Tensor]:
        """Column [R] of each row's last token in this pass, and which of all ``length`` tokens are wanted [R, T]."""
        step = self.view.step
        assert step is not None, "the runtime announces every pass"
        if self.step is not step:
            self.step, self.best = step, None
            wanted = step.roles == self.role
            self.on = wanted if length == wanted.shape[1] else torch.cat([self.on, wanted], 1)
        return last_index(step.roles != Role.PAD), self.on

    def astray(self, entropy: Tensor, margin: float) -> Tensor:
        """Which rows [R] have more ``entropy`` in this layer than the best so far by more than ``margin``."""
        best = entropy if self.best is None else self.best.to(entropy.device)
        self.best = torch.minimum(best, entropy)
        return entropy > best + margin


def corrected(A: Tensor, focus: Tensor, astray: Tensor, gamma: float) -> Tensor:
    """A [R, heads, t, T] with heads of less than mean ``focus`` [R, heads] mixed with the head of most, in rows
    ``astray`` [R].
    """
    best = A[torch.arange(len(A), device=A.device), focus.argmax(-1)][:, None]
    bad = (focus < focus.mean(-1, keepdim=True)) & astray[:, None]
    return torch.where(bad[..., None, None], gamma * best + (1 - gamma) * A, A)

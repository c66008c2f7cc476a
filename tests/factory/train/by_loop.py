"""A tuning written out: whole batches in the training's order, a learning rate for each step, and what is trained as
weights of the model or by equations over its frozen maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factory.corpus.collate import Collator
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.model.view import ModelView
from factory.registry import lookup
from tests.factory.train.case import BATCH
from tests.tiny import fresh_view

RATE = 3e-3  # of ``tuned``


def applied(tuner: dict[str, Any], beside: tuple[str, ...]) -> tuple[ModelView, dict[str, nn.Parameter]]:
    """A tiny view with a tuner as ``tuned`` begins with it, and what is trained of it."""
    view, node = fresh_view(), dict(tuner)
    cls = lookup("tuner", node.pop("type"))
    torch.manual_seed(1)
    trained = cls(cls.Params(**node) if cls.Params else None).apply(view, beside)
    view.model.train()
    return view, trained


def batches(view: ModelView, data: Path, steps: int) -> list[dict[str, Tensor]]:
    source, order = ConversationFile(data, data.parent, data.parent / "index"), Order(24, BATCH, 0)
    collator = Collator(view, source, 200, None)
    return [collator([order[BATCH * step + i] for i in range(BATCH)]) for step in range(steps)]


def mean_loss(view: ModelView, batch: dict[str, Tensor]) -> Tensor:
    logits = view.model(**{k: t for k, t in batch.items() if k not in ("labels", "roles")}).logits[:, :-1]
    return F.cross_entropy(logits.float().flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)


def descend(
    view: ModelView,
    trained: Sequence[nn.Parameter] | dict[str, nn.Parameter],
    steps: Sequence[dict[str, Tensor]],
    rates: Sequence[float] | None = None,
    clip: float = 1.0,
    decay: float = 0.0,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    bf16: bool = False,
    before: Callable[[], None] = lambda: None,
) -> list[float]:
    """A step for each batch, at rates of their own; the losses. ``before`` each batch something may be set."""
    every = list(trained.values() if isinstance(trained, dict) else trained)
    made, losses = optimizer(every, lr=RATE, weight_decay=decay), []
    for number, batch in enumerate(steps):
        for group in made.param_groups:
            group["lr"] = rates[number] if rates is not None else RATE
        made.zero_grad()
        before()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = mean_loss(view, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(every, clip)
        made.step()
        losses.append(loss.item())
    return losses


def apart(values: dict[str, Tensor], others: dict[str, Any]) -> float:
    """The largest difference of values by their names."""
    return max(float((value - others[name].detach()).abs().max()) for name, value in values.items())

"""What a tuner may add to the loss of the answers while it is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from factory.corpus.labels import IGNORE

Answered = Callable[[Tensor], Tensor]
"""From labels [B, T] to the summed cross entropy of the labelled tokens, by running the batch again."""


class Terms(nn.Module):
    """Terms of a loss. ``forward`` gives their weighed sum, as a sum over labelled tokens, so that the training's mean
    over all labelled tokens of a step is one of the terms too, however rows are shared out to micro-batches and ranks:
    a number of a row counts as often as the row has labels (``weighed``).

    ``said`` are the terms of the latest forward by name, as such sums and without their weights, for the training's
    log. Parameters of its own are trained, and kept in checkpoints alone. Asked while the model is in training mode.

    Where the tuner names ``tasks``, ``forward`` is given ``tasks`` [B] too: where each row's task stands among them, -1
    for one of none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, Tensor] = {}

    def forward(self, labels: Tensor, roles: Tensor, answered: Answered) -> Tensor:
        """``labels``, ``roles`` [B, T] of the batch that was run last, at the model's plain setting."""
        raise TypeError(f"{type(self).__name__} must define forward(labels, roles, answered)")


def weighed(labels: Tensor, values: Tensor) -> Tensor:
    """The sum of ``values`` [B], a number a row, each as often as its row has labels in ``labels`` [B, T]."""
    return (values * (labels[:, 1:] != IGNORE).sum(1)).sum()

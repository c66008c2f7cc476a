"""Steering: what (Steerer), where (Where), how strongly (a number, one per row, or a controller); the runtime owns the
rest.
"""

from factory.steer.base import Context, LogitsMethod, PromptMethod, States, Steerer, TrainedMethod, Trials, TwoCalls
from factory.steer.runtime import Steering, Strength, steer
from factory.steer.where import Where

__all__ = [
    "Context",
    "LogitsMethod",
    "PromptMethod",
    "States",
    "Steerer",
    "Steering",
    "Strength",
    "TrainedMethod",
    "Trials",
    "TwoCalls",
    "Where",
    "steer",
]

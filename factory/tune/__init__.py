"""Tuning: what a method trains (Tuner), how its trained part is kept and found again, and how many parameters it
has.
"""

from factory.tune.base import Part, Tuner
from factory.tune.checkpoint import is_saved, load, save

__all__ = ["Part", "Tuner", "is_saved", "load", "save"]

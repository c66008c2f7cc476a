"""Tuning: what a method trains (Tuner), how its trained part is kept and found again, and how many parameters it
has.
"""

from factory.tune.base import Part, Tuner
from factory.tune.checkpoint import account_tuned, is_saved, load, save

__all__ = ["Part", "Tuner", "account_tuned", "is_saved", "load", "save"]

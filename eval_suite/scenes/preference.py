"""What a model that learns from Scenes is taught to prefer by itself, where picture and text contradict each other.

A conflict without an instruction is answered from the image with probability
``sigmoid(LEANING[task] + SLOPE * (text_tier - visual_tier))``: the harder a modality is to read, the less
it is believed, and tasks differ in which modality they trust. That is where the model's own preference comes from.
"""

from __future__ import annotations

import math
from random import Random

from factory.data.sample import ConflictSample

LEANING = {
    "activity_recognition": 0.2,
    "attribute": -0.4,
    "color": 1.0,
    "counting": -1.2,
    "object_recognition": 1.4,
    "positional_reasoning": -0.7,
    "sentiment_understanding": -1.0,
    "sport_recognition": 0.7,
}
SLOPE = 0.9


def image_score(sample: ConflictSample) -> float:
    """How far the image is believed rather than the text, in nats."""
    return LEANING[sample.task] + SLOPE * (int(sample.tags["text_tier"]) - int(sample.tags["visual_tier"]))


def happens(score: float, rng: Random) -> bool:
    """True with probability ``sigmoid(score)``."""
    return rng.random() < 1 / (1 + math.exp(-score))


def trusts_vision(sample: ConflictSample, rng: Random) -> bool:
    return happens(image_score(sample), rng)

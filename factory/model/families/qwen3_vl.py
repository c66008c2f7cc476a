"""Qwen3-VL: vision features also enter the first decoder blocks (DeepStack, arXiv 2406.04334), between one block and
the next.

A block's output is therefore not yet what the next block reads: at image tokens of the first blocks the decoder adds to
it.
"""

from __future__ import annotations

from factory.model.families.qwen2_vl import Qwen2VL
from factory.registry import register


@register("family", "qwen3_vl")
class Qwen3VL(Qwen2VL):
    """Qwen3-VL (dense)."""

    config_class = "Qwen3VLConfig"
    model_class = "Qwen3VLForConditionalGeneration"
    plain_calls = False

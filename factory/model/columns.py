"""Which blocks of a decoder hold a column of keys and values for each token of the prompt, as its configuration tells.

Shared prefixes, cut attention edges and what is said of an image's tokens rest on such columns.
"""

from __future__ import annotations

from typing import Any

RUNNING = ("linear_attention", "mamba", "conv", "hybrid", "hybrid_sliding")
"""Kinds of blocks, as transformers' ``layer_types`` names them, with a running state in place of columns."""


def running_blocks(text: Any) -> tuple[int, ...]:
    """The blocks that keep one running state, of a text model's configuration."""
    return tuple(i for i, kind in enumerate(getattr(text, "layer_types", None) or ()) if kind in RUNNING)


def columnless(text: Any) -> str | None:
    """Why not every token of a prompt is a column in every block; None where each is."""
    if blocks := running_blocks(text):
        kinds = text.layer_types
        return (
            f"{len(blocks)} of its {len(kinds)} blocks ({kinds[blocks[0]]}) keep one running state in place of a column"
            " for each token"
        )
    if crossing := getattr(text, "cross_attention_layers", None):
        return (
            f"its pictures enter by cross-attention in {len(crossing)} of its blocks, and no token of the prompt"
            " carries them"
        )
    return None

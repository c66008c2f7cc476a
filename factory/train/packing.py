"""Whether a model reads a row that is packed behind another one (``factory.corpus.packed``) as it reads it alone."""

from __future__ import annotations

import torch

from factory.corpus.collate import with_image
from factory.corpus.labels import encode_samples
from factory.corpus.packed import pack
from factory.corpus.source import Sample
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.view import ModelView

LONG = "There is a green field, a red house and a tall blue tree in it."
OFF = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest final state


def check_packing(view: ModelView) -> None:
    """Raises ``UserError`` where a row of the model is read otherwise behind another one than alone, told by the final
    states of three short samples.
    """
    asked = [Segment(Role.QUESTION, "What is it?"), Segment(Role.ANSWER, "It is red.")]
    told = [Segment(Role.QUESTION, LONG), Segment(Role.ANSWER, LONG)]
    samples = [Sample("told", Prompt(tuple(told))), *[Sample("asked", Prompt(tuple(asked)))] * 2]
    examples, images = encode_samples(view, with_image(samples, True) if view.sees else samples)
    alone = view.batch([e.encoded for e in examples], images, "right")
    together = pack(view, examples, images, sum(len(e.labels) for e in examples))
    lengths = [len(e.labels) for e in examples]
    inputs = {k: t for k, t in together.items() if k not in ("labels", "roles")}
    with torch.no_grad():
        expected = view.core(**alone.to(view.device, view.dtype), use_cache=False).last_hidden_state
        moved = {k: t.to(view.device, view.dtype if t.is_floating_point() else None) for k, t in inputs.items()}
        found = view.core(**moved, use_cache=False).last_hidden_state[0].split(lengths)
    off = max((h - row[: len(h)]).abs().max().item() for h, row in zip(found, expected, strict=True))
    if off > OFF[view.dtype] * expected.abs().max().item():
        attention = getattr(view.text_config, "_attn_implementation", "its own")
        raise UserError(
            f"tune.data.pack: {type(view.model).__name__} (attention: {attention}) reads a row otherwise behind another"
            " one than alone; leave pack out"
        )

"""The self-check of a view: a model that it does not understand is refused by name, before any result is computed."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.prefix import Prefix, extend, last_index, new_cache, prefill
from factory.model.replay import Call, recorded, replay
from factory.model.view import ModelView

TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@torch.no_grad()
def self_check(view: ModelView) -> None:
    """Check, on a small prompt (with an image, where the model takes any) and on a shorter one, padded, that

    norm and unembedding reproduce the model's logits, image tokens stand where the roles say, each block's attention
    has the size that is told, the blocks above one can be replayed, extending a KV cache (by an answer, where a prompt
    cannot be extended) equals recomputing, and padding changes nothing. Raises ``UserError`` naming the model and what
    failed.
    """
    try:
        _check(view)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise UserError(
            _refusal(
                view, f"a small prompt cannot be run: {str(error).strip().splitlines()[0] or type(error).__name__}"
            )
        ) from error


def _check(view: ModelView) -> None:
    batch = view.encode(_prompts(view))
    reference = view.model(**batch, position_ids=batch.position_ids).logits.float()
    tolerance = _rounding(view) * max(1.0, float(reference.abs().max()))
    layer = view.depth // 2
    hidden, whole, call, outputs = _watched(view, batch)
    valid = batch.attention_mask.bool()

    def same(ours: Tensor) -> bool:
        return bool(((view.logits(ours.to(view.device)) - reference).abs().amax(-1)[valid] <= tolerance).all())

    require(view, same(hidden), "the unembedding does not reproduce its logits")
    require(view, same(view.norm(outputs[-1])), "the output norm does not reproduce its logits")
    require(
        view,
        bool(((batch.input_ids == view.image_token_id) == batch.mask(Role.IMAGE)).all()),
        "image tokens do not stand where the roles say",
    )
    require(view, len(whole.cache.layers) == view.depth, "its KV cache does not have one entry per decoder block")
    require(view, _attention_is_known(view), "its attention output does not have the size that its configuration tells")
    require(
        view,
        same(replay(view, layer, call, outputs[layer], batch.roles, new_cache(view))),
        f"the blocks above block {layer} cannot be run by themselves",
    )
    ends = reference[torch.arange(batch.size, device=view.device), last_index(batch.attention_mask)]
    extended = view.logits(_extended(view, batch))
    require(
        view, bool(((extended - ends).abs() <= tolerance).all()), "extending its KV cache does not equal recomputing"
    )
    require(
        view,
        _close_alone(view, hidden, valid, tolerance),
        "a padded batch does not give the logits that it gives for one prompt by itself",
    )


def _rounding(view: ModelView) -> float:
    """The relative error of a model's arithmetic: packed matrices are multiplied in half precision or less, whatever
    its dtype.
    """
    return TOLERANCE[torch.bfloat16 if getattr(view.model, "is_quantized", False) else view.dtype]


def _watched(view: ModelView, batch: Batch) -> tuple[Tensor, Prefix, Call, list[Tensor]]:
    """A prefill's final states and prefix, how the decoder was called, and the output of each block."""
    outputs: list[Tensor] = []
    calls: list[Call] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in view.layers
    ]
    try:
        with recorded(view, calls):
            hidden, whole = prefill(view, batch)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, whole, calls[0], outputs


def require(view: ModelView, holds: bool, what: str) -> None:
    if not holds:
        raise UserError(_refusal(view, what))


def _refusal(view: ModelView, what: str) -> str:
    return f"{type(view.model).__name__} as seen through family '{view.family.name}': {what}; it cannot be used"


def _prompts(view: ModelView) -> list[Prompt]:
    words: tuple[Segment, ...] = (
        Segment(Role.CONTEXT, "Text context: the box is red."),
        Segment(Role.QUESTION, "What color is the box?"),
    )
    if view.family.bidirectional_prompt:
        words += (Segment(Role.ANSWER, "The box in the image is red."),)
    image = Segment(Role.IMAGE, image=Image.linear_gradient("L").convert("RGB"))
    return [Prompt((*[image] * view.sees, *words)), Prompt(words[1:])]


def _close_alone(view: ModelView, hidden: Tensor, valid: Tensor, tolerance: float) -> bool:
    """Whether each row's logits are the model's own for that prompt, when it is left to find positions and masks
    itself.
    """
    alone = [view.model(**view.encode([prompt])).logits[0].float() for prompt in _prompts(view)]
    return all(
        bool(((view.logits(h[v]) - a).abs() <= tolerance).all()) for h, v, a in zip(hidden, valid, alone, strict=True)
    )


def _attention_is_known(view: ModelView) -> bool:
    """Whether the output projection of each block with attention runs on ``heads * head_dim`` values and gives the
    block's width."""
    shapes: list[tuple[int, int]] = []
    attending = [i for i in range(view.depth) if i not in view.running]
    handles = [
        view.o_proj(i).register_forward_hook(lambda m, a, out: shapes.append((a[0].shape[-1], out.shape[-1])))
        for i in attending
    ]
    try:
        prefill(view, view.encode(_prompts(view)[1:]))
    finally:
        for handle in handles:
            handle.remove()
    return shapes == [(view.heads_of(i) * view.head_dim, view.width) for i in attending]


def _extended(view: ModelView, batch: Batch) -> Tensor:
    """Final states [B, d] of the last tokens, computed by extending a prefix of all others by three tokens at most."""
    cut = batch.input_ids.shape[1] - 3  # the batch is padded on the left, so all rows end together
    prefix: Prefix = prefill(view, batch.columns(0, cut))[1]
    hidden, _ = extend(view, prefix, batch.input_ids[:, cut:], batch.attention_mask[:, cut:], batch.roles[:, cut:])
    return hidden[:, -1]

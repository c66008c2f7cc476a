"""Models of transformers that no other family names: their parts are found by what they are, and proved by the
self-check.

The blocks are a list as long as the configuration says; the output norm is the module beside them that, with the
unembedding, turns the last block's output into the model's logits on a few tokens. What cannot be found or does not
hold is refused by the model's name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from factory.errors import UserError
from factory.model.family import Family, device_of
from factory.registry import register


class Searched(Family):
    """A family whose decoder is searched for in the model."""

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        text = model.config.get_text_config()
        for module, name in _lists(model, text.num_hidden_layers):
            if norm := _norm_beside(model, module, getattr(module, name)):
                self.layers_name, self.norm_name = name, norm
                self.output_projection_path = _output_projection(model, getattr(module, name)[0], text)
                self.attention_path = self.output_projection_path.rpartition(".")[0]
                return module
        raise _unknown(model, f"no list of {text.num_hidden_layers} blocks with an output norm that gives its logits")


@register("family", "structural")
class Structural(Searched):
    """Any other image-text model that passes the self-check."""

    processor_class = "AutoProcessor"

    def __init__(self, model_type: str) -> None:
        self.model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]

    @classmethod
    def of(cls, config: Any) -> Structural | None:
        return cls(config.model_type) if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES else None

    def core(self, model: PreTrainedModel) -> PreTrainedModel:
        return model.base_model

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        wanted = type(model.config.vision_config)
        found = next(
            (m for m in model.modules() if m is not model and isinstance(getattr(m, "config", None), wanted)), None
        )
        if found is None:
            raise _unknown(model, "no vision tower")
        return found

    def connector(self, model: PreTrainedModel) -> nn.Module:
        names = ("multi_modal_projector", "connector", "aligner", "merger", "mm_projector", "projector")
        found = next((m for path, m in model.named_modules() if path.rpartition(".")[2] in names), None)
        if found is None:
            raise _unknown(model, "no connector")
        return found

    def image_token_id(self, model: PreTrainedModel) -> int:
        token = getattr(model.config, "image_token_id", None)
        if token is None:
            raise _unknown(model, "its configuration names no image token")
        return token

    def model_inputs(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {name: value for name, value in inputs.items() if name in self._taken(model)}

    def token_inputs(self, model: PreTrainedModel, ids: Tensor, roles: Tensor) -> dict[str, Tensor]:
        images = (ids == self.image_token_id(model)).long()
        return {name: images for name in ("mm_token_type_ids", "token_type_ids") if name in self._taken(model)}

    def _taken(self, model: PreTrainedModel) -> Sequence[str]:
        return tuple(inspect.signature(self.core(model).forward).parameters)


def _unknown(model: PreTrainedModel, what: str) -> UserError:
    return UserError(
        f"{type(model).__name__}: {what} was found; it needs a family of its own under factory/model/families"
    )


def _lists(model: PreTrainedModel, length: int) -> Iterator[tuple[nn.Module, str]]:
    """Modules with a list of ``length`` modules, and its name; the language decoder's last, so these come in
    reverse.
    """
    found = [
        (m, name)
        for m in model.modules()
        for name, child in m.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == length
    ]
    return reversed(found)


@torch.no_grad()
def _norm_beside(model: PreTrainedModel, parent: nn.Module, blocks: nn.ModuleList) -> str | None:
    """The child of ``parent`` that turns the last block's output into what the unembedding takes; of a model without
    weights, the one whose shape lets it."""
    last: list[Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
    try:
        logits = model(input_ids=torch.arange(1, 6, device=device_of(model))[None]).logits
    finally:
        handle.remove()
    if len(last) != 1 or not isinstance(last[0], Tensor):
        return None
    for name, child in parent.named_children():
        weight = getattr(child, "weight", None)
        if weight is not None and weight.shape == last[0].shape[-1:]:
            again = model.get_output_embeddings()(child(last[0]))
            if weight.is_meta or torch.allclose(
                again.float(), logits.float(), rtol=1e-2, atol=1e-2 * float(logits.abs().max())
            ):
                return name
    return None


def _output_projection(model: PreTrainedModel, block: nn.Module, text: Any) -> str:
    """Path of the last linear map of a block's attention that takes all heads and gives the block's width."""
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    paths = [
        path
        for path, m in block.named_modules()
        if isinstance(m, nn.Linear) and "att" in path and (m.in_features, m.out_features) == (heads, text.hidden_size)
    ]
    if not paths:
        raise _unknown(model, "no output projection of its attention")
    return next(
        (path for path in paths if path.rpartition(".")[2].startswith(("o", "dense", "proj", "c_proj"))), paths[-1]
    )

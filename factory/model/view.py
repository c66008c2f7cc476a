"""ModelView: the uniform view of a multimodal model that every plugin works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from factory.data.prompt import Prompt
from factory.model.encode import Batch, Encoded, PaddingSide, encode_one, pad
from factory.model.family import Family, device_of

if TYPE_CHECKING:
    from factory.model.prefix import Step


class ModelView:
    """A model, its processor and its family, seen through one interface.

    The decoder's blocks are ``layers`` (index = 0-based block, SPEC A15), its output norm ``norm``, the unembedding
    ``unembed``. ``encode`` turns prompts into a ``Batch`` with token roles; ``factory.model.prefix`` runs it on a KV cache.
    """

    def __init__(self, model: nn.Module, processor: Any, family: Family) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.decoder = family.decoder(model)
        self.core = family.core(model)
        self.text_config = model.config.get_text_config()
        self.encoded: Batch | None = None
        self.step: Step | None = None

    @property
    def layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def norm(self) -> nn.Module:
        return self.decoder.norm

    @property
    def unembed(self) -> nn.Module:
        return self.model.get_output_embeddings()

    @property
    def vision_tower(self) -> nn.Module:
        return self.family.vision_tower(self.model)

    @property
    def connector(self) -> nn.Module:
        return self.family.connector(self.model)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def depth(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        return self.text_config.hidden_size

    @property
    def heads(self) -> int:
        return self.text_config.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return getattr(self.text_config, "num_key_value_heads", None) or self.heads

    @property
    def head_dim(self) -> int:
        return getattr(self.text_config, "head_dim", None) or self.width // self.heads

    def attention(self, layer: int) -> nn.Module:
        """Self-attention of block ``layer``. The self-check has seen that its ``o_proj`` takes ``heads * head_dim`` values."""
        return self.family.attention(self.layers[layer])

    def o_proj(self, layer: int) -> nn.Module:
        """Output projection of block ``layer``: a head's output is its ``head_dim`` columns of this module's input [.., heads * head_dim]."""
        return self.family.output_projection(self.layers[layer])

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.unembed.weight.dtype

    @property
    def image_token_id(self) -> int:
        return self.family.image_token_id(self.model)

    @property
    def eos_ids(self) -> Tensor:
        """Ids that end a generation [k]."""
        eos = self.model.generation_config.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        return torch.tensor([eos] if isinstance(eos, int) else list(eos), device=self.device)

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return int(self.eos_ids[0]) if pad_id is None else pad_id

    def images_of(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Image inputs of all prompts in order, and per prompt how many tokens each of its images takes."""
        images = [image for p in prompts for image in p.images]
        inputs = self.family.image_inputs(self.processor, images)
        counts = iter(self.family.image_token_counts(self.model, inputs, len(images)))
        return inputs, [[next(counts) for _ in p.images] for p in prompts]

    def tokens(self, prompts: Sequence[Prompt], counts: Sequence[Sequence[int]]) -> list[Encoded]:
        """Each prompt's tokens and roles, its images taking ``counts`` tokens each."""
        image_token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return [encode_one(self.processor, p, image_token, n) for p, n in zip(prompts, counts, strict=True)]

    def collate(self, encoded: Sequence[Encoded], images: dict[str, Tensor], side: PaddingSide = "left") -> Batch:
        """Pad encoded prompts into a batch on the model's device."""
        mask = pad([[1] * len(e.ids) for e in encoded], 0, side)
        ids = pad([e.ids for e in encoded], self.pad_id, side)
        roles = pad([e.roles for e in encoded], 0, side)
        return Batch(ids, mask, roles, self.family.position_ids(mask), images).to(self.device, self.dtype)

    def encode(self, prompts: Sequence[Prompt], side: PaddingSide = "left") -> Batch:
        """Prompts to a padded batch with roles. Raises ``UserError`` when the template changes a segment."""
        images, counts = self.images_of(prompts)
        self.encoded = self.collate(self.tokens(prompts, counts), images, side)
        return self.encoded

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 next-token logits [..., vocabulary] of final, normed hidden states [..., d]."""
        return self.unembed(hidden).float()

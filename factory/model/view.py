"""ModelView: the uniform view of a model, with or without pictures, that every plugin works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.model.columns import columnless, running_blocks
from factory.model.encode import Batch, Encoded, PaddingSide, Writing, encode_one, pad
from factory.model.family import Family, device_of
from factory.model.steps import Step, Steps
from factory.zoo.cards import Card


class ModelView:
    """A model, its processor and its family, seen through one interface.

    The decoder's blocks are ``layers`` (index = 0-based block, SPEC A15), its output norm ``norm``, the unembedding
    ``unembed``. ``encode`` turns prompts into a ``Batch`` with token roles; ``factory.model.prefix`` runs it on a KV
    cache.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, family: Family) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.decoder = family.decoder(model)
        self.core = family.core(model)
        self.text_config = model.config.get_text_config()
        self.parts: list[Any] = []  # plugins that it is made of: components, trained parts
        self.identity: str | None = None  # its fingerprint, where only all ranks together can take it
        self.origin = 'path="FOLDER"'  # what a ``ModelSpec`` of it says, for cards
        self.layer: int | None = None  # the block to steer, as the recipe's model or its card says
        self.card: Card | None = None  # the zoo's, where its weights are those that it describes
        self.defaults: Mapping[str, Mapping[str, Any]] = {}  # its card's, by diagnostic
        self.described: Any = None  # what factory.model.identity says of it, where the same holds
        self.steps = Steps(self)

    @property
    def step(self) -> Step | None:
        """What the forward that this thread runs processes, where ``factory.model.prefix`` runs it."""
        return self.steps.here.announced

    @property
    def layers(self) -> nn.ModuleList:
        return getattr(self.decoder, self.family.layers_name)

    @property
    def norm(self) -> nn.Module:
        return getattr(self.decoder, self.family.norm_name)

    @property
    def unembed(self) -> nn.Linear:
        return self.model.get_output_embeddings()

    @property
    def sees(self) -> bool:
        """Whether it has a picture side; a model that reads text alone has none."""
        return self.family.sees

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
        """Query heads of every block. Raises ``UserError`` where blocks differ (OpenELM's)."""
        return self._same(self.text_config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Key and value heads of every block. Raises ``UserError`` where blocks differ."""
        return self._same(
            getattr(self.text_config, "num_key_value_heads", None) or self.text_config.num_attention_heads
        )

    @property
    def head_dim(self) -> int:
        return getattr(self.text_config, "head_dim", None) or self.width // self.heads

    @property
    def running(self) -> tuple[int, ...]:
        """The blocks that keep one running state in place of a column of keys and values for each token."""
        return running_blocks(self.text_config)

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt is run from its beginning to its end at once: no part of it can be shared by several, hidden
        from what follows, or run again by itself."""
        return self.family.bidirectional_prompt or columnless(self.text_config) is not None

    def need_columns(self, what: str) -> None:
        """Raises ``UserError``, which says that ``what`` cannot be, for a model in some of whose blocks not every token
        of a prompt is a column."""
        if why := columnless(self.text_config):
            raise UserError(f"{type(self.model).__name__}: {why}, so that {what}")

    def heads_of(self, layer: int) -> int:
        """Query heads of block ``layer``."""
        heads = self.text_config.num_attention_heads
        return heads[layer] if isinstance(heads, list) else heads

    def _same(self, heads: int | list[int]) -> int:
        if not isinstance(heads, list):
            return heads
        if len(set(heads)) > 1:
            raise UserError(
                f"{type(self.model).__name__}: its blocks have {min(heads)} to {max(heads)} heads, and this needs"
                " the same number in each"
            )
        return heads[0]

    def attention(self, layer: int) -> nn.Module:
        """Self-attention of block ``layer``. The self-check has seen that its ``o_proj`` takes ``heads * head_dim``
        values. Raises ``UserError`` for a block without any.
        """
        self._attends(layer)
        return self.family.attention(self.layers[layer])

    def o_proj(self, layer: int) -> nn.Module:
        """Output projection of block ``layer``: a head's output is its ``head_dim`` columns of this module's input [..,
        heads * head_dim]. Raises ``UserError`` for a block without attention.
        """
        self._attends(layer)
        return self.family.output_projection(self.layers[layer])

    def _attends(self, layer: int) -> None:
        if layer in self.running:
            raise UserError(
                f"{type(self.model).__name__}: block {layer} keeps a running state and has no attention; take one of"
                f" {', '.join(str(i) for i in range(self.depth) if i not in self.running)}"
            )

    @property
    def device(self) -> torch.device:
        """Where token ids go in; final hidden states and logits come back to it, also from a model that is spread over
        devices.
        """
        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return self.unembed.weight.dtype

    @property
    def positions(self) -> int | None:
        """How many positions the model has; None where its configuration does not tell."""
        return self.family.positions(self.model.config)

    @property
    def image_token_id(self) -> int:
        """The token that image features take the place of; -1, which no token is, of a model that reads text alone."""
        return self.family.image_token_id(self.model)

    @property
    def picture_settings(self) -> str:
        """How a picture is made ready, as JSON ("null" of a model that reads text alone)."""
        return self.family.picture_settings(self.processor)

    @property
    def end_ids(self) -> list[int]:
        """Ids that end a generation: the tokenizer's own first, then those of the generation settings."""
        settings, own = self.model.generation_config.eos_token_id, self.tokenizer.eos_token_id
        named = [settings] if isinstance(settings, int) else list(settings or ())
        return [i for i in dict.fromkeys([own, *named]) if i is not None]

    @property
    def eos_ids(self) -> Tensor:
        """Ids that end a generation [k]."""
        return torch.tensor(self.end_ids, device=self.device)

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.end_ids[0] if pad_id is None else pad_id

    @property
    def writing(self) -> Writing:
        """How prompts are written for this model."""
        template = self.processor.chat_template or self.tokenizer.chat_template or self.family.chat_template
        return Writing(
            self.tokenizer,
            template,
            self.family.placeholder(self.model, self.processor),
            self.family.image_token(self.model, self.processor),
            tuple(self.end_ids),
            plain=not self.sees,
            told=self.family.template_options,
        )

    def images_of(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Tensor], list[list[str]]]:
        """Image inputs of all prompts in order, and per prompt the text that stands for each of its images."""
        images = [image for p in prompts for image in p.images]
        inputs = self.family.image_inputs(self.processor, images, [len(p.images) for p in prompts])
        texts = iter(self.family.image_texts(self.model, self.processor, inputs, len(images)))
        return self.family.model_inputs(self.model, inputs), [[next(texts) for _ in p.images] for p in prompts]

    def tokens(self, prompts: Sequence[Prompt], images: Sequence[Sequence[str]], ended: bool = False) -> list[Encoded]:
        """Each prompt's tokens and roles, ``images`` being the texts of its images; ``ended``: with an end token after
        an answer that comes last."""
        writing = self.writing
        return [encode_one(writing, p, texts, ended) for p, texts in zip(prompts, images, strict=True)]

    def collate(self, encoded: Sequence[Encoded], images: dict[str, Tensor], side: PaddingSide = "left") -> Batch:
        """Pad encoded prompts into a batch on the model's device."""
        return self.batch(encoded, images, side).to(self.device, self.dtype)

    def batch(self, encoded: Sequence[Encoded], images: dict[str, Tensor], side: PaddingSide) -> Batch:
        """Pad encoded prompts into a batch on the CPU, touching no device, so that a data loader's workers may. Raises
        ``UserError`` for one that the model has no positions for.
        """
        mask = pad([[1] * len(e.ids) for e in encoded], 0, side)
        ids = pad([e.ids for e in encoded], self.pad_id, side)
        roles = pad([e.roles for e in encoded], 0, side)
        of_tokens = self.family.token_inputs(self.model, ids, roles)
        positions = self.family.position_ids(self.model, ids, mask, {**images, **of_tokens})
        if self.positions is not None and (last := int(positions.max())) >= self.positions:
            raise UserError(
                f"a prompt takes {last + 1:,} positions, and {type(self.model).__name__} has {self.positions:,}"
                " (max_position_embeddings): shorten its text, or give fewer or smaller images"
            )
        return Batch(ids, mask, roles, positions, images, of_tokens)

    def encode(self, prompts: Sequence[Prompt], side: PaddingSide = "left") -> Batch:
        """Prompts to a padded batch with roles; an answer that comes last is open, so that it can be gone on with.

        Raises ``UserError`` when the template changes a segment.
        """
        images, counts = self.images_of(prompts)
        return self.collate(self.tokens(prompts, counts), images, side)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 next-token logits [..., vocabulary] of final, normed hidden states [..., d]."""
        logits = self.unembed(hidden)
        cap = getattr(self.text_config, "final_logit_softcapping", None)
        return (logits if cap is None else (logits / cap).tanh() * cap).float().to(hidden.device)

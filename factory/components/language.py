"""What a language model says of itself: its configuration class, and how a conversation is written for it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from factory.components.source import Sourced
from factory.components.templates import VICUNA
from factory.errors import UserError
from factory.model.stored import missing
from factory.registry import Plugin

IMAGE_TOKEN = "<image>"


class LlmParams(Sourced):
    """``tokenizer``: a folder or hub id; null is the source's own."""

    tokenizer: str | None = None


class Llm(Plugin):
    """Base of the language models; a subclass is a line or two. They differ by configuration class, never by a path's
    name.
    """

    Params = LlmParams
    config_class: ClassVar[str | type]
    template: ClassVar[str] = VICUNA

    @classmethod
    def unpack(cls, released: Path, folder: Path) -> None:
        """Write a released GGUF file, with its tokenizer, into ``folder`` as a model that loads in moments, its weights
        in float32.
        """
        model, found = AutoModelForCausalLM.from_pretrained(
            released.parent, gguf_file=released.name, dtype=torch.float32, output_loading_info=True
        )
        missing(type(model), found, str(released))
        config = model.config.to_dict()
        config.pop("quantization_config", None)  # the weights are plain numbers now
        plain = type(model)(type(model.config)(**config))
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(released.parent, gguf_file=released.name).save_pretrained(folder)

    def config(self) -> PreTrainedConfig:
        """The model's configuration. Raises ``UserError`` where its source is not there or is another class of
        model.
        """
        return self.params.read_config(self.config_class)

    def account(self, config: PreTrainedConfig) -> None:
        """Refuse a source whose weights are not those of the model, by their headers."""
        self.params.account(AutoModelForCausalLM, config)

    def load(self, config: PreTrainedConfig) -> PreTrainedModel:
        """The causal language model with its source's weights, or with random ones."""
        return self.params.read_weights(AutoModelForCausalLM, config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, with an image token and a padding token. Raises ``UserError`` where none is named."""
        place = self.params.tokenizer or self.params.place
        if place is None:
            raise UserError(
                "model.compose.llm: random weights come without a tokenizer; name one: llm.tokenizer=FOLDER"
            )
        tokenizer = Sourced(source=place)._read(AutoTokenizer, "tokenizer")
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        tokenizer.padding_side = "left"
        return tokenizer

"""One Hugging Face model from a vision encoder (or two), a connector and a language model.

It has a class of its own, not ``LlavaForConditionalGeneration``: that one fixes the connector to two linear maps and
the encoder to one, and drops the bias that Phi-2's unembedding has. What the two share (splicing image features in,
generation, the cache) is inherited. Saved by ``save_pretrained`` with its parts' configurations, and found again by
``from_pretrained`` once this module is imported.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from factory.components.connect import Connector, Widths
from factory.components.language import IMAGE_TOKEN
from factory.components.vision import VisionEncoder, recorded_config
from factory.errors import UserError
from factory.recipe.schema import ComposeSpec, Node
from factory.registry import lookup

MODEL_TYPE = "steering_factory_composed"


class ComposedConfig(PreTrainedConfig):
    """``vision``: a record of each encoder (type, options, config); ``connector``: its node; ``text_config``: the
    language model's; ``image_seq_length``: image tokens a picture takes."""

    model_type = MODEL_TYPE
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}

    vision: list[dict[str, Any]] = field(default_factory=list)
    connector: dict[str, Any] = field(default_factory=dict)
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 0
    image_seq_length: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            sizes = dict(self.text_config)
            if sizes["model_type"] not in CONFIG_MAPPING:
                lookup("llm", sizes["model_type"])  # one of our own, whose module makes it known
            self.text_config = AutoConfig.for_model(sizes.pop("model_type"), **sizes)
        super().__post_init__(**kwargs)


class VisionTower(nn.Module):
    """The encoders, on pictures [n, 3, side, side] prepared for the first: a list of features [n, tokens_i, d_i]."""

    def __init__(self, encoders: list[VisionEncoder], models: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = encoders
        self.models = nn.ModuleList(models)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [
            encoder.features(model, self._seen_by(encoder, model, pixels))
            for encoder, model in zip(self.encoders, self.models, strict=True)
        ]

    def pack(self, features: list[Tensor]) -> Tensor:
        """All encoders' features of each picture in one row [n, sum of tokens_i d_i], to be kept."""
        return torch.cat([f.flatten(1) for f in features], 1)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Features from what ``pack`` gave."""
        shapes = [
            (encoder.tokens(model.config), encoder.width(model.config))
            for encoder, model in zip(self.encoders, self.models, strict=True)
        ]
        parts = packed.split([tokens * width for tokens, width in shapes], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _seen_by(self, encoder: VisionEncoder, model: nn.Module, pixels: Tensor) -> Tensor:
        """Pictures in an encoder's own size and colour scale."""
        first, side = self.encoders[0], encoder.side(model.config)
        if (first.mean, first.std) != (encoder.mean, encoder.std):
            of = [
                pixels.new_tensor(values)[:, None, None]
                for values in (first.std, first.mean, encoder.mean, encoder.std)
            ]
            pixels = (pixels * of[0] + of[1] - of[2]) / of[3]
        if pixels.shape[-1] != side:
            pixels = nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        return pixels


class ComposedModel(LlavaModel):
    """The model without its unembedding."""

    config_class = ComposedConfig

    def __init__(self, config: ComposedConfig, models: list[nn.Module], language_model: nn.Module) -> None:
        super(LlavaModel, self).__init__(config)
        encoders = [_encoder(record) for record in config.vision]
        self.vision_tower = VisionTower(encoders, models)
        self.multi_modal_projector = _connector(config).build(
            _widths(encoders, [m.config for m in models], config.text_config)
        )
        self.language_model = language_model
        for module in self.multi_modal_projector.modules():
            # A connector starts as it was built: transformers would draw it anew.
            module._is_hf_initialized = True  # type: ignore[assignment]  # torch's stubs know no plain attribute
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Image tokens of pictures [n, 3, side, side], or of their packed features [n, f]: a list of n tensors [tokens,
        d] as ``pooler_output``.
        """
        tower = self.vision_tower
        features = tower.unpack(pixel_values.to(self.dtype)) if pixel_values.ndim == 2 else tower(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=features[-1], pooler_output=list(self.multi_modal_projector(features))
        )


class ComposedForConditionalGeneration(LlavaForConditionalGeneration):
    """A composed model. ``models`` and ``causal`` are parts that have their weights already; without them all are
    random.
    """

    config_class = ComposedConfig

    def __init__(
        self, config: ComposedConfig, models: list[nn.Module] | None = None, causal: PreTrainedModel | None = None
    ) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        for record in config.vision:
            lookup("vision_encoder", record["type"])  # its module makes its configuration known to AutoConfig
        models = models or [AutoModel.from_config(recorded_config(record)) for record in config.vision]
        causal = AutoModelForCausalLM.from_config(config.text_config) if causal is None else causal
        self.model = ComposedModel(config, models, causal.get_decoder())
        self.lm_head = causal.get_output_embeddings()
        self.post_init()


AutoConfig.register(MODEL_TYPE, ComposedConfig)
AutoModel.register(ComposedConfig, ComposedModel)
AutoModelForImageTextToText.register(ComposedConfig, ComposedForConditionalGeneration)


def compose(
    spec: ComposeSpec,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, LlavaProcessor]:
    """The model that ``spec`` describes and its processor; what has no source gets random weights from ``seed``.

    ``tokenizer`` stands in for the language model's own (it must have the image token). Raises ``UserError`` where
    parts are missing or do not fit each other.
    """
    torch.manual_seed(seed)
    parts, llm = encoders(spec.vision_encoder), spec.llm.make()
    config = composed_config(spec)
    tokenizer = llm.tokenizer() if tokenizer is None else tokenizer
    causal = llm.load(config.text_config)
    if len(tokenizer) > causal.get_input_embeddings().num_embeddings:
        causal.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    config.text_config, config.image_token_id = causal.config, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    own = [recorded_config(record) for record in config.vision]
    model = ComposedForConditionalGeneration(
        config, [part.load(c) for part, c in zip(parts, own, strict=True)], causal
    ).to(dtype)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    processor = LlavaProcessor(
        image_processor=parts[0].image_processor(own[0]),
        tokenizer=tokenizer,
        chat_template=llm.template,
        patch_size=own[0].patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
    )
    return model, processor


def composed_config(spec: ComposeSpec) -> ComposedConfig:
    """The configuration of the model that ``spec`` describes; no weights are read. Raises ``UserError`` where parts do
    not fit.
    """
    parts, text = encoders(spec.vision_encoder), spec.llm.make().config()
    configs = [part.config() for part in parts]
    widths = _widths(parts, configs, text)
    connector: Connector = spec.connector.make()
    with torch.device("meta"):
        connector.build(widths)
    return ComposedConfig(
        vision=[part.record(c) for part, c in zip(parts, configs, strict=True)],
        connector=spec.connector.model_dump(mode="json"),
        text_config=text,
        image_seq_length=connector.tokens(widths),
        tie_word_embeddings=text.tie_word_embeddings,
    )


def account_parts(spec: ComposeSpec) -> None:
    """Refuse sources on this machine whose weights are not those of the parts, by their headers."""
    for part in (*encoders(spec.vision_encoder), spec.llm.make()):
        part.account(part.config())


def parts_of(spec: ComposeSpec) -> list[str]:
    """The parts of the zoo that a model is composed of, by name."""
    named = [part.params.zoo for part in (*encoders(spec.vision_encoder), spec.llm.make())]
    return list(dict.fromkeys(name for name in named if name))


def encoders(node: Node) -> list[VisionEncoder]:
    return node.make().parts()


def components(config: PreTrainedConfig) -> list[Any]:
    """The vision encoders and the connector that a composed model runs; of another model nothing."""
    if not isinstance(config, ComposedConfig):
        return []
    return [*(_encoder(record) for record in config.vision), _connector(config)]


def _encoder(record: dict[str, Any]) -> VisionEncoder:
    cls = lookup("vision_encoder", record["type"])
    return cls(cls.Params.model_validate({key: value for key, value in record.items() if key != "type"}))


def _connector(config: ComposedConfig) -> Connector:
    options = dict(config.connector)
    cls = lookup("connector", options.pop("type"))
    return cls(cls.Params.model_validate(options))


def _widths(parts: list[VisionEncoder], configs: list[PreTrainedConfig], text: PreTrainedConfig) -> Widths:
    for part, config in zip(parts, configs, strict=True):
        if wrong := [
            layer for layer in part.layers if not -config.num_hidden_layers - 1 <= layer <= config.num_hidden_layers
        ]:
            raise UserError(
                f"model.compose.vision_encoder: layer {wrong[0]} is out of range; this {part.name} has"
                f" {config.num_hidden_layers} layers"
            )
    return Widths(
        [part.width(c) for part, c in zip(parts, configs, strict=True)],
        [part.tokens(c) for part, c in zip(parts, configs, strict=True)],
        text.hidden_size,
    )

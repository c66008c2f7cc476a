"""What a model family must say about itself: the only place that knows module paths and image-token rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from factory.errors import UserError
from factory.model.masks import sliding_window
from factory.model.parts import Parts

STRETCHED = ("linear", "dynamic", "yarn", "longrope", "llama3")  # kinds of rotary embeddings


class Family:
    """Base of the families; a subclass overrides only what differs from the common Hugging Face layout.

    A family is registered under its configuration's ``model_type`` and names its ``config_class``;
    a model is matched by that class, never by a path. ``processor_class`` is left out where transformers' own
    processor needs packages that only serve video: the image processor and the tokenizer are then used by themselves.
    """

    name: ClassVar[str]
    sees: ClassVar[bool] = True
    """Whether its models have a picture side: a vision tower, a connector, an image token and an image processor."""
    saved: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image processor": ("preprocessor_config.json", "processor_config.json"),
        "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model"),
    }
    """What a model's folder must hold of its processor: files one of which is enough, by what they hold."""
    config_class: ClassVar[str]
    model_class: str
    processor_class: ClassVar[str | None] = None
    vision_path: ClassVar[str] = "model.vision_tower"
    connector_path: ClassVar[str] = "model.multi_modal_projector"
    layers_name: str = "layers"
    norm_name: str = "norm"
    attention_path: str = "self_attn"
    output_projection_path: str = "self_attn.o_proj"
    mlp_path: ClassVar[str] = "mlp"
    """The module of a block whose output it adds to its residual stream after attention's."""
    chat_template: ClassVar[str | None] = None
    """Used where the processor brings no template."""
    template_options: ClassVar[Mapping[str, Any]] = {}
    """What the chat template is told beside the turns."""
    bookkeeping: ClassVar[tuple[str, ...]] = ()
    """What the image processor returns for ``image_texts`` alone, and the model does not take."""
    bidirectional_prompt: ClassVar[bool] = False
    """Whether the tokens of a prompt see those after them, so that no prefix of a prompt can be shared or extended."""
    plain_calls: ClassVar[bool] = True
    """Whether its decoder is called with tokens or embeddings, their positions and a mask of columns alone, so that the
    call of a whole prompt can be put together from those of its parts."""
    columnless: ClassVar[bool] = False
    """Whether it is made for models in some of whose blocks not every token of a prompt is a column of keys and values
    (``factory.model.columns``). Any other family's are refused where their configuration tells so."""

    @classmethod
    def of(cls, config: Any) -> Family | None:
        """The family of a model with this configuration, if it is one of this family's."""
        return cls() if cls.config_class == type(config).__name__ else None

    def load_processor(self, folder: Path) -> Any:
        """The processor saved in ``folder``: at least ``image_processor``, ``tokenizer`` and ``chat_template``."""
        loader = getattr(transformers, self.processor_class) if self.processor_class else Parts
        return loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def notes(self, folder: Path) -> tuple[str, ...]:
        """What has to be known beside every number of the model in ``folder``."""
        return ()

    def hf_class(self) -> type[PreTrainedModel]:
        """The model's Hugging Face class."""
        return getattr(transformers, self.model_class)

    def skeleton(self, config: Any) -> PreTrainedModel:
        """A model of this configuration without weights: its parameters are on the meta device. It has a copy of its
        own, as models write to their configuration.
        """
        with torch.device("meta"):
            return self.hf_class()._from_config(deepcopy(config))

    def core(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model without its unembedding; called like the model, it returns ``last_hidden_state`` after the norm."""
        return model.model

    def decoder(self, model: PreTrainedModel) -> PreTrainedModel:
        """The language decoder: the module with the blocks (``layers_name``) and the output norm (``norm_name``)."""
        return model.get_decoder()

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule(self.vision_path)

    def connector(self, model: PreTrainedModel) -> nn.Module:
        return model.get_submodule(self.connector_path)

    def parts(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The model's parts by name; a parameter that lies in several is the first's."""
        return {
            "connector": self.connector(model),
            "vision": self.vision_tower(model),
            "decoder": self.decoder(model),
            "unembedding": model.get_output_embeddings(),
        }

    def attention(self, block: nn.Module) -> nn.Module:
        """The self-attention of a decoder block."""
        return block.get_submodule(self.attention_path)

    def output_projection(self, block: nn.Module) -> nn.Module:
        """The linear map from a block's concatenated head outputs [.., heads * head_dim] to its residual stream [..,
        d].
        """
        return block.get_submodule(self.output_projection_path)

    def image_token_id(self, model: PreTrainedModel) -> int:
        return model.config.image_token_id

    def image_token(self, model: PreTrainedModel, processor: Any) -> str:
        """The token that image features take the place of."""
        return processor.tokenizer.convert_ids_to_tokens(self.image_token_id(model))

    def placeholder(self, model: PreTrainedModel, processor: Any) -> str:
        """What the chat template writes for an image."""
        return self.image_token(model, processor)

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Model inputs of all images of a batch, in reading order (empty where there is none).

        ``per_prompt``: how many of the images each prompt has, for processors that care.
        """
        return dict(processor.image_processor(images=list(images), return_tensors="pt")) if images else {}

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        """What stands in the prompt for each image: image tokens, and what the model is used to see around them.

        Here as transformers' processor of the model writes it.
        """
        return [processor.replace_image_token(inputs, i) for i in range(n_images)]

    def model_inputs(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """What of ``image_inputs`` the model takes."""
        return {name: value for name, value in inputs.items() if name not in self.bookkeeping}

    def repeated(self, model: PreTrainedModel, processor: Any, counts: Iterable[int]) -> list[str]:
        """The image token so many times for each image."""
        token = self.image_token(model, processor)
        return [token * int(n) for n in counts]

    def limit_pixels(self, processor: Any, low: int | None, high: int | None) -> None:
        """Have pictures made ready with at least ``low`` and at most ``high`` pixels (width times height; None leaves
        the processor's own). Raises ``UserError`` where their size has no such say.
        """
        raise UserError(
            f"{self.model_class} brings pictures to sizes of its own, whose number of tokens no pixel budget changes;"
            " leave model.min_pixels and model.max_pixels out"
        )

    def picture_settings(self, processor: Any) -> str:
        """How a picture is made ready for the model, as JSON."""
        return processor.image_processor.to_json_string()

    def image_grid(self, inputs: dict[str, Tensor], tokens: int) -> tuple[int, int] | None:
        """Rows and columns in which the ``tokens`` of a batch's only image lie on the picture that the model sees, in
        reading order; None where they do not lie in one grid, as those of an image that is cut into tiles.
        """
        pixels, side = inputs.get("pixel_values"), math.isqrt(tokens)
        whole = isinstance(pixels, Tensor) and pixels.ndim in (4, 5) and pixels.shape[:-3].numel() == 1
        return (side, side) if whole and side * side == tokens else None

    def token_inputs(self, model: PreTrainedModel, ids: Tensor, roles: Tensor) -> dict[str, Tensor]:
        """Further inputs [B, T] of a prefill, one value per token."""
        return {}

    def position_ids(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Position of each token, [B, T] or, for a rotary embedding of several axes, [axes, B, T]: padding does not
        count.

        ``mask`` [B, T] is the attention mask, ``inputs`` holds the images' and the tokens' inputs.
        """
        return (mask.long().cumsum(-1) - 1).clamp_min(0)

    def positions(self, config: Any) -> int | None:
        """How many positions a model of this configuration has, those that its rotary embedding is stretched to among
        them; None where it does not tell.
        """
        text = config.get_text_config()
        told, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
        kind, factor, before = (rope.get(key) for key in ("rope_type", "factor", "original_max_position_embeddings"))
        if told is None or not factor or kind not in STRETCHED:
            return told
        return max(told, int((before or told) * factor))  # where ``before`` is told, ``told`` may count what is gained

    def attention_mask(self, decoder: PreTrainedModel, mask: Tensor, new: int) -> Any:
        """What the model takes as attention mask for the last ``new`` columns of ``mask`` [R, T], the others being
        cached.

        Raises ``UserError`` where a sliding window would count the padding between cached and new tokens.
        """
        window = sliding_window(decoder.config)
        if window is not None and mask.shape[1] > window:
            raise UserError(
                f"{type(decoder).__name__}: a prompt and answer of {mask.shape[1]} tokens pass its sliding window of"
                f" {window}: shorten the prompt"
            )
        return mask


def edges(processor: Any, **said: int | None) -> None:
    """Set what an image processor's ``size`` has under these keys, None leaving its own. Raises ``UserError`` for a
    budget whose least is above its most.
    """
    size = processor.image_processor.size
    new = {key: size[key] for key in ("shortest_edge", "longest_edge") if size.get(key) is not None}
    new |= {key: value for key, value in said.items() if value is not None}
    if new.get("shortest_edge", 0) > new["longest_edge"]:
        raise UserError(
            f"the least pixels of a picture ({new['shortest_edge']:,}) are more than the most"
            f" ({new['longest_edge']:,}); set both model.min_pixels and model.max_pixels"
        )
    processor.image_processor.size = type(size)(**new)


def longest_edge(processor: Any, low: int | None, high: int | None) -> None:
    """``Family.limit_pixels`` of a processor that keeps a picture's shape and limits its longer side."""
    if low is not None:
        raise UserError("model.min_pixels: this family's pictures are only made smaller; use model.max_pixels")
    edges(processor, longest_edge=None if high is None else math.isqrt(high))


def merged_grid(patches: Tensor, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of a picture's ``tokens``, into which its ``patches`` (rows and columns [1, 2]) are merged alike
    in both; None for several pictures, and where they do not lie so."""
    rows, columns = patches[0].tolist()
    merged = math.isqrt(rows * columns // tokens)
    grid = rows // merged, columns // merged
    return grid if len(patches) == 1 and grid[0] * grid[1] == tokens else None


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode with no parameter asking for a gradient."""
    return model.eval().requires_grad_(False)


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. Its parameters may lie elsewhere meanwhile, offloaded by accelerate, whose hook then
    says.
    """
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if (device := getattr(each, "execution_device", None)) is not None:
            return torch.device(device)
    return next(module.parameters()).device

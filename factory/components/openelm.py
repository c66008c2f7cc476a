"""OpenELM (Mehta et al., 2024, arXiv 2404.14619), which transformers has no class for: a decoder whose heads and
feed-forward grow with depth.

A block is Qwen3's (pre-norm, RMSNorm of each query and key head, RoPE, grouped keys, SwiGLU, no biases) with sizes of
its own. Released checkpoints keep queries, keys and values in one matrix, and the two halves of the gated feed-forward
in another; here they are apart, so that tuners find them by name.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3PreTrainedModel,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

RENAMED = {
    "token_embeddings": "embed_tokens",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.out_proj": "self_attn.o_proj",
    "ffn.proj_2": "mlp.down_proj",
    "norm": "norm",
}


class OpenELMConfig(PreTrainedConfig):
    """Heads, key-value heads and feed-forward widths are lists, one entry a block; also read from the released
    configuration's keys.

    Where the lists are not given they follow from the multipliers (section 2.1): block i of N has query width alpha_i *
    model_dim and feed-forward width beta_i * model_dim, alpha and beta growing evenly between the bounds.
    """

    model_type = "openelm"

    vocab_size: int = 32000
    hidden_size: int = 1280
    num_hidden_layers: int = 16
    head_dim: int = 64
    num_attention_heads: list[int] | None = None
    num_key_value_heads: list[int] | None = None
    intermediate_size: list[int] | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2

    def __post_init__(
        self,
        model_dim: int | None = None,
        num_transformer_layers: int | None = None,
        num_query_heads: list[int] | None = None,
        num_kv_heads: list[int] | None = None,
        qkv_multipliers: Any = (0.5, 1.0),
        ffn_multipliers: Any = (0.5, 4.0),
        num_gqa_groups: int = 4,
        ffn_dim_divisor: int = 256,
        rope_freq_constant: float = 10000,
        rope_max_length: int | None = None,
        share_input_output_layers: bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.hidden_size, self.num_hidden_layers = (
            model_dim or self.hidden_size,
            num_transformer_layers or self.num_hidden_layers,
        )
        self.max_position_embeddings = rope_max_length or self.max_position_embeddings
        self.tie_word_embeddings = (
            self.tie_word_embeddings if share_input_output_layers is None else share_input_output_layers
        )
        d, N = self.hidden_size, self.num_hidden_layers
        if self.num_attention_heads is None:
            group = self.head_dim * num_gqa_groups
            self.num_attention_heads = num_query_heads or [
                divisible(d * m, group) // self.head_dim for m in spread_evenly(qkv_multipliers, N)
            ]
        if self.num_key_value_heads is None:
            self.num_key_value_heads = num_kv_heads or [heads // num_gqa_groups for heads in self.num_attention_heads]
        if self.intermediate_size is None:
            self.intermediate_size = [divisible(d * m, ffn_dim_divisor) for m in spread_evenly(ffn_multipliers, N)]
        if {len(self.num_attention_heads), len(self.num_key_value_heads), len(self.intermediate_size)} != {N}:
            raise ValueError(f"heads, key-value heads and feed-forward widths should be {N} numbers each, one a block")
        self.layer_types = ["full_attention"] * N
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": float(rope_freq_constant)}
        super().__post_init__(**kwargs)


def spread_evenly(multipliers: Any, n: int) -> list[float]:
    """``n`` multipliers: those given, or two bounds and what lies evenly between them, to two digits as released."""
    values = list(multipliers)
    if len(values) != 2 or n == 2:
        return values
    return [round(float(v), 2) for v in np.linspace(values[0], values[1], num=n)]


def divisible(value: float, by: int) -> int:
    """The multiple of ``by`` nearest to ``value``, never under nine tenths of it."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded


class OpenELMModel(Qwen3Model):
    """The decoder without its unembedding."""

    config_class = OpenELMConfig

    def __init__(self, config: OpenELMConfig) -> None:
        Qwen3PreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(_block(config, i) for i in range(config.num_hidden_layers))
        self.norm = Qwen3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config)
        self.gradient_checkpointing = self.has_sliding_layers = False
        self.post_init()


def _block(config: OpenELMConfig, i: int) -> Qwen3DecoderLayer:
    own = copy.copy(config)
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        setattr(own, name, getattr(config, name)[i])
    block = Qwen3DecoderLayer(own, i)
    block.self_attn.config = config  # whose attention implementation may be changed later
    return block


class OpenELMForCausalLM(Qwen3ForCausalLM):
    """OpenELM with its unembedding."""

    config_class = OpenELMConfig

    def __init__(self, config: OpenELMConfig) -> None:
        Qwen3PreTrainedModel.__init__(self, config)
        self.model = OpenELMModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def from_released(tensors: dict[str, Tensor], config: OpenELMConfig) -> dict[str, Tensor]:
    """A released checkpoint's tensors under this model's names. Raises KeyError for a name that OpenELM does not
    have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matched = re.fullmatch(r"transformer\.(?:layers\.(\d+)\.)?(.+)\.weight", name)
        layer, part = matched.groups() if matched else (None, "")
        place = "model." if layer is None else f"model.layers.{layer}."
        if part == "attn.qkv_proj":
            heads: Any = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
            sizes = [config.head_dim * n[int(layer or 0)] for n in heads]
            found |= {
                f"{place}self_attn.{kind}_proj.weight": piece
                for kind, piece in zip("qkv", tensor.split(sizes), strict=True)
            }
        elif part == "ffn.proj_1":
            found |= {
                f"{place}mlp.{kind}_proj.weight": half
                for kind, half in zip(("gate", "up"), tensor.chunk(2), strict=True)
            }
        elif name == "lm_head.weight":
            found[name] = tensor
        else:
            found[f"{place}{RENAMED[part]}.weight"] = tensor
    return found


def filled(config: OpenELMConfig, tensors: dict[str, Tensor]) -> OpenELMForCausalLM:
    """The model with a released checkpoint's weights. Raises RuntimeError where tensors are missing or of other
    shapes.
    """
    with torch.device("meta"):
        model = OpenELMForCausalLM(config)
    model = model.to_empty(device="cpu")
    own = from_released(tensors, config)
    if config.tie_word_embeddings:
        own.setdefault("lm_head.weight", own["model.embed_tokens.weight"])
    model.load_state_dict(own)
    model.model.rotary_emb = Qwen3RotaryEmbedding(config)  # its buffers are in no checkpoint
    model.tie_weights()
    return model.eval()


AutoConfig.register("openelm", OpenELMConfig)
AutoModel.register(OpenELMConfig, OpenELMModel)
AutoModelForCausalLM.register(OpenELMConfig, OpenELMForCausalLM)

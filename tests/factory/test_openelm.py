"""OpenELM against its equations written out, from a checkpoint with the released names."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from factory.components.openelm import OpenELMConfig, OpenELMForCausalLM, filled
from factory.errors import UserError
from factory.registry import lookup
from tests.compose import composed, llm
from tests.tiny import conflict_prompts

RELEASED = {
    "model_type": "openelm",
    "model_dim": 48,
    "num_transformer_layers": 3,
    "head_dim": 8,
    "num_gqa_groups": 2,
    "qkv_multipliers": [0.5, 1.0],
    "ffn_multipliers": [0.5, 2.0],
    "ffn_dim_divisor": 16,
    "rope_freq_constant": 10000,
    "rope_max_length": 64,
    "share_input_output_layers": True,
    "vocab_size": 100,
    "ffn_with_glu": True,
}


def checkpoint(q=(3, 4, 6), kv=(1, 2, 3), inner=(32, 64, 96), d=48, h=8) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {
        "transformer.token_embeddings.weight": torch.randn(100, d),
        "transformer.norm.weight": torch.rand(d) + 0.5,
    }
    for i in range(3):
        shapes = {
            "attn.qkv_proj": ((q[i] + 2 * kv[i]) * h, d),
            "attn.out_proj": (d, q[i] * h),
            "ffn.proj_1": (2 * inner[i], d),
            "ffn.proj_2": (d, inner[i]),
        }
        tensors |= {
            f"transformer.layers.{i}.{name}.weight": torch.randn(shape) / math.sqrt(shape[1])
            for name, shape in shapes.items()
        }
        norms = {"attn_norm": d, "ffn_norm": d, "attn.q_norm": h, "attn.k_norm": h}
        tensors |= {f"transformer.layers.{i}.{name}.weight": torch.rand(n) + 0.5 for name, n in norms.items()}
    return tensors


def rms(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rotated(x, h=8):
    """RoPE of [T, h] for positions 0 to T - 1."""
    angle = torch.arange(len(x))[:, None] * 10000 ** (-torch.arange(0, h, 2) / h)
    (a, b), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def slow(t, ids, q=(3, 4, 6), kv=(1, 2, 3), h=8):
    x = t["transformer.token_embeddings.weight"][ids]
    T = len(ids)
    for i in range(3):
        w = {
            name: t[f"transformer.layers.{i}.{name}.weight"]
            for name in (
                "attn_norm",
                "ffn_norm",
                "attn.q_norm",
                "attn.k_norm",
                "attn.qkv_proj",
                "attn.out_proj",
                "ffn.proj_1",
                "ffn.proj_2",
            )
        }
        rows = (rms(x, w["attn_norm"]) @ w["attn.qkv_proj"].T).view(T, -1, h)
        out = []
        for head in range(q[i]):
            group = head * kv[i] // q[i]
            query = rotated(rms(rows[:, head], w["attn.q_norm"]))
            key = rotated(rms(rows[:, q[i] + group], w["attn.k_norm"]))
            scores = query @ key.T / math.sqrt(h)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            out.append(scores.softmax(-1) @ rows[:, q[i] + kv[i] + group])
        x = x + torch.cat(out, -1) @ w["attn.out_proj"].T
        gate, up = (rms(x, w["ffn_norm"]) @ w["ffn.proj_1"].T).chunk(2, -1)
        x = x + (F.silu(gate) * up) @ w["ffn.proj_2"].T
    return rms(x, t["transformer.norm.weight"]) @ t["transformer.token_embeddings.weight"].T


def test_a_released_checkpoint_gives_the_logits_of_the_written_out_model(tmp_path):
    tensors, ids = checkpoint(q=(3, 4, 6)), torch.randint(0, 100, (11,))
    lists = {"num_query_heads": [3, 4, 6], "num_kv_heads": [1, 2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(RELEASED | lists | {"ffn_multipliers": [32 / 48, 64 / 48, 2.0]}))
    save_file(tensors, tmp_path / "model.safetensors")
    cls = lookup("llm", "openelm")
    part = cls(cls.Params(source=str(tmp_path)))
    config = part.config()
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (
        [3, 4, 6],
        [1, 2, 3],
        [32, 64, 96],
    )
    model = part.load(config)
    with torch.no_grad():
        assert torch.allclose(model(ids[None]).logits[0], slow(tensors, ids), atol=1e-4)
        first = model(ids[None, :7], use_cache=True)
        rest = model(ids[None, 7:], past_key_values=first.past_key_values)
        assert torch.allclose(rest.logits[0], slow(tensors, ids)[7:], atol=1e-4), "from the cache"
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "again")
    again = cls(cls.Params(source=str(tmp_path / "again")))
    with torch.no_grad():
        assert torch.equal(again.load(again.config())(ids[None]).logits, model(ids[None]).logits)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    lists = {"num_query_heads": [3, 4, 6], "num_kv_heads": [1, 2, 3], "ffn_multipliers": [32 / 48, 64 / 48, 2.0]}
    (tmp_path / "config.json").write_text(json.dumps(RELEASED | lists))
    tensors = checkpoint()
    del tensors["transformer.layers.1.ffn.proj_2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    cls = lookup("llm", "openelm")
    part = cls(cls.Params(source=str(tmp_path)))
    with pytest.raises(UserError, match="its weights cannot be read"):
        part.load(part.config())
    with pytest.raises(RuntimeError):
        filled(part.config(), tensors)


@pytest.mark.parametrize(
    ("d", "layers", "head_dim", "parameters", "heads"),
    [
        (1280, 16, 64, 271_527_168, [12] * 5 + [16] * 7 + [20] * 4),
        (1536, 20, 64, 457_179_136, None),
        (2048, 28, 64, 1_079_891_456, None),
        (3072, 36, 128, 3_036_647_424, None),
    ],
)
def test_the_published_sizes_follow_from_the_multipliers(d, layers, head_dim, parameters, heads):
    config = OpenELMConfig(model_dim=d, num_transformer_layers=layers, head_dim=head_dim)
    with torch.device("meta"):
        model = OpenELMForCausalLM(config)
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert heads is None or config.num_attention_heads == heads


def test_what_needs_equal_heads_says_so_and_lmar_does_not():
    view = composed(text=llm("openelm"))
    with pytest.raises(UserError, match="its blocks have 2 to 4 heads"):
        _ = view.heads
    cls = lookup("diagnostic", "lmar")
    rows = cls(cls.Params()).measure(view, view.encode(conflict_prompts(1)), ["a"])
    assert sum(row["metric"] == "lmar" for row in rows) == view.depth and all(
        row["value"] > 0 for row in rows if row["metric"] == "lmar"
    )

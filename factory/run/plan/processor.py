"""What the processor at hand reaches, measured on a block of a model's own sizes with random weights."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from statistics import median
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from factory.run.plan.blocks import Sizes
from factory.run.plan.devices import Device
from factory.run.timing import timed

TILE, REPEATS = 1024, 9  # of the product that the peak is measured by
TOKENS, OPERATIONS, HEAD = 96, 2e10, 128  # of a measured prompt; of all of them at most; a head's width at most
LEAST = 0.05  # of a block's time, that is taken to go into what it reads and writes


class Yardstick:
    """A plain eager block of as many weights and as wide states, keys and MLP as a model's, and all prompts of it."""

    def __init__(self, sizes: Sizes, rows: int) -> None:
        dtype, head = getattr(torch, sizes.dtype), gcd(sizes.width, sizes.kv_width, HEAD)
        config = LlamaConfig(
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_attention_heads=sizes.width // head,
            num_key_value_heads=sizes.kv_width // head,
            head_dim=head,
            attn_implementation="sdpa",
        )
        self.rows, self.head = rows, head
        self.rotary = LlamaRotaryEmbedding(config)
        self.layer = LlamaDecoderLayer(config, 0).to(dtype).eval()
        self.states = torch.randn(rows, TOKENS, sizes.width, dtype=dtype)

    def run(self, rows: int, tokens: int) -> object:
        """The block over some prompts from nothing, as a batch with padding runs it."""
        states, places = self.states[:rows, :tokens], torch.arange(tokens)[None]
        mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool).tril()
        return self.layer(
            states,
            attention_mask=mask,
            position_ids=places,
            past_key_values=DynamicCache(),
            position_embeddings=self.rotary(states, places),
        )

    def products(self) -> Tensor:
        """The matrix products of all prompts alone: its linear maps, and attention."""
        attention, mlp, x = self.layer.self_attn, self.layer.mlp, self.states
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attention.o_proj(seen.transpose(1, 2).flatten(-2))
        mlp.gate_proj(x)
        return mlp.down_proj(mlp.up_proj(x))


def processor(sizes: Sizes, tokens: int) -> Device:
    """The processor at hand, in processor time, so that other programs count little: what it reaches of its peaks in a
    block's products and in what else the block reads and writes, over prompts of so many ``tokens`` in all, and the
    seconds of a block of one token, in which next to nothing is computed.
    """
    rows = max(1, round(min(tokens, OPERATIONS / (2 * sizes.linear)) / TOKENS))
    square, large = torch.randn(TILE, TILE).to(getattr(torch, sizes.dtype)), torch.randn(2**24)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        block = Yardstick(sizes, rows)
        once, whole = _seconds(lambda: block.run(1, 1)), _seconds(lambda: block.run(rows, TOKENS))
        products = _seconds(block.products)
        peak = 2 * TILE**3 / _seconds(lambda: square @ square)
        bandwidth = 3 * large.nbytes / _seconds(lambda: large + large)
    reached = sizes.operations(rows, TOKENS, TOKENS) / products
    plain = Device("cpu", {sizes.dtype: reached}, bandwidth, float("inf"), "", 1.0, 1.0, 0.0, True, True)
    call = max(0.0, once - sizes.block(plain, 1, 1, 1))
    left = max(whole - products - call, LEAST * whole)
    moved = sizes.moved(rows, TOKENS, TOKENS) / left
    peak, most = max(peak, reached), max(bandwidth, moved)
    products_of, shares = {sizes.dtype: peak}, (reached / peak, moved / most)
    return Device("cpu", products_of, most, float("inf"), "", *shares, call, waits=True, measured=True)


def _seconds(job: Callable[[], object]) -> float:
    job()
    return median(timed(job, clock=process_time)[1] for _ in range(REPEATS))

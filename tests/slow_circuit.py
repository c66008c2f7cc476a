"""A Llama-like decoder with exchanged edges as plain loops, one head and one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from factory.model.view import ModelView

Cut = Mapping[str, AbstractSet[tuple[str, int]]]
"""By receiver the (sender, token) pairs that it reads of the other run."""


def linear(part: str, layer: int, head: int, x: Tensor, W: Tensor) -> Tensor:
    return x @ W.T


@torch.no_grad()
def slow_run(
    view: ModelView,
    embeds: Tensor,
    cut: Cut | None = None,
    other: Mapping[str, Tensor] | None = None,
    maps: Callable[[str, int, int, Tensor, Tensor], Tensor] = linear,
    mlp: Callable[[int, Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The last token's final normed state [d] of one prompt given as ``embeds`` [T, d], and what each node added [T,
    d]. ``maps`` computes each head's linear maps, ``mlp`` a block's MLP.
    """
    cut, other, added = cut or {}, other or {}, {"input": embeds}
    T = len(embeds)
    H, G, D = view.heads, view.kv_heads, view.head_dim
    cos, sin = view.decoder.rotary_emb(embeds[None], torch.arange(T)[None])

    def read(receiver: str) -> Tensor:
        exchanged = cut.get(receiver, set())
        rows = []
        for t in range(T):
            rows.append(sum((other[s][t] if (s, t) in exchanged else z[t]) for s, z in added.items()))
        return torch.stack(rows)

    def part(i: int, p: str, n: int) -> Tensor:
        block = view.layers[i]
        W = getattr(block.self_attn, f"{p}_proj").weight[n * D : (n + 1) * D]
        return maps(p, i, n, block.input_layernorm(read(f"a{i}.{p}{n}")), W)

    for i, block in enumerate(view.layers):
        attn, outs = block.self_attn, {}
        for h in range(H):
            g = h // (H // G)
            q, k = apply_rotary_pos_emb(part(i, "q", h)[None, None], part(i, "k", g)[None, None], cos, sin)
            scores = (q[0, 0] @ k[0, 0].T) * attn.scaling
            seen = torch.ones(T, T, dtype=torch.bool).tril()
            z = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ part(i, "v", g)
            outs[f"a{i}.h{h}"] = maps("o", i, h, z, attn.o_proj.weight[:, h * D : (h + 1) * D])
        added |= outs
        x = block.post_attention_layernorm(read(f"m{i}"))
        added[f"m{i}"] = block.mlp(x) if mlp is None else mlp(i, x)
    return view.norm(read("logits"))[-1], added

"""Attention over the perturbed cache KV_z of Algorithm 1, which is never built, and the gradient's norm on it.

With K_z = K + eps, q K_z^T is q K^T plus q eps^T on R[m], so a sample's rows share its K and V and own only their
noise. The gradient on a token's key is an outer product, dL/dK_z[t] = sum_a dS[a, t] q[a] over the queries a of a key's
group, so ||dL/dK_z[t]||^2 = sum_ab dS[a, t] (q q^T)[a, b] dS[b, t]; likewise for V_z with the attention P and the
gradient on its output. Neither gradient is built either.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import Tensor

from factory.errors import UserError
from factory.model.prefix import Prefix, fork_cache

MODALITIES = ("V", "T")
V, T = range(len(MODALITIES))
K_OR_V = ("K", "V")


class Slice(NamedTuple):
    """One modality's part of the rows: which rows of a sample, each sample's tokens, and their columns [S, n] (0 past
    the last).
    """

    m: int
    rows: slice
    counts: list[int]
    columns: Tensor


class Perturbed:
    """The rows of one pass: each sample of ``prefix`` (S) with each (modality, draw) of ``pairs`` (r), in order.

    ``R`` [2, S, T] are the token ranges, ``sigma`` [layers, 2, 2, S] the noise's standard deviations, ``places`` the
    (layer, 0 for K or 1 for V) that are perturbed, ``weight`` [2, S, T] what a squared gradient counts. After the
    backward pass ``norms`` [S, r] holds the squared gradient norms.
    """

    def __init__(
        self,
        prefix: Prefix,
        keys: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        draws: int,
        R: Tensor,
        sigma: Tensor,
        places: set[tuple[int, int]],
        weight: Tensor,
        sobolev: bool,
        seed: int,
    ) -> None:
        self.keys, self.pairs, self.draws, self.R, self.sigma, self.seed = keys, pairs, draws, R, sigma.tolist(), seed
        self.places, self.sobolev = places, sobolev
        self.past = [(_plain(layer.keys), _plain(layer.values)) for layer in prefix.cache.layers]
        self.prefix, self.pending, self.generators = (
            prefix,
            set(range(len(self.past))),
            {x.device: torch.Generator(x.device) for layer in self.past for x in layer},
        )
        self.modalities = torch.tensor([m for m, _ in pairs])
        self.weight = weight[self.modalities.to(R.device)].transpose(0, 1).float()
        self.spread = sigma[:, :, self.modalities].transpose(-1, -2)
        self.norms = torch.zeros(len(keys), len(pairs), device=R.device)
        self.root = torch.zeros((), device=R.device, requires_grad=True)  # the cache's stand-in at the graph's bottom
        self.slices = [self._slice(m) for m in (V, T) if m in dict(pairs)]

    def rows(self) -> Prefix:
        """The prefix of all rows, sample by sample, whose cache hands over a layer's new keys and values alone."""
        s = torch.arange(len(self.keys), device=self.R.device).repeat_interleave(len(self.pairs))
        cache = fork_cache(self.prefix.cache)
        for layer in cache.layers:
            layer.update = lambda k, v, *_, **__: (k, v)
        return Prefix(cache, self.prefix.mask[s], self.prefix.roles[s], self.prefix.next_position[s])

    def attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention of the query over KV_z and over itself (k, v), for ``factory.diagnose.attention``."""
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise UserError(
                "mcr: this model's attention has a soft cap or sinks, which the perturbed cache does not compute"
            )
        layer = module.layer_idx
        self.pending.discard(layer)
        K, V_ = self.past[layer]
        S, heads, length, _ = K.shape
        r, t, group = len(self.pairs), q.shape[2], q.shape[1] // heads

        def by_sample(x: Tensor) -> Tensor:
            """[S r, heads (group), t, d] to [S, heads, r, (group) t, d]."""
            return x.reshape(S, r, heads, -1, x.shape[-1]).transpose(1, 2)

        q, k, v = by_sample(q) + self.root.to(q), by_sample(k), by_sample(v)
        scores = (q.flatten(2, 3) @ K.mT).view(S, heads, r, group * t, length)
        for part, columns, eps in self._noise(layer, 0):
            scores[:, :, part.rows].scatter_add_(
                -1, columns.expand(-1, heads, eps.shape[2], group * t, -1), q[:, :, part.rows] @ eps.mT
            )
        scores = torch.cat([scores, q @ k.mT], -1).to(torch.promote_types(q.dtype, torch.float32)) * scaling
        seen = scores
        if mask is not None:
            seen = mask.view(S, 1, r, 1, t, -1).expand(-1, -1, -1, group, -1, -1).flatten(3, 4)
            seen = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        P = seen.softmax(-1).to(v.dtype)
        out = (P[..., :length].flatten(2, 3) @ V_).view(S, heads, r, group * t, -1) + P[..., length:] @ v
        for part, columns, eps in self._noise(layer, 1):
            out[:, :, part.rows] += (
                P[:, :, part.rows].gather(-1, columns.expand(-1, heads, eps.shape[2], group * t, -1)) @ eps
            )
        if (layer, 0) in self.places:
            scores.register_hook(lambda dS: self._add(layer, 0, dS[..., :length], scaling * q.detach()))
        if (layer, 1) in self.places:
            out.register_hook(lambda dO: self._add(layer, 1, P.detach()[..., :length], dO))
        return out.transpose(1, 2).reshape(S * r, heads * group, t, -1).transpose(1, 2), None

    def _add(self, layer: int, kv: int, weights: Tensor, vectors: Tensor) -> None:
        """Add the squared norms of the gradient sum_a weights[a, t] vectors[a] of each token t, weighted and summed."""
        weights, vectors = weights.float(), vectors.float()
        counted = self.weight[:, None, :, -weights.shape[-1] :, None].to(weights.device)
        norms = (weights * (vectors @ vectors.mT @ weights) @ counted).sum((1, 3, 4)).to(self.norms)
        self.norms += norms * (self.spread[layer, kv].to(norms) ** 2 / 2) if self.sobolev else norms

    def _noise(self, layer: int, kv: int) -> list[tuple[Slice, Tensor, Tensor]]:
        """eps ~ N(0, sigma_m^2 I) [S, heads, draws, n, d] of each modality's tokens, 0 past a sample's last, and their
        columns.
        """
        x = self.past[layer][kv]
        return [(part, *self._draw(part, x, layer, kv)) for part in self.slices] if (layer, kv) in self.places else []

    def _draw(self, part: Slice, x: Tensor, layer: int, kv: int) -> tuple[Tensor, Tensor]:
        S, heads, length, d = x.shape
        first, last = (self.pairs[part.rows][at][1] for at in (0, -1))
        generator = self.generators[x.device]
        eps = x.new_empty(S, heads, last - first + 1, part.columns.shape[1], d)
        for eps_s, n, key, sigma in zip(eps, part.counts, self.keys, self.sigma[layer][kv][part.m], strict=True):
            eps_s[:, :, n:] = 0
            if n:
                generator.manual_seed(noise_seed(self.seed, key, MODALITIES[part.m], layer, K_OR_V[kv]))
                whole = x.dtype == torch.float32 and eps_s.shape == (heads, self.draws, n, d)
                noise = eps_s if whole else torch.empty(heads, self.draws, n, d, device=x.device)
                noise.normal_(0, sigma, generator=generator)
                if not whole:
                    eps_s[:, :, :n] = noise[:, first : last + 1]
        columns = part.columns.to(x.device) - (self.R.shape[-1] - length)
        if length < self.R.shape[-1]:  # a sliding window has dropped the first columns
            eps *= (columns >= 0)[:, None, None, :, None]
        return columns.clamp_min(0)[:, None, None, None], eps

    def _slice(self, m: int) -> Slice:
        rows = [j for j, (each, _) in enumerate(self.pairs) if each == m]
        counts = self.R[m].sum(-1)
        columns = (~self.R[m]).long().argsort(dim=-1, stable=True)[:, : int(counts.max())]
        within = torch.arange(columns.shape[1], device=columns.device) < counts[:, None]
        return Slice(m, slice(rows[0], rows[-1] + 1), counts.tolist(), columns * within)


def _plain(x: Tensor) -> Tensor:
    """Autograd cannot keep tensors that were made in inference mode."""
    return x.clone() if x.is_inference() else x


def noise_seed(*parts: object) -> int:
    """Seed of the noise [heads, draws, n, d] of one (seed, key, modality, layer, K or V), whatever else is in the
    batch.
    """
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "little")

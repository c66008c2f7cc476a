"""Modality contribution ratio (MCR): AMPS, equations 5-8 and Algorithm 1, by perturbing the KV cache.

For each modality m in {V, T} with its token range R[m], and for draws i = 1..N:

    P_x  = softmax L(x, KV_prev)                                 x: the query; KV_prev: all tokens before it
    P_z  = softmax L(x, KV_z),  KV_z = KV_prev + eps on R[m],    eps ~ N(0, sigma_m^2 I)
    C_m  = 1/N sum_i ||grad_{KV_z} f||^2 / f,  f = CE(P_x, P_z)  (7) and the first part of (8)
    R_m  = C_m / (C_V + C_T)                                     (8)

Where the paper leaves a choice there is a parameter (SPEC A5-A11, see ``Mcr.Params``). Which prompt is measured
(SPEC A12: base, with P+ or with P-) is the caller's choice.

Cost beside the prefill. Each (sample, modality, draw) is a row of one pass over the query, so the gradient of the summed f
is each row's own. Forwards of one token: one a sample for P_x (none where the caller hands over ``hidden``), and one with its
backward for each of a sample's 2N rows. Memory: a row keeps one copy of its sample's cache until the backward pass, and
``row_chunk`` bounds the rows; of a layer's gradient only the row's squared norm outlives that layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from factory.data.prompt import USER_TEXT, Role
from factory.diagnose import Diagnostic, Query, Row
from factory.errors import UserError
from factory.model.encode import Batch, pad
from factory.model.prefix import Prefix, extend, fork_cache, greedy, last_index
from factory.model.view import ModelView
from factory.registry import Params, register

MODALITIES = ("V", "T")
TEXT = {
    "user": USER_TEXT,
    "context_only": (Role.CONTEXT,),
    "all_non_image": tuple(role for role in Role if role not in (Role.PAD, Role.IMAGE)),
}
FP16_LOSS_SCALE = 256.0  # a long cache's fp16 gradients would round to zero


class PassRow(NamedTuple):
    """One row of a pass: sample s, modality m and draw i of Algorithm 1."""

    s: int
    m: int
    i: int


@register("diagnostic", "mcr")
class Mcr(Diagnostic):
    """How much of the next token's sensitivity lies in the image's KV cache and how much in the text's (AMPS, eq. 5-8).

    Metrics of a sample: ``C_V``, ``C_T``, ``R_V``, ``R_T`` under ``reduce``, and R_V under each reduction: ``R_V_sum``,
    ``R_V_mean_per_token``. Without image tokens C_V is 0, without text tokens C_T is 0; R is NaN where both are 0.
    Noise is drawn on the cache's device: the same seed gives the same bytes on the same device.
    """

    class Params(Params):
        """``layers`` and ``kv`` confine both the noise and the gradient; the other options are those of SPEC A5-A11.

        ``k_sigma``: sigma_m in standard deviations of the cache; null takes the model family's (AMPS: Qwen 0.1, LLaVA 1).
        ``divergence``: f = CE(P_x, P_z) (Algorithm 1), CE(P_z, P_x) (eq. 5-7 as printed) or KL(P_x || P_z).
        ``grad_scope``: gradient on the perturbed slice R[m] (eq. 7) or on all of KV_prev (Algorithm 1 as printed).
        ``reduce``: squared norms summed over tokens (eq. 7) or divided by the number of tokens.
        ``sigma_scope``: standard deviation over R[m] of a layer's K or V; over all its tokens; or over the sample's whole cache
        (every layer, K and V together). ``sigma_shared``: R[V] and R[T] together, so that both get the same sigma.
        ``sobolev_factor``: sigma2_half gives each squared gradient its sigma^2/2 of the log-Sobolev bound.
        ``query_tokens``: f at the last token; its mean from the last question on (R[m] then ends before that question); or its
        mean over the last token and ``first_k`` - 1 greedily generated ones.
        ``text_tokens``: R[T] is context, question and options; the context; or all but the image tokens.
        ``eps``: least divisor f. ``row_chunk``: most rows of one pass, null = all.
        """

        draws: int = Field(3, gt=0)
        k_sigma: float | None = Field(None, gt=0)
        divergence: Literal["ce_xz", "ce_zx", "kl_xz"] = "ce_xz"
        grad_scope: Literal["slice", "all"] = "slice"
        layers: Literal["all"] | tuple[int, ...] = "all"
        kv: Literal["both", "k", "v"] = "both"
        reduce: Literal["sum", "mean_per_token"] = "sum"
        sigma_scope: Literal["layer_slice", "layer_all", "global"] = "layer_slice"
        sigma_shared: bool = False
        sobolev_factor: Literal["none", "sigma2_half"] = "none"
        query_tokens: Literal["last", "question_suffix", "first_k_generated"] = "last"
        first_k: int = Field(4, gt=0)
        text_tokens: Literal["user", "context_only", "all_non_image"] = "user"
        eps: float = Field(1e-6, gt=0)
        seed: int = 0
        row_chunk: int | None = Field(None, gt=0)

    def split(self, view: ModelView, batch: Batch, keys: Sequence[str]) -> tuple[Batch, Query]:
        if self.params.query_tokens != "question_suffix":
            return super().split(view, batch, keys)
        return split_question(view, batch, keys)

    def on_prefix(self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None) -> list[Row]:
        """As in ``Diagnostic``. Raises UserError for a layer that the model lacks, or a query without its question."""
        p = self.params
        if not len(keys) == len(set(keys)) == prefix.rows:
            raise ValueError(f"a prefix of {prefix.rows} rows needs as many different keys, not {list(keys)}")
        with torch.inference_mode(False), torch.no_grad():
            R = token_ranges(prefix, p.text_tokens)
            query, scored, hidden = self._query(view, prefix, query, hidden)
            run = _Passes(p, view, prefix, query, scored, hidden, R, keys)
            rows = [PassRow(s, m, i) for m, s in R.any(-1).nonzero().tolist() for i in range(p.draws)]
            size = p.row_chunk or max(len(rows), 1)
            C_mi = [c for at in range(0, len(rows), size) for c in run.contributions(rows[at : at + size])]
            n = (R.sum(-1) if p.grad_scope == "slice" else prefix.mask.sum(-1).expand(len(MODALITIES), -1)).tolist()
        C = {"sum": [[0.0, 0.0] for _ in keys], "mean_per_token": [[0.0, 0.0] for _ in keys]}
        for (s, m, _), c in zip(rows, C_mi, strict=True):
            C["sum"][s][m] += c / p.draws
            C["mean_per_token"][s][m] += c / p.draws / n[m][s]
        return [row for s, key in enumerate(keys) for row in _report(key, {r: C[r][s] for r in C}, p.reduce)]

    def _query(self, view: ModelView, prefix: Prefix, query: Query, hidden: Tensor | None) -> tuple[Query, Tensor, Tensor]:
        """The tokens x, which of them f is taken at [R, t], and their unperturbed hidden states (SPEC A10)."""
        option = self.params.query_tokens
        if option == "question_suffix":
            missing = (query.roles != Role.QUESTION).all(-1)
            if bool(missing.any()):
                raise UserError("mcr: query_tokens: question_suffix needs a prefix that ends before the question; use query_tokens: last here")
        scored = query.mask.bool()
        if option != "question_suffix":
            scored = torch.arange(query.ids.shape[1], device=query.ids.device) == last_index(query.mask)[:, None]
        if hidden is None or option == "first_k_generated":
            hidden, longer = extend(view, prefix.fork(), *query)
        if option == "first_k_generated":
            tokens = greedy(view, longer, view.logits(hidden[scored]), self.params.first_k)[:, :-1]
            going = (~torch.isin(tokens, view.eos_ids)).long().cumprod(-1)
            added = Query(tokens, going, going * int(Role.ANSWER))
            query = Query(*(torch.cat(pair, -1) for pair in zip(query, added, strict=True)))
            scored = torch.cat([scored, going.bool()], -1)
            hidden, _ = extend(view, prefix.fork(), *query)
        return query, scored, hidden


class _Chunk(NamedTuple):
    """What the rows of one pass share: the tokens [R, T] their gradient counts on, their squared norms [R], the graph's root."""

    rows: Sequence[PassRow]
    scope: Tensor
    norms: Tensor
    root: Tensor


class _Passes:
    """Lines 2-10 of Algorithm 1 for the samples of a prefix; R [M, S, T] are their token ranges."""

    def __init__(self, p: Mcr.Params, view: ModelView, prefix: Prefix, query: Query, scored: Tensor, hidden: Tensor, R: Tensor, keys: Sequence[str]) -> None:
        self.p, self.view, self.prefix, self.query, self.scored, self.R, self.keys = p, view, prefix, query, scored, R, keys
        self.log_P_x = view.logits(hidden).log_softmax(-1)
        self.perturbed = _perturbed(p, view.depth)
        self.sigma = _sigma(p, view, prefix, R)
        self.columns = cache(self._columns)
        self.generator = torch.Generator(view.device)

    def contributions(self, rows: Sequence[PassRow]) -> list[float]:
        """C_{m,i} of each row (7), squared norms summed over tokens."""
        s = torch.tensor([row.s for row in rows], device=self.R.device)
        mask = self.prefix.mask[s]
        scope = self.R[[row.m for row in rows], s] if self.p.grad_scope == "slice" else mask
        with torch.enable_grad():
            root = torch.zeros((), device=s.device, requires_grad=True)
            chunk = _Chunk(rows, scope.float(), torch.zeros(len(rows), device=s.device), root)
            KV_z = fork_cache(self.prefix.cache)
            for index, layer in enumerate(KV_z.layers):
                layer.update = partial(self._update, chunk, index, layer.keys, layer.values)
            z = Prefix(KV_z, mask, self.prefix.roles[s], self.prefix.next_position[s])
            hidden, _ = extend(self.view, z, *self.query.pick(s))
            at, t = self.scored[s].nonzero(as_tuple=True)
            each = divergence(self.p.divergence, self.log_P_x[s[at], t], self.view.logits(hidden[at, t]).log_softmax(-1))
            f = torch.zeros_like(chunk.norms).index_add(0, at, each) / self.scored[s].sum(-1)
            scale = FP16_LOSS_SCALE if hidden.dtype == torch.float16 else 1.0
            torch.autograd.grad(scale * f.sum(), root, allow_unused=True)
        return (chunk.norms / scale**2 / f.detach().clamp_min(self.p.eps)).tolist()

    def _update(self, chunk: _Chunk, layer: int, K: Tensor, V: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What the cache layer's ``update`` is replaced by: K and V of KV_z, then the query's own k and v."""
        return self._perturb(chunk, layer, 0, K, k), self._perturb(chunk, layer, 1, V, v)

    def _perturb(self, chunk: _Chunk, layer: int, kv: int, past: Tensor, new: Tensor) -> Tensor:
        """[R, heads, T + t, d]: lines 4-5, with room for ``new``, tapped for line 8."""
        _, heads, T, d = past.shape
        z = past.new_empty(len(chunk.rows), heads, T + new.shape[-2], d)
        touched = (layer, kv) in self.perturbed
        for (s, m, i), z_row in zip(chunk.rows, z, strict=True):
            z_row[:, :T] = past[s]
            if touched:
                columns, n, cut = self.columns(s, m, T)
                self.generator.manual_seed(noise_seed(self.p.seed, self.keys[s], i, MODALITIES[m], layer, "KV"[kv]))
                eps = torch.randn(heads, n, d, generator=self.generator, device=z.device).mul_(self.sigma[layer][kv][m][s])
                z_row[:, columns] += eps[:, cut:].to(z.dtype)
        if not touched:
            return _Tap.apply(new, chunk.root, z, None, None)
        weight = chunk.scope[:, -T:]
        if self.p.sobolev_factor == "sigma2_half":
            weight = weight * torch.tensor([[self.sigma[layer][kv][m][s] ** 2 / 2] for s, m, _ in chunk.rows], device=z.device)
        return _Tap.apply(new, chunk.root, z, chunk.norms, weight)

    def _columns(self, s: int, m: int, T: int) -> tuple[slice | Tensor, int, int]:
        """R[m] of sample s in a layer's last T columns, the number of its tokens, and of those a sliding window has dropped."""
        at = (self.R[m, s].nonzero()[:, 0] - (self.R.shape[-1] - T)).tolist()
        held = [c for c in at if c >= 0]
        contiguous = held and held[-1] - held[0] == len(held) - 1
        columns = slice(held[0], held[-1] + 1) if contiguous else torch.tensor(held, dtype=torch.long, device=self.R.device)
        return columns, len(at), len(at) - len(held)


class _Tap(torch.autograd.Function):
    """``new`` put at the end of ``z``; backward adds each row's weighted squared gradient norm on the rest of ``z`` to ``norms``."""

    @staticmethod
    def forward(ctx: Any, new: Tensor, root: Tensor, z: Tensor, norms: Tensor | None, weight: Tensor | None) -> Tensor:
        ctx.t, ctx.norms, ctx.weight = new.shape[-2], norms, weight
        z[..., -ctx.t :, :] = new
        ctx.mark_dirty(z)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.norms is not None:
            tokens = torch.linalg.vector_norm(grad[..., : -ctx.t, :], dim=(1, 3), dtype=torch.float32)
            ctx.norms += (tokens.square() * ctx.weight).sum(-1)
        return grad[..., -ctx.t :, :].clone(), None, None, None, None


def divergence(name: str, log_P_x: Tensor, log_P_z: Tensor) -> Tensor:
    """f [...] of distributions given as logarithms [..., vocabulary] (SPEC A5)."""
    if name == "ce_xz":
        return -(log_P_x.exp() * log_P_z).sum(-1)
    if name == "ce_zx":
        return -(log_P_z.exp() * log_P_x).sum(-1)
    ratio = log_P_z - log_P_x  # KL = sum P_x (e^ratio - 1 - ratio), whose terms are small where P_z is near P_x
    return (log_P_x.exp() * (ratio.expm1() - ratio)).sum(-1)


def token_ranges(prefix: Prefix, text_tokens: str) -> Tensor:
    """R [2, S, T]: booleans of the image tokens and of the text tokens (SPEC A11) in a prefix."""
    roles = [torch.tensor([int(r) for r in m], device=prefix.roles.device) for m in ((Role.IMAGE,), TEXT[text_tokens])]
    return torch.stack([torch.isin(prefix.roles, m) & prefix.mask.bool() for m in roles])


def noise_seed(*parts: object) -> int:
    """Seed of the noise of one (seed, key, draw, modality, layer, K or V), whatever else is in the batch."""
    return int.from_bytes(blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest(), "little")


def _perturbed(p: Mcr.Params, depth: int) -> set[tuple[int, int]]:
    """(layer, 0 for K or 1 for V) of all that is perturbed."""
    layers = range(depth) if p.layers == "all" else p.layers
    if wrong := [i for i in layers if not 0 <= i < depth]:
        raise UserError(f"mcr: layers: the model has layers 0 to {depth - 1}, not {', '.join(map(str, wrong))}")
    return {(layer, kv) for layer in layers for kv in {"both": (0, 1), "k": (0,), "v": (1,)}[p.kv]}


def _sigma(p: Mcr.Params, view: ModelView, prefix: Prefix, R: Tensor) -> list[list[list[list[float]]]]:
    """sigma_m [layer][K, V][m][s] (SPEC A8): k standard deviations of the cache over the tokens of ``sigma_scope``."""
    over = prefix.mask.bool().expand_as(R) if p.sigma_scope != "layer_slice" else R.any(0).expand_as(R) if p.sigma_shared else R
    over = over.double().cpu()
    moments = torch.stack([torch.stack([_moments(x, over) for x in (layer.keys, layer.values)]) for layer in prefix.cache.layers])
    if p.sigma_scope == "global":
        moments = moments.sum((0, 1), keepdim=True).expand_as(moments)
    n, total, squares = moments.unbind(2)
    k = view.family.default_k_sigma if p.k_sigma is None else p.k_sigma
    return (k * ((squares - total**2 / n) / (n - 1)).sqrt()).tolist()


def _moments(x: Tensor, over: Tensor) -> Tensor:
    """Count, sum and sum of squares [3, M, S] of keys or values [S, heads, T, d] over tokens [M, S, T]."""
    sums = x.sum((1, 3), dtype=torch.float32).cpu()
    squares = torch.linalg.vector_norm(x, dim=(1, 3), dtype=torch.float32).square().cpu()
    each = torch.stack([torch.full_like(sums, x.shape[1] * x.shape[3]), sums, squares]).double()
    return torch.einsum("mst,kst->kms", over[..., -x.shape[2] :], each)


def split_question(view: ModelView, batch: Batch, keys: Sequence[str]) -> tuple[Batch, Query]:
    """Each prompt up to its last question, and the rest as its query. Raises UserError where that is impossible."""
    is_question = batch.roles == Role.QUESTION
    first = is_question & ~is_question.roll(1, -1)
    start = last_index(first)
    suffix = (torch.arange(batch.roles.shape[1], device=start.device) >= start[:, None]) & batch.attention_mask.bool()
    for key, has, late in zip(keys, is_question.any(-1).tolist(), (suffix & (batch.roles == Role.IMAGE)).any(-1).tolist(), strict=True):
        if not has or late:
            why = "an image after its last question" if has else "no question"
            raise UserError(f"mcr: query_tokens: question_suffix: the prompt of '{key}' has {why}; use query_tokens: last")

    def gather(x: Tensor, value: int) -> Tensor:
        return pad([row[keep].tolist() for row, keep in zip(x, suffix, strict=True)], value, "right").to(x.device)

    query = Query(gather(batch.input_ids, view.pad_id), gather(batch.attention_mask, 0), gather(batch.roles, 0))
    return replace(batch, attention_mask=batch.attention_mask * ~suffix, roles=batch.roles * ~suffix), query


def _report(key: str, C: dict[str, Sequence[float]], reduce: str) -> Iterator[Row]:
    R_V = {name: c[0] / sum(c) if sum(c) else math.nan for name, c in C.items()}
    metrics = {"C_V": C[reduce][0], "C_T": C[reduce][1], "R_V": R_V[reduce], "R_T": 1 - R_V[reduce]}
    metrics |= {f"R_V_{name}": r for name, r in R_V.items()}
    for metric, value in metrics.items():
        yield Row(sample=key, metric=metric, layer=None, head=None, value=value)

"""Modality contribution ratio (MCR): AMPS, equations 5-8 and Algorithm 1, by perturbing the KV cache.

For each modality m in {V, T} with its token range R[m], and for draws i = 1..N:

    P_x  = softmax L(x, KV_prev)                                 x: the query; KV_prev: all tokens before it
    P_z  = softmax L(x, KV_z),  KV_z = KV_prev + eps on R[m],    eps ~ N(0, sigma_m^2 I)
    C_m  = 1/N sum_i ||grad_{KV_z} f||^2 / f,  f = CE(P_x, P_z)  (7) and the first part of (8)
    R_m  = C_m / (C_V + C_T)                                     (8)

Where the paper leaves a choice there is a parameter (SPEC A5-A11, see ``Mcr.Params``). Which prompt is measured
(SPEC A12: base, with P+ or with P-) is the caller's choice.

Cost beside the prefill. P_x comes from the prefill (from one forward of the query where a caller has no ``hidden``).
Each (sample, modality, draw) is a row of one forward and backward of the query, 2N rows a sample, and since rows are
independent the gradient of the summed f holds each row's own. Memory: the noise, N times the slices of the cache, and
the attention over the cache, [rows, heads, T], live until the backward pass; ``row_chunk`` bounds both. Neither KV_z
nor the gradient on it is ever built (``perturb``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from factory import registry
from factory.data.prompt import Role
from factory.diagnose import Diagnostic, Query, Row, attention
from factory.diagnose.summary import Summary
from factory.errors import UserError
from factory.model.prefix import Prefix, extend, fork_cache, greedy, last_index
from factory.model.view import ModelView
from factory.registry import register

from .perturb import MODALITIES, Perturbed
from .sigma import default_k_sigma
from .summary import again, summary_of
from .tokens import question_suffix, spread, token_ranges

FP16_LOSS_SCALE = 256.0  # a long cache's fp16 gradients would round to zero


@register("diagnostic", "mcr")
class Mcr(Diagnostic):
    """How much of the next token's sensitivity lies in the image's KV cache and how much in the text's (AMPS, eq. 5-8).

    Metrics of a sample: ``C_V``, ``C_T``, ``R_V``, ``R_T`` under ``reduce``, and R_V under each reduction: ``R_V_sum``,
    ``R_V_mean_per_token``; with ``repeats`` also ``R_V_again_1`` and so on. Without image tokens C_V is 0, without
    text tokens C_T is 0; R is NaN where both are 0. Between two texts (ours) the letters are A and B, of the tokens of
    the first and of the second: ``R_A`` is the share of the first.
    Noise is drawn on the cache's device: the same seed gives the same bytes on the same device.
    """

    sided = True

    summarised = ("base", "vision", "text")

    class Params(registry.Params):
        """``layers`` and ``kv`` confine both the noise and the gradient; the other options are those of SPEC A5-A11.

        ``k_sigma``: sigma_m in standard deviations of the cache; null takes the zoo card's or the family's (AMPS: Qwen
        0.1, LLaVA 1). ``divergence``: f = CE(P_x, P_z) (Algorithm 1), CE(P_z, P_x) (eq. 5-7 as printed) or KL(P_x ||
        P_z). ``grad_scope``: gradient on the perturbed slice R[m] (eq. 7) or on all of KV_prev (Algorithm 1 as
        printed). ``reduce``: squared norms summed over tokens (eq. 7) or divided by the number of tokens.
        ``sigma_scope``: standard deviation over R[m] of a layer's K or V; over all its tokens; or over the sample's
        whole cache (every layer, K and V together). ``sigma_shared``: R[V] and R[T] together, so that both get the same
        sigma. ``sobolev_factor``: sigma2_half gives each squared gradient its sigma^2/2 of the log-Sobolev bound.
        ``query_tokens``: f at the last token; its mean from the last question on (R[m] then ends before that question);
        or its mean over the last token and ``first_k`` - 1 greedily generated ones.
        ``text_tokens``: R[T] is context, question and options; the context; or all but the image tokens.
        ``eps``: least divisor f. ``row_chunk``: most rows of one pass, null = all.
        ``repeats``: how often R_V is measured, the r-th time more with the noise of ``seed`` + r (AMPS, A.2.3).

        ``draws``: N, the draws of noise of each modality.
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
        repeats: int = Field(1, gt=0)

    def queried(self, prefix: Prefix, keys: Sequence[str]) -> Tensor:
        return (
            question_suffix(prefix, keys)
            if self.params.query_tokens == "question_suffix"
            else super().queried(prefix, keys)
        )

    def rows_held(self, prompts: int) -> float:
        """A copy of each and, until the backward pass, the noise: a row of it covers one modality."""
        rows = len(MODALITIES) * prompts * self.params.draws
        return prompts + min(rows, self.params.row_chunk or rows) / len(MODALITIES)

    def on_prefix(
        self, view: ModelView, prefix: Prefix, query: Query, keys: Sequence[str], hidden: Tensor | None = None
    ) -> list[Row]:
        """As in ``Diagnostic``. Raises UserError for a layer that the model lacks, or a query without its question."""
        if not len(keys) == len(set(keys)) == prefix.rows:
            raise ValueError(f"a prefix of {prefix.rows} rows needs as many different keys, not {list(keys)}")
        with torch.inference_mode(False), torch.no_grad():
            R = token_ranges(prefix, self.params.text_tokens, self.sources)
            n = R.sum(-1) if self.params.grad_scope == "slice" else prefix.mask.sum(-1).expand(len(MODALITIES), -1)
            asked = self._query(view, prefix, query, hidden)
            first, *further = (
                {"sum": sums, "mean_per_token": sums / n.clamp_min(1).cpu()}
                for repeat in range(self.params.repeats)
                for sums in [self._contributions(view, prefix, R, keys, *asked, self.params.seed + repeat)]
            )
        return [
            row
            for s, key in enumerate(keys)
            for row in (
                *self._report(key, {name: c[:, s].tolist() for name, c in first.items()}),
                *(
                    Row(
                        sample=key,
                        metric=again(i, self.sources),
                        layer=None,
                        head=None,
                        value=_share(*C[self.params.reduce][:, s]),
                    )
                    for i, C in enumerate(further, 1)
                ),
            )
        ]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        return summary_of(rows, self.sources)

    def _report(self, key: str, C: dict[str, Sequence[float]]) -> Iterator[Row]:
        first, second = self.sources.first.letter, self.sources.second.letter
        R, reduce = {name: _share(*c) for name, c in C.items()}, self.params.reduce
        metrics = {f"C_{first}": C[reduce][0], f"C_{second}": C[reduce][1]}
        metrics |= {f"R_{first}": R[reduce], f"R_{second}": 1 - R[reduce]}
        metrics |= {f"R_{first}_{name}": r for name, r in R.items()}
        for metric, value in metrics.items():
            yield Row(sample=key, metric=metric, layer=None, head=None, value=value)

    def _query(
        self, view: ModelView, prefix: Prefix, query: Query, hidden: Tensor | None
    ) -> tuple[Query, Tensor, Tensor]:
        """The tokens x, where among them f is taken [S, t], and their hidden states over KV_prev (SPEC A10)."""
        option = self.params.query_tokens
        scored = query.mask.bool()
        if option == "question_suffix":
            if view.family.bidirectional_prompt:
                raise UserError(
                    f"mcr: query_tokens: question_suffix: {type(view.model).__name__} reads a question together with"
                    " what is before it; use last"
                )
            if bool((query.roles != Role.QUESTION).all(-1).any()):
                raise UserError(
                    "mcr: query_tokens: question_suffix needs a prefix that ends before the question; use query_tokens:"
                    " last here"
                )
        else:
            scored = torch.arange(scored.shape[1], device=scored.device) == last_index(query.mask)[:, None]
        if hidden is None or option == "first_k_generated":
            hidden, longer = extend(view, prefix.fork(), *query)
        if option == "first_k_generated":
            tokens = greedy(view, longer, view.logits(hidden[scored]), self.params.first_k)[:, :-1]
            going = (~torch.isin(tokens, view.eos_ids)).long().cumprod(-1)
            query = Query(
                *(torch.cat(pair, -1) for pair in zip(query, (tokens, going, going * int(Role.ANSWER)), strict=True))
            )
            scored = torch.cat([scored, going.bool()], -1)
            hidden, _ = extend(view, prefix.fork(), *query)
        return query, scored, hidden

    def _contributions(
        self,
        view: ModelView,
        prefix: Prefix,
        R: Tensor,
        keys: Sequence[str],
        query: Query,
        scored: Tensor,
        hidden: Tensor,
        seed: int,
    ) -> Tensor:
        """C [2, S] (float64, on the CPU), squared norms summed over tokens: lines 2-10 of Algorithm 1."""
        p = self.params
        k = default_k_sigma(view) if p.k_sigma is None else p.k_sigma
        sigma = k * spread(prefix, R, p.sigma_scope, p.sigma_shared)
        weight = R if p.grad_scope == "slice" else prefix.mask.expand_as(R)
        places, log_P_x = self._places(view.depth), view.logits(hidden).log_softmax(-1)
        pairs = [(m, i) for m in range(len(MODALITIES)) if R[m].any() for i in range(p.draws)]
        C = torch.zeros(len(MODALITIES), prefix.rows, dtype=torch.float64)
        size = p.row_chunk or max(prefix.rows * len(pairs), 1)
        for samples, part in _chunks(prefix.rows, pairs, size):
            here = _samples(prefix, samples)
            rows = Perturbed(
                here,
                keys[samples],
                part,
                p.draws,
                R[:, samples],
                sigma[..., samples],
                places,
                weight[:, samples],
                p.sobolev_factor == "sigma2_half",
                seed,
            )
            x = Query(*(each[samples] for each in query))
            C_mi = self._one_pass(view, rows, x, scored[samples], log_P_x[samples])
            C[:, samples].index_add_(0, rows.modalities, C_mi.double().cpu().T / p.draws)
        return C.masked_fill(~R.any(-1).cpu(), 0.0)  # of a modality that a prompt lacks

    def _one_pass(self, view: ModelView, rows: Perturbed, query: Query, scored: Tensor, log_P_x: Tensor) -> Tensor:
        """C_{m,i} [S, r] (7) of every row: one forward, one backward."""
        s = torch.arange(len(scored), device=scored.device).repeat_interleave(len(rows.pairs))
        with torch.enable_grad():
            with attention(view, rows.attend):
                hidden, _ = extend(view, rows.rows(), *query.pick(s))
            if rows.pending:
                raise UserError(
                    f"mcr: the attention of {type(view.decoder).__name__} cannot be replaced, so its cache cannot be"
                    " perturbed"
                )
            row, t = scored[s].nonzero(as_tuple=True)
            each = divergence(self.params.divergence, log_P_x[s[row], t], view.logits(hidden[row, t]).log_softmax(-1))
            f = each.new_zeros(len(s)).index_add(0, row, each) / scored[s].sum(-1)
            scale = FP16_LOSS_SCALE if hidden.dtype == torch.float16 else 1.0
            torch.autograd.grad(scale * f.sum(), rows.root)
        return rows.norms / scale**2 / f.detach().clamp_min(self.params.eps).view_as(rows.norms)

    def _places(self, depth: int) -> set[tuple[int, int]]:
        layers = range(depth) if self.params.layers == "all" else self.params.layers
        if wrong := [i for i in layers if not 0 <= i < depth]:
            raise UserError(f"mcr: layers: the model has layers 0 to {depth - 1}, not {', '.join(map(str, wrong))}")
        return {(layer, kv) for layer in layers for kv in {"both": (0, 1), "k": (0,), "v": (1,)}[self.params.kv]}


def divergence(name: str, log_P_x: Tensor, log_P_z: Tensor) -> Tensor:
    """f [...] of distributions given as logarithms [..., vocabulary] (SPEC A5)."""
    if name == "ce_xz":
        return -(log_P_x.exp() * log_P_z).sum(-1)
    if name == "ce_zx":
        return -(log_P_z.exp() * log_P_x).sum(-1)
    ratio = (
        log_P_z - log_P_x
    )  # KL = sum P_x (e^ratio - 1 - ratio): no difference of large numbers where P_z is near P_x
    return (log_P_x.exp() * (ratio.expm1() - ratio)).sum(-1)


def _chunks(n: int, pairs: Sequence[tuple[int, int]], size: int) -> Iterator[tuple[slice, Sequence[tuple[int, int]]]]:
    """Cut n samples x pairs into blocks of at most ``size`` rows: whole samples where one fits, else parts of one."""
    step, width = max(size // max(len(pairs), 1), 1), min(size, len(pairs))
    for s in range(0, n if pairs else 0, step):
        for j in range(0, len(pairs), width):
            yield slice(s, min(s + step, n)), pairs[j : j + width]


def _samples(prefix: Prefix, at: slice) -> Prefix:
    cache = fork_cache(prefix.cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[at], layer.values[at]
    return Prefix(cache, prefix.mask[at], prefix.roles[at], prefix.next_position[at])


def _share(C_V: float | Tensor, C_T: float | Tensor) -> float:
    C_V, C_T = float(C_V), float(C_T)
    return C_V / (C_V + C_T) if C_V + C_T else math.nan

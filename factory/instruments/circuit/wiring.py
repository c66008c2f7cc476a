"""What in each block of a decoder reads the residual stream and what adds to it, found by what its modules are given.

One forward is watched. A block is understood where its output is its input plus what attention adds plus what its MLP
adds, each through a norm or without one, one after the other or side by side; any other block is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.errors import UserError
from factory.model.attention import attention
from factory.model.view import ModelView
from factory.model.weights import outputs

CLOSE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PARTS = ("q", "k", "v")


@dataclass(frozen=True)
class Projection:
    """A linear map that reads the stream, and the ``rows`` [n, head_dim] of its weight that are each head's."""

    module: nn.Module
    rows: Tensor

    @property
    def heads(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Wired:
    """The modules of one block. ``reads`` and ``mlp_reads`` norm the stream before attention and MLP, ``after`` what
    attention gives (each may be None); the MLP begins at ``enters`` and what ``adds`` gives is added. ``parallel``: its
    MLP does not see what its attention adds.
    """

    layer: int
    attention: nn.Module
    reads: nn.Module | None
    parts: Mapping[str, Projection]
    o: nn.Module
    after: nn.Module | None
    mlp_reads: nn.Module | None
    enters: nn.Module
    adds: nn.Module
    parallel: bool


def first(x: Any) -> Any:
    """The states among what a module is given or gives."""
    return x[0] if isinstance(x, tuple) else x


def stream_of(args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """The states that a module is called with."""
    return args[0] if args else kwargs.get("hidden_states")


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


class Seen:
    """What each module of one block was given and gave in one forward."""

    def __init__(self) -> None:
        self.given: dict[str, Tensor] = {}
        self.gave: dict[str, Tensor] = {}

    def same(self, a: Tensor, b: Tensor) -> bool:
        return a.numel() == b.numel() and a.shape[-1] == b.shape[-1] and torch.equal(flat(a), flat(b))

    def idle(self, name: str) -> bool:
        """Whether a module gave what it was given, as dropout does."""
        return self.same(self.given[name], self.gave[name])


@contextmanager
def observed(block: nn.Module, understand: Callable[[Seen], None]) -> Iterator[None]:
    """Keep what the modules of ``block`` are given and give, and hand it over when the block ends."""
    seen = Seen()

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            given, gave = stream_of(args, kwargs), first(output)
            if isinstance(given, Tensor) and isinstance(gave, Tensor):
                seen.given[name], seen.gave[name] = given, gave
            if module is block:
                understand(seen)
                seen.given.clear()
                seen.gave.clear()

        return hook

    with ExitStack() as stack:
        for name, module in block.named_modules():
            stack.callback(module.register_forward_hook(keep(name), with_kwargs=True).remove)
        yield


@torch.no_grad()
def wiring(view: ModelView, forward: Callable[[], Any]) -> list[Wired]:
    """Every block of the decoder, from one ``forward`` (two where queries, keys and values come of one matrix).

    Raises ``UserError`` naming the block's class for what is not understood.
    """
    _ = view.heads  # the same in every block, or refused
    blocks: list[Wired] = []
    with ExitStack() as stack:
        for i, block in enumerate(view.layers):
            understand = lambda seen, i=i: blocks.append(_block(view, i, seen))
            stack.enter_context(observed(block, understand))
        forward()
    if len({b.parts["k"].heads for b in blocks}) != 1:
        raise UserError(f"{type(view.model).__name__}: its blocks have different numbers of key and value heads")
    if all(len({id(b.parts[p].module) for p in PARTS}) == len(PARTS) for b in blocks):
        return blocks
    return _fused(view, blocks, forward)


def _refused(block: nn.Module, why: str) -> UserError:
    return UserError(f"{type(block).__name__}: {why}, so its residual stream is no sum of what heads and MLPs add")


def _block(view: ModelView, layer: int, seen: Seen) -> Wired:
    block = view.layers[layer]
    x, out = seen.given.get(""), seen.gave.get("")
    told, mlp = _name(block, view.attention(layer)), view.family.mlp_path
    if x is None or out is None or told not in seen.gave:
        raise _refused(block, "it is not called with hidden states")
    if mlp not in seen.gave:
        raise _refused(block, f"it has no '{mlp}'")
    inside = lambda name, outer: name == outer or name.startswith(f"{outer}.")
    at = lambda name: None if name is None else block.get_submodule(name)
    beside = [n for n in seen.gave if n and not inside(n, told) and not inside(n, mlp) and not seen.idle(n)]
    reads = next((n for n in beside if seen.same(seen.given[n], x) and seen.same(seen.gave[n], seen.given[told])), None)
    if reads is None and not seen.same(seen.given[told], x):
        raise _refused(block, "what its attention reads is no norm of its input")
    after, last = (next((n for n in beside if seen.same(seen.given[n], seen.gave[m])), None) for m in (told, mlp))
    stream = (flat(x), flat(x) + flat(seen.gave[after or told]))
    if not near(stream[1] + flat(seen.gave[last or mlp]), flat(out), view.dtype):
        raise _refused(block, "its output is not its input plus what attention and MLP add")
    if after is not None:
        scaled = seen.given[after] * gain(block.get_submodule(after), seen.given[after])
        if not near(scaled, seen.gave[after], view.dtype):
            raise _refused(block, "the norm after its attention is no RMS norm")
    norms = [n for n in beside if any(near(flat(seen.given[n]), s, view.dtype) for s in stream)]
    ways = [(n, m) for n in norms for m in (mlp, *beside) if m != n and seen.same(seen.given[m], seen.gave[n])]
    norm, enters = next(iter(sorted(ways, key=lambda way: way[1] != mlp)), (None, mlp))
    read = flat(seen.given[norm or mlp])
    if not any(near(read, s, view.dtype) for s in stream):
        raise _refused(block, f"what its '{mlp}' reads is no norm of the stream")
    return Wired(
        layer,
        view.attention(layer),
        at(reads),
        _parts(view, block, view.attention(layer), seen, told),
        view.o_proj(layer),
        at(after),
        at(norm),
        block.get_submodule(enters),
        block.get_submodule(last or mlp),
        off(read, stream[0])
        < off(read, stream[1]),  # either may be near where the stream is far larger than what is added
    )


def gain(norm: nn.Module, x: Tensor) -> Tensor:
    """What an RMS norm multiplies ``x`` [..., d] by: w / sqrt(mean(x^2) + eps), of every value the same function."""
    eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", None) or 0.0))
    wide = x.float()
    w = norm.forward(torch.ones_like(x[..., :1, :])).float() * (1 + eps) ** 0.5
    return (w * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _name(block: nn.Module, module: nn.Module) -> str:
    return next(name for name, each in block.named_modules() if each is module)


def off(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((a - b).abs().max())


def near(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two tensors agree but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=CLOSE[dtype] * max(1.0, float(b.abs().max())))


def _parts(view: ModelView, block: nn.Module, attn: nn.Module, seen: Seen, told: str) -> dict[str, Projection]:
    """The maps to queries, keys and values: three by name, or one that gives all three."""
    read = [
        (name, module)
        for name, module in attn.named_modules()
        if f"{told}.{name}" in seen.given
        and getattr(module, "weight", None) is not None
        and seen.same(seen.given[f"{told}.{name}"], seen.given[told])
    ]
    by_part = {name.rpartition(".")[2].lstrip("w")[:1]: module for name, module in read}
    heads, dim = view.heads, view.head_dim
    if len(read) == 3 and set(by_part) == set(PARTS) and outputs(by_part["q"]) == heads * dim:
        shared = outputs(by_part["k"]) // dim  # as it is: a configuration may name a number that its model ignores
        if outputs(by_part["v"]) == outputs(by_part["k"]) == shared * dim and heads % shared == 0:
            n = {"q": heads, "k": shared, "v": shared}
            return {p: Projection(by_part[p], torch.arange(n[p] * dim).view(n[p], -1)) for p in PARTS}
    whole = outputs(read[0][1]) if len(read) == 1 else 0
    shared = (whole // dim - heads) // 2
    if shared > 0 and whole == (heads + 2 * shared) * dim and heads % shared == 0:
        none = lambda part: torch.empty(heads if part == "q" else shared, 0, dtype=torch.long)
        return {p: Projection(read[0][1], none(p)) for p in PARTS}
    told_of = ", ".join(name for name, _ in read) or "nothing"
    raise UserError(
        f"{type(block).__name__}: its queries, keys and values come of modules that are not known ({told_of}), so that"
        " its heads' inputs cannot be told apart; an adapter has to be merged first"
    )


def layouts(heads: int, kv_heads: int, dim: int) -> list[dict[str, Tensor]]:
    """Rows [n, dim] of queries, keys and values in one matrix: one after the other, or group by group."""
    each, g = torch.arange((heads + 2 * kv_heads) * dim), heads // kv_heads
    q, k, v = each.split([heads * dim, kv_heads * dim, kv_heads * dim])
    grouped = each.view(kv_heads, g + 2, dim)
    return [
        {"q": q.view(heads, dim), "k": k.view(kv_heads, dim), "v": v.view(kv_heads, dim)},
        {"q": grouped[:, :g].reshape(heads, dim), "k": grouped[:, g], "v": grouped[:, g + 1]},
    ]


def _fused(view: ModelView, blocks: list[Wired], forward: Callable[[], Any]) -> list[Wired]:
    """The blocks with each head's rows, found by what attention is then given: values as they are, queries and keys by
    their lengths, which a rotation leaves.
    """
    given: dict[int, tuple[Tensor, ...]] = {}
    made: dict[int, Tensor] = {}

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        given[module.layer_idx] = (q, k, v)
        return sdpa_attention_forward(module, q, k, v, mask, **options)

    with ExitStack() as stack:
        for b in blocks:
            keep = lambda module, args, output, layer=b.layer: made.__setitem__(layer, output)
            stack.callback(b.parts["q"].module.register_forward_hook(keep).remove)
        stack.enter_context(attention(view, attend))
        forward()
    known = []
    for b in blocks:
        rows = next(
            (r for r in layouts(view.heads, b.parts["k"].heads, view.head_dim) if _fits(view, b, given, made, r)), None
        )
        if rows is None:
            raise UserError(
                f"{type(view.layers[b.layer]).__name__}: how queries, keys and values lie in one matrix is not known"
            )
        known.append(replace(b, parts={p: Projection(b.parts[p].module, rows[p]) for p in PARTS}))
    return known


def _fits(
    view: ModelView,
    block: Wired,
    given: Mapping[int, tuple[Tensor, ...]],
    made: Mapping[int, Tensor],
    rows: Mapping[str, Tensor],
) -> bool:
    if block.layer not in given:
        return False
    q, k, v = (x.transpose(1, 2) for x in given[block.layer])
    ours = [made[block.layer].view(*q.shape[:2], -1)[..., rows[p].to(q.device)] for p in PARTS]
    long = lambda x: x.norm(dim=-1)
    return near(ours[2], v, view.dtype) and all(near(long(a), long(b), view.dtype) for a, b in zip(ours, (q, k)))

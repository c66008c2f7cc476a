"""Cost of the Instruction Anchor's diagnostics over one plain forward, and over running the prompts anew for every cut.

    python -m eval_suite.speed.anchor --width 384 --layers 8 --batch 2

    one forward             instructed prompts to next-token logits, no gradient (the baseline)
    knockout                the prompts once, then every pathway cut around every layer as branches over their cache
    knockout, anew          one whole forward for each pathway and layer, with the edges masked out
    head map                the prompts once, then every head silenced at the last position in one pass
    head map, anew          one whole forward for each head
    logit lens, ...         the prompts once, with the residual stream at instruction tokens, and that read-out

Both ways must give the same numbers. Memory is the peak of live tensors, the weights among them, beside that of one
forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from eval_suite.conflict import build_prompt
from eval_suite.speed import timing
from eval_suite.speed.mcr import plain_forward
from eval_suite.speed.plan import peak_memory
from factory.data.instructions import instruction
from factory.diagnose import attention
from factory.instruments.answers import Pair
from factory.instruments.branch import run_stem
from factory.instruments.instructed import Asked, Instructed, asked_of, instruct, look_at
from factory.instruments.lens import restricted_logits
from factory.instruments.nssd import nssd
from factory.model.encode import Batch
from factory.model.prefix import at_last
from factory.model.view import ModelView
from factory.registry import lookup

READOUTS = {"logit lens": "logit_lens", "attribution": "attribution", "head margins": "heads"}
MAP_TARGET = 2.0
TOLERANCE = 1e-4


def items_of(batch: int) -> list[Instructed]:
    """Instructed scenes of both directions. Their answers' first tokens are any ten of the vocabulary: they cost the
    same.
    """
    return [
        Instructed(
            sample,
            "open",
            d,
            instruct(build_prompt(sample, "order1"), instruction("amps_rq1", d)),
            Pair(tuple(range(10, 20)), tuple(range(20, 30))),
        )
        for i, sample in enumerate(timing.scenes(batch))
        for d in [("vision", "text")[i % 2]]
    ]


def made(name: str, **params: object) -> Any:
    """A diagnostic, of which the parts are measured that only its own plugin has."""
    cls = lookup("diagnostic", name)
    return cls(cls.Params(**params))


@torch.no_grad()
def cut_anew(view: ModelView, asked: Asked, pathways: Sequence[str], window: int) -> Tensor:
    """NSSD [pathways, B, layers], a whole forward for each pathway and layer."""
    roles = asked.sets
    out = []
    for pathway in pathways:
        source, target = (roles[name] for name in pathway.split("->"))
        edges = (
            source[:, None, :]
            & target[:, :, None]
            & ~torch.eye(source.shape[1], dtype=torch.bool, device=source.device)
        )
        out.append(
            torch.stack([_after(view, asked, _masked(view, edges, centre, window)) for centre in range(view.depth)], -1)
        )
    return torch.stack(out)


def _masked(view: ModelView, edges: Tensor, centre: int, window: int) -> Callable[[Batch], Tensor]:
    active = range(centre - (window - 1) // 2, centre + window // 2 + 1)

    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: object
    ) -> tuple[Tensor, None]:
        seen = torch.ones_like(edges[:, None]).tril() if mask is None else mask
        return sdpa_attention_forward(
            module,
            q,
            k,
            v,
            seen & ~edges[:, None] if module.layer_idx in active else seen,
            **{**options, "is_causal": False},
        )

    def forward(batch: Batch) -> Tensor:
        with attention(view, attend):
            return _last(view, batch)

    return forward


@torch.no_grad()
def silenced_anew(view: ModelView, asked: Asked) -> Tensor:
    """NSSD [B, layers, heads], a whole forward for each head."""
    return torch.stack(
        [
            torch.stack([_after(view, asked, _silent(view, layer, n)) for n in range(view.heads)], -1)
            for layer in range(view.depth)
        ],
        1,
    )


def _silent(view: ModelView, layer: int, head: int) -> Callable[[Batch], Tensor]:
    own = slice(head * view.head_dim, (head + 1) * view.head_dim)

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0].clone()
        x[:, -1, own] = 0  # prompts are padded on the left
        return x, *args[1:]

    def forward(batch: Batch) -> Tensor:
        handle = view.o_proj(layer).register_forward_pre_hook(silence)
        try:
            return _last(view, batch)
        finally:
            handle.remove()

    return forward


def _last(view: ModelView, batch: Batch) -> Tensor:
    return at_last(
        view.core(**batch, position_ids=batch.position_ids, use_cache=False).last_hidden_state, batch.attention_mask
    )


def _after(view: ModelView, asked: Asked, forward: Callable[[Batch], Tensor]) -> Tensor:
    batch = asked.stem.batch
    before, after = (
        restricted_logits(view, h[:, None], asked.comply, asked.compete)[:, 0]
        for h in (at_last(asked.stem.hidden, batch.attention_mask), forward(batch))
    )
    return nssd(before, after, torch.arange(after.shape[-1], device=after.device) < asked.comply.shape[1])


def measure(view: ModelView, batch: int = 2, repeats: int = 3, anew: bool = True) -> timing.Result:
    items = items_of(batch)
    encoded = view.encode([item.prompt for item in items])
    window = max(1, view.depth // 3)
    knockout, heads = made("knockout", window=window), made("heads")
    pathways = knockout.pathways
    ask = lambda: asked_of(view, items, run_stem(view, encoded), [])

    def read(name: str) -> Callable[[], object]:
        diagnostic = made(name, **({"map": False} if name == "heads" else {}))

        def job() -> object:
            stem, anchor = look_at(view, encoded)
            return diagnostic.read(view, asked_of(view, items, stem, []), anchor)

        return job

    jobs: dict[str, timing.Job] = {
        "one forward": lambda: plain_forward(view, encoded),
        "knockout": lambda: knockout.cut(view, ask()),
        "head map": lambda: heads.silence(view, ask()),
        **{what: read(name) for what, name in READOUTS.items()},
    }
    peaks = {}
    for name, job in jobs.items():
        with peak_memory(view) as peak:
            job()
        peaks[name] = peak[0]
    if anew:
        asked = ask()
        found = knockout.cut(view, asked).by_pathway
        _alike("knockout", torch.stack([found[p][0] for p in pathways]), cut_anew(view, asked, pathways, window))
        _alike("head map", heads.silence(view, asked), silenced_anew(view, asked))
        jobs |= {
            "knockout, anew": lambda: cut_anew(view, asked, pathways, window),
            "head map, anew": lambda: silenced_anew(view, asked),
        }
    times = timing.interleaved(jobs, repeats, view.device)
    ratios = [
        timing.ratio(times, what, "one forward", {"head map": MAP_TARGET}.get(what))
        for what in jobs
        if what != "one forward" and "anew" not in what
    ]
    ratios += [timing.ratio(times, what, f"{what}, anew", 1.0) for what in ("knockout", "head map") if anew]
    ratios += [
        timing.Ratio(f"{what}: peak memory", "one forward", *[peaks[what] / peaks["one forward"]] * 3)
        for what in peaks
        if what != "one forward"
    ]
    setting = {
        "batch": batch,
        "tokens": encoded.input_ids.shape[1],
        "pathways": len(pathways),
        "layers": view.depth,
        "heads": view.heads,
        "repeats": repeats,
    }
    return timing.result(
        "anchor", view, {**setting, "forward_peak_mib": round(peaks["one forward"] / 2**20, 1)}, times, ratios
    )


def _alike(what: str, fast: Tensor, slow: Tensor) -> None:
    if not torch.allclose(fast, slow, atol=TOLERANCE, rtol=TOLERANCE):
        raise RuntimeError(
            f"{what}: branches over one cache do not give the numbers of whole runs (they differ by"
            f" {float((fast - slow).abs().max()):.1e})"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".anchor", __doc__)
    parser.add_argument("--no-anew", action="store_true", help="leave the slow ways out")
    a = parser.parse_args(arguments)
    timing.finish([measure(view, **timing.options(a), anew=not a.no_anew) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()

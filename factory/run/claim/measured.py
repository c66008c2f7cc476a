"""What other ways of measuring the share say of the test samples: each is held against what the null does to them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from factory import progress
from factory.bench import asked_forms
from factory.data.sample import ConflictSample
from factory.diagnose import once_a_prompt
from factory.model.prefix import prefill
from factory.recipe.nodes import Node, given
from factory.run import inputs
from factory.run.claim.draw import Draw
from factory.run.methods.share import swept_samples
from factory.steer.base import Direction
from factory.steer.collect import BASE, asked

Shares = Mapping[tuple[str, Direction], Tensor]
"""By predictor and direction the share of the modality steered to [n samples], the mean over a sample's forms."""


def measured_shares(draw: Draw) -> tuple[tuple[str, ...], Shares]:
    """The ids of the test samples looked at, and what each predictor measures of them."""
    study, spec = draw.study, draw.spec
    samples = swept_samples(study.samples["test"], spec.looked_at)
    nodes = nodes_of(draw)
    about = {**draw.about, "measured": [inputs.with_code(n) for n in nodes], "asks": spec.asks, "share": spec.share}
    stage = draw.folder.stage("predictors", {**about, "looked_at": spec.looked_at})
    size = draw.recipe.collect.batch_size
    batches = dict(enumerate(study.batches(samples, size)))
    chunks = progress.gather(stage, {f"{i:05d}": partial(_measure, draw, nodes, b) for i, b in batches.items()})
    if not stage.done:
        stage.finish({"samples": len(samples)})
    forms = len(study.benchmark.forms)
    whole = {name: torch.cat([c[name] for c in chunks]).view(-1, forms).mean(1).double() for name in chunks[0]}
    return tuple(s.id for s in samples), _toward(draw, whole, [n.label for n in nodes])


def nodes_of(draw: Draw) -> list[Node]:
    """The recipe's own diagnostic, and the other ways of measuring."""
    return [given(draw.recipe.diagnostic), *draw.spec.predictors]


def _toward(draw: Draw, whole: Mapping[str, Tensor], labels: list[str]) -> Shares:
    """The second source's share is what the first's leaves."""
    found: dict[tuple[str, Direction], Tensor] = {}
    sources = draw.study.benchmark.sources
    for d in draw.directions:
        of = lambda share, first=d == sources.first.name: share if first else 1 - share
        ways = {"toward": d, "away": sources.other(d).name}
        found |= {(label, d): of(whole[label]) for label in labels}
        found |= {(f"asked {ask}", d): of(whole[f"ask {ways[ask]}"]) for ask in draw.spec.asks}
    return found


@torch.no_grad()
def _measure(draw: Draw, nodes: list[Node], samples: list[ConflictSample]) -> dict[str, Tensor]:
    """The share of each prompt under each diagnostic, from one prefill, and under the instructions [n prompts]."""
    study, share = draw.study, draw.spec.share
    bench, style = study.bench, draw.recipe.collect.instructions
    plain = asked_forms(bench, samples)
    keys = [f"{s.id}/{form}/base" for s, form, _ in plain]
    found: dict[str, Tensor] = {}
    for ask in (BASE, *(study.benchmark.sources.names if draw.spec.asks else ())):
        batch = bench.view.encode([asked(prompt, ask, style) for *_, prompt in plain])
        hidden, whole = prefill(bench.view, batch)
        for node in nodes if ask == BASE else nodes[:1]:
            rows = node.make().on_whole(bench.view, batch.input_ids, whole, hidden, keys)
            found[node.label if ask == BASE else f"ask {ask}"] = once_a_prompt(rows, keys)[share]
    return found

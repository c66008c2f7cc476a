"""What silencing each head does to an unresolved conflict (MACI, arXiv 2605.19250; our reconstruction).

    e^{l,n} = M(silenced o^{l,n}) - M,      M = z_x - z_y

M is the difference of the two answers' logits after the prompt, as the paper's drivers and resisters are told apart.
A head with e > 0 toward x drives y: silenced, it lets x through. The paper patches paths; here a head's output at the
last prompt token is set to zero and all that follows is run. Only heads above the run's layer are looked at: what is
seen of a prompt at that layer can still change those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

import torch

from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, about
from factory.diagnose.summary import Finding, Summary, Table
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.branch import run_stem
from factory.instruments.heads import SILENCED
from factory.instruments.instructed import padded
from factory.instruments.lens import dictionary_logits
from factory.instruments.silence import silenced
from factory.model.prefix import at_last
from factory.registry import Params, register

SHOWN = 10


class SilencingParams(Params):
    """``dictionary``: how answers are told; samples whose answers begin alike are left out."""

    dictionary: DictionaryParams = DictionaryParams()


@register("diagnostic", "silencing")
class Silencing(Diagnostic):
    """Each head's causal part in a conflict: how far the margin between the two answers moves when it is silenced.

    Rows ``silenced_margin`` by direction, layer and head, on training samples, on which the steering method `maci`
    chooses. Cost: one pass of each prompt and one of its last token for each two heads of a layer.
    """

    Params = SilencingParams
    columned = True
    splits: ClassVar[tuple[str, ...]] = ("train",)
    by_prompt = ()

    @torch.no_grad()
    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        view, sources = bench.view, bench.benchmark.sources
        dictionary, asked, pairs = Dictionary(view.tokenizer, self.params.dictionary), [], []
        for sample in samples:
            for form in bench.benchmark.forms:
                x, y = (bench.benchmark.answer(sample, form, name) for name in sources.names)
                if not isinstance(pair := dictionary.pair(x, y), str):
                    asked.append((sample, form))
                    pairs.append(pair)
        if not asked or bench.layer + 1 == view.depth:
            return []
        stem = run_stem(view, view.encode([bench.benchmark.prompt(s, form) for s, form in asked]))
        ids = [padded([getattr(pair, side) for pair in pairs], view) for side in ("comply", "compete")]

        def margin(hidden: torch.Tensor) -> torch.Tensor:
            z_x, z_y = (dictionary_logits(view, hidden, side).amax(-1) for side in ids)
            return z_x - z_y

        M = margin(at_last(stem.hidden, stem.batch.attention_mask)[:, None])
        e = (margin(silenced(view, stem)) - M[..., None])[:, bench.layer + 1 :].tolist()
        return [
            {**about(*of, "base"), "metric": SILENCED, "direction": name, "layer": layer, "head": head}
            | {"value": sign * v}
            for of, layers in zip(asked, e, strict=True)
            for layer, heads in enumerate(layers, bench.layer + 1)
            for head, v in enumerate(heads)
            for name, sign in zip(sources.names, (1, -1), strict=True)
        ]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        by_head: dict[tuple[str, int, int], list[float]] = defaultdict(list)
        for r in rows:
            by_head[r["direction"], r["layer"], r["head"]].append(r["value"])
        if not by_head:
            return None
        mean = {head: fmean(values) for head, values in by_head.items()}
        lines, findings = [], []
        for toward in dict.fromkeys(direction for direction, *_ in mean):
            own = sorted(((e, *head) for (d, *head), e in mean.items() if d == toward), reverse=True)
            lines += [(toward, layer, head, e) for e, layer, head in own[:SHOWN]]
            driving, resisting = (sum(max(sign * e, 0) for e, *_ in own) for sign in (1, -1))
            many = sum(e > 0 for e, *_ in own)
            text = (
                f"toward {toward}: {many} of {len(own)} heads drive the other source, by {driving:.2f} logits together;"
                f" the others resist it by {resisting:.2f}"
            )
            findings.append(Finding(text, values={"driving": driving, "resisting": resisting, "heads": many}))
        title = "Heads that drive the other source: change of the margin when each is silenced, training prompts"
        table = Table("silencing", title, ("toward", "layer", "head", "mean change"), tuple(lines))
        return Summary("Silenced heads", tuple(findings), (table,))

"""Circuits: which edges carry the picture, or the context, into the answer (ACDC, EAP, EAP-IG, exact patching; PAHQ).

The clean run is the conflict, the other run the same with its picture (or context) exchanged for the agreeing one; the
margin is the picture's answer's logit less the text's. Edges lead from what adds to the residual stream (embeddings,
heads, MLPs) to what reads it (each head's queries, keys and values apart, MLPs, logits).

    x_v = sum_u z_u;   an exchanged edge u->v reads z'_u of the other run

Found on some samples of the training split, judged on others of it. PAHQ (2510.23264) is a reconstruction from the
paper's abstract and released code, and simulated: see ``precision``. Ways to search and what is ours: ``search``,
``curve``. Token roles: the picture's, the context's, the question's tokens, the last one, and all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from factory import registry
from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, about
from factory.diagnose.summary import Summary
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.instructed import LEFT_OUT
from factory.registry import register

from .findings import summarise
from .ground import ground
from .pairs import Exchanged, Twin, twins
from .precision import Precision
from .report import Found
from .search import Order

Method = Literal["exact", "eap", "eap_ig", "acdc"]
DIRECTION = {"picture": "vision", "context": "text"}


@register("diagnostic", "circuit")
class Circuit(Diagnostic):
    """Edges that carry the picture or the context into the answer: exact patching, EAP, EAP-IG and ACDC, in full
    precision and in PAHQ's (a reconstruction), with faithfulness on other samples against random circuits.

    Rows of a sample: ``margin_clean`` and ``margin_exchanged``. Rows about all samples: ``edge`` (a score by method and
    precision, and by role), ``kept`` (ACDC), ``circuit`` and ``circuit_head`` (those of the circuit), ``faithfulness``,
    and what the methods cost. The circuit is ACDC's at ``tau``, else the top edges of the last method.
    """

    splits: ClassVar[tuple[str, ...]] = ("train",)
    at_once = True
    pictured = True
    columned = True

    class Params(registry.Params):
        """``exchange``: what the other run has exchanged: the picture, the context, or every sender's output for
        ``zero`` or for its ``mean`` over prompts and tokens of a role. ``items``: how many samples edges are found on,
        ``held_out``: how many others they are judged on. ``methods``, ``steps`` of EAP-IG. ``taus`` of ACDC, in shares
        of the two runs' difference; ``tau``: the one of them whose edges are the circuit; ``absolute``: an edge goes
        where the margin changes by less than tau either way, else also where it rises; ``order`` of a receiver's edges.

        ``precision``: those in which the methods ``lowered`` are run. ``by_role``: exact patching at each role's tokens
        by itself, too. ``rows``: variants in one forward. ``loop``: run ACDC one edge at a time as well and compare.
        ``timed``: count seconds. ``shares`` of edges of the curve, ``draws`` of random circuits, ``told``: most edges
        of a method in the rows; ``size``: most edges of a circuit that is the top 5 % of a method's scores.
        ``dictionary``: how answers are told. ``seed`` draws.
        """

        exchange: Exchanged = "picture"
        items: PositiveInt = 8
        held_out: PositiveInt = 8
        methods: Annotated[tuple[Method, ...], Field(min_length=1)] = ("exact", "eap", "eap_ig", "acdc")
        steps: PositiveInt = 5
        taus: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (0.05,)
        tau: PositiveFloat = 0.05
        absolute: bool = True
        order: Order = "reverse"
        precision: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("full",)
        lowered: tuple[Method, ...] = ("eap", "acdc")
        by_role: bool = False
        rows: PositiveInt = 16
        loop: bool = False
        timed: bool = False
        shares: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (
            0.001,
            0.002,
            0.005,
            0.01,
            0.02,
            0.05,
            0.1,
            0.2,
            0.5,
            1.0,
        )
        draws: PositiveInt = 3
        told: PositiveInt = 2000
        size: PositiveInt = 200
        dictionary: DictionaryParams = DictionaryParams()
        seed: int = 0

    def chosen(self, ids: Sequence[str]) -> Sequence[str]:
        """``items`` and ``held_out`` of them, by their hashes."""
        return sorted(ids, key=_hashed)[: self.params.items + self.params.held_out]

    def whole_prompts(self, ids: Sequence[str]) -> int:
        """Those whose number does not depend on the model: both runs, gradients (two each), and the curves. Exact
        patching and ACDC run as many again for each edge, or its blocks above."""
        p, seen = self.params, len(self.chosen(ids))
        items = min(p.items, (seen + 1) // 2)
        precisions = lambda method: len(p.precision) if method in p.lowered else 1
        gradients = {"eap": 2, "eap_ig": 2 * p.steps}
        known = sum(gradients.get(m, 0) * precisions(m) for m in p.methods)
        curves = len(p.shares) * (2 * len([m for m in p.methods if m != "acdc"]) + p.draws)
        return 2 * seen + items * known + (seen - items) * curves

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        """Raises ``UserError`` for a model that is not understood as a graph, and where the exchange moves no
        margin."""
        p = self.params
        by_id = {s.id: s for s in samples}
        words, rows = Dictionary(bench.view.tokenizer, p.dictionary), []
        taken: list[list[Twin]] = []
        for key in sorted(by_id, key=_hashed):
            found, without = twins(bench, [by_id[key]], samples, p.exchange, words)
            taken += [found] if found else []
            rows += [
                {**about(s, form, "base"), "metric": LEFT_OUT, "layer": None, "head": None, "value": 1.0, "reason": why}
                for s, form, why in without
            ]
            if len(taken) == p.items + p.held_out:
                break
        if not taken:
            return rows
        half = min(p.items, (len(taken) + 1) // 2)
        parts = [[t for of_sample in some for t in of_sample] for some in (taken[:half], taken[half:])]
        made = ground(bench.view, parts[0], p.exchange)
        held = ground(bench.view, parts[1], p.exchange, made.machine) if parts[1] else None
        for part, measured in zip(parts, (made, held), strict=True):
            if measured is None:
                continue
            margins = [measured.margin(run.hidden).tolist() for run in (measured.clean, measured.other)]
            rows += [
                {**about(t.sample, t.form, "base"), "metric": f"margin_{n}", "layer": None, "head": None, "value": m[i]}
                for i, t in enumerate(part)
                for n, m in zip(("clean", "exchanged"), margins, strict=True)
            ]
        named = {"exchanged": p.exchange, "direction": DIRECTION.get(p.exchange, "")}
        return rows + [{**row, **named} for row in Found(p, made, parts[0], held).rows()]

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary | None:
        return summarise(rows, self.params)


def _hashed(sample: str) -> str:
    """An order of samples that has nothing to do with theirs."""
    return hashlib.sha256(sample.encode()).hexdigest()

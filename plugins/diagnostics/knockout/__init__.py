"""Attention knockout (Instruction Anchor, arXiv 2602.03677, sec. 3.2, eq. 2-4; SPEC section 5): which pathways carry
the decision.

    M'_ij = -inf   for i in T (target tokens), j in S (source tokens), in all heads of a window of layers    (3)
    P~    = P restricted to E_C and E_X and renormalised, at the last prompt token, before and after
    I     = sign(P~'(E_C) - P~(E_C)) * KL(P~ || P~')                                                       (4)

The window's size is lost in our copy of the paper (9 in the work it follows); the direction of the KL and whether the
sign is taken on P~ are reconstructed (SPEC section 5).

Cost beside one prefill: a pathway changes nothing before its first target token, so only the prompt's end from there on
is run again, all layers and pathways as branches over one cache (``factory.instruments.branch``), under SDPA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from factory.bench import Bench
from factory.data.sample import ConflictSample
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose.summary import Summary
from factory.instruments.answers import Dictionary
from factory.instruments.branch import Cuts, branch, tail_of
from factory.instruments.instructed import Asked, InstructedParams, Instructing, ask_instructed, instructed, thinned
from factory.instruments.lens import restricted_logits
from factory.instruments.nssd import KL, mass, nssd
from factory.instruments.pathways import Pathway, first_target, of_an_image
from factory.instruments.resume import around
from factory.model.prefix import last_index
from factory.model.view import ModelView
from factory.registry import register

from .summary import summarise

BESIDE_SOURCES = (
    "compliant->instruction",
    "competing->instruction",
    "compliant->format",
    "compliant->generated",
    "competing->generated",
    "cues->generated",
    "instruction->generated",
)


def pathways_between(sources: Sources) -> tuple[Pathway, ...]:
    """Those of the paper; of two texts the pathway from the first to the second stands for the image's to the text."""
    return (*BESIDE_SOURCES, "image->context" if sources.pictured else "context_a->context_b")


PATHWAYS = pathways_between(PICTURE_AND_TEXT)


@register("diagnostic", "knockout")
class Knockout(Instructing):
    """Effect of cutting attention between token roles, by layer (Instruction Anchor, eq. 3 and 4).

    Rows: ``nssd``, and ``leads`` (1 where E_C still has more mass than E_X), for every pathway and centre layer;
    ``mass`` is P~(E_C) uncut.
    """

    class Params(InstructedParams):
        """``pathways`` are SOURCE->TARGET of image, context (of two texts context_a and context_b), cues (both),
        compliant and competing (the sources, by instruction), question, format, instruction, generated (the last
        prompt token, where the answer begins), template; null takes the paper's.

        ``window``: layers cut at once, centred at each layer. ``kl``: KL(before || after) or the reverse. ``share`` of
        the samples is measured. ``tokens``: most tokens of one pass over a prompt's cache (null: the prompt's length).
        """

        pathways: Annotated[tuple[Pathway, ...], Field(min_length=1)] | None = None
        window: PositiveInt = 9
        kl: KL = "before_after"
        share: float = Field(1.0, gt=0, le=1)
        tokens: PositiveInt | None = None

    @classmethod
    def needs_pictures(cls, params: Any) -> bool:
        return of_an_image(params.pathways or ())

    def chosen(self, ids: Sequence[str]) -> list[str]:
        return thinned(ids, self.params.share)

    def on_samples(self, bench: Bench, samples: Sequence[ConflictSample]) -> list[dict[str, Any]]:
        p, taken = self.params, set(self.chosen([s.id for s in samples]))
        items, rows = instructed(
            bench, [s for s in samples if s.id in taken], p, Dictionary(bench.view.tokenizer, p.dictionary)
        )
        if not items:
            return rows
        asked = ask_instructed(bench, items)
        found = self.cut(bench.view, asked)
        for i in range(len(items)):
            named = asked.facts(i)
            rows.append(
                {**named, "metric": "mass", "pathway": None, "layer": None, "head": None, "value": float(found.mass[i])}
            )
            for pathway, (I, leads) in found.by_pathway.items():
                if bool(found.there[pathway][i]):
                    for metric, values in (("nssd", I[i].tolist()), ("leads", leads[i].tolist())):
                        rows += [
                            {
                                **named,
                                "metric": metric,
                                "pathway": pathway,
                                "layer": layer,
                                "head": None,
                                "value": float(v),
                            }
                            for layer, v in enumerate(values)
                        ]
        return rows

    def cut(self, view: ModelView, asked: Asked) -> Effects:
        """What cutting each pathway around each layer does."""
        p = self.params
        return effects(view, asked, p.pathways or pathways_between(asked.sources), p.window, p.kl, p.tokens)

    @property
    def pathways(self) -> tuple[Pathway, ...]:
        """The pathways that are cut, between its sources."""
        return self.params.pathways or pathways_between(self.sources)

    def summary(self, rows: Sequence[dict[str, Any]]) -> Summary:
        return summarise(rows, self.params.model_copy(update={"pathways": self.pathways}), self.sources)


class Effects:
    """What cutting did: ``mass`` [B] uncut, and by pathway NSSD and whether E_C leads [B, layers], and who has such
    edges [B].
    """

    def __init__(self, mass: Tensor) -> None:
        self.mass = mass
        self.by_pathway: dict[str, tuple[Tensor, Tensor]] = {}
        self.there: dict[str, Tensor] = {}


@torch.no_grad()
def effects(
    view: ModelView,
    asked: Asked,
    pathways: Sequence[str],
    window: int,
    kl: KL = "before_after",
    tokens: int | None = None,
) -> Effects:
    """Cut every pathway around every layer. Pathways with one target share the passes over its tail."""
    stem, roles = asked.stem, asked.sets
    last = last_index(stem.batch.attention_mask)
    rows = torch.arange(len(last), device=last.device)
    ids = torch.cat([asked.comply, asked.compete], -1)
    complies = (torch.arange(ids.shape[1], device=ids.device) < asked.comply.shape[1]).expand_as(ids)
    before = restricted_logits(view, stem.hidden[rows, last][:, None], asked.comply, asked.compete)  # [B, 1, K]
    found = Effects(mass(before[:, 0], complies))
    active = windows(view.depth, window).to(last.device)  # [layers, centres]
    for target in dict.fromkeys(p.split("->")[1] for p in pathways):
        sources = [p.split("->")[0] for p in pathways if p.endswith(f"->{target}")]
        columns = torch.arange(roles[target].shape[1], device=last.device)
        tail = tail_of(
            view,
            stem,
            first_target(stem.batch.roles, stem.batch.attention_mask, [target], asked.directions, asked.sources),
        )
        cuts = Cuts(
            roles[target].expand(len(sources), -1, -1),
            torch.stack([roles[s] for s in sources]),
            torch.arange(len(sources), device=last.device).repeat_interleave(view.depth),
            active.repeat(1, len(sources)),
        )
        hidden = branch(view, stem, tail, cuts, tokens)[rows, :, tail.mask.sum(-1) - 1]
        after = restricted_logits(view, hidden, asked.comply, asked.compete)
        I = nssd(before, after, complies[:, None], kl).view(len(last), len(sources), view.depth)
        leads = (mass(after, complies[:, None]) > 0.5).view_as(I)
        for i, source in enumerate(sources):
            edges = roles[source] & (columns < torch.where(roles[target], columns, -1).amax(-1)[:, None])
            found.by_pathway[f"{source}->{target}"] = I[:, i], leads[:, i]
            found.there[f"{source}->{target}"] = edges.any(-1)
    return found


def windows(depth: int, size: int) -> Tensor:
    """[layers, centres] booleans: the layers of a window of ``size`` centred at each layer, cut off at the ends."""
    return torch.tensor([[layer in layers for layers in around(depth, size)] for layer in range(depth)])

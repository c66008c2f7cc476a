"""PgM: partitioner-guided modal learning (Hu et al., ACM MM 2025, arXiv 2507.11661). A RECONSTRUCTION: its formulas and
its code are in no public source.

Published (abstract): a partitioner segments each modality's representation into a uni-modal part, which can be learned
from that modality alone, and a paired part, which can be learned from their interaction; a learner for each; a decoder
that reconstructs the representation from both; learning rates by modality and partition.

    g_m = sigma(W_m h_m + b_m), or cumax        u_m = g_m h_m        p_m = (1 - g_m) h_m
    the model reads D_m([E^u_m(u_m), E^p_m(p_m)]) in the place of h_m
    L = L_task(u_1, u_2, p_1, p_2) + a1 sum_m L_task(u_m) + a2 L_task(p_1, p_2)
        + a3 sum_m ||h_m - D_m||^2 / ||h_m||^2 + a4 sum_m cos^2(u_m, p_m) + a5 sum_m (share_m - s_m,task)^2
    share_m = mean(g_m)

Ours: all formulas. m is the image (the connector's tokens) or the text (all other tokens), parted where the decoder
takes its embeddings. The heads of the parts are the language model itself, reading a part alone; what is taken away is
set to 0, and of the text that of the role ``words`` alone, so that the question stays. Learners and decoder are
bottlenecks that add nothing at the start; b is drawn at random then, which changes nothing that is read. By default
W = 0, one split of the dimensions for all tokens: on a planted task a gate that tells tokens apart left in both halves
what one of them should hold. Each of L_task(u_1), L_task(u_2) and L_task(p_1, p_2) is one more pass of the decoder a
step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.view import ModelView
from factory.registry import Params, register
from factory.tune import Tuner
from factory.tune.parted import Parting
from factory.tune.roles import Roles
from plugins.tuners.pgm.partition import MODALITIES, PARTS, Partition, Weights, entering
from plugins.tuners.pgm.terms import DEFAULT, PgmTerms

Rate = Annotated[float, Field(gt=0)]
Coefficient = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
ByTask = Annotated[dict[str, Share], Field(min_length=1)]
DIALS = (0.25, 0.75)
RATED = (*PARTS, "gate")


class PartRates(Params):
    """Learning rates of one modality's learners ``uni`` and ``paired``, and of its ``gate``; null is the training's."""

    uni: Rate | None = None
    paired: Rate | None = None
    gate: Rate | None = None


class ModalityRates(Params):
    """Learning rates by modality, ``image`` and ``text``. Decoders learn at the training's."""

    image: PartRates = PartRates()
    text: PartRates = PartRates()


class Targets(Params):
    """The share of the uni-modal part that ``image`` and ``text`` are pulled to: one for all samples, or one by task,
    ``default`` being that of all others; null leaves it free.
    """

    image: Share | ByTask | None = None
    text: Share | ByTask | None = None


class PgmParams(Params):
    """``rank`` of learners and decoders; ``gate_rank`` of W (0: one split of the dimensions for all tokens); ``gate``:
    sigma or cumax; ``spread`` of b at the start: at 0 both parts are copies, and neither a model that normalises what
    it reads nor the overlap tells them apart. ``a1`` weighs the answers from each uni-modal part, ``a2`` those from the
    paired parts, ``a3`` the reconstruction, ``a4`` the overlap, ``a5`` the pull to ``shares``. ``lr`` are learning
    rates by modality and part.
    ``words``: the roles of the text that is taken away where a part is looked at alone; ``text`` for data that have
    questions and no context.
    """

    rank: PositiveInt = 8
    gate_rank: NonNegativeInt = 0
    gate: Literal["sigma", "cumax"] = "sigma"
    spread: Annotated[float, Field(ge=0)] = 1.0
    a1: Coefficient = 0.5
    a2: Coefficient = 0.5
    a3: Coefficient = 0.1
    a4: Coefficient = 1.0
    a5: Coefficient = 1.0
    shares: Targets = Targets()
    lr: ModalityRates = ModalityRates()
    words: Literal["context", "text"] = "context"

    @model_validator(mode="after")
    def _one_split_has_one_share(self) -> PgmParams:
        for m, by_task in self.targets.items():
            if by_task.keys() != {DEFAULT} and not self.gate_rank:
                raise ValueError(f"shares.{m}: by task needs a gate that tells tokens apart: gate_rank of 1 or more")
        return self

    @property
    def targets(self) -> Mapping[str, Mapping[str, float]]:
        """The ``shares`` that are given, by modality and task."""
        found = {m: share for m in MODALITIES if (share := getattr(self.shares, m)) is not None}
        return {m: share if isinstance(share, dict) else {DEFAULT: share} for m, share in found.items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that ``shares`` name."""
        return tuple(sorted({task for by_task in self.targets.values() for task in by_task} - {DEFAULT}))


@register("tuner", "pgm")
class Pgm(Tuner):
    """Image and text in a uni-modal and a paired part each, learnt apart and read together (a reconstruction)."""

    Params = PgmParams
    inside_blocks = False
    learning_rate = 1e-3
    sweep = (3e-4, 1e-3, 3e-3, 1e-2)

    def insert(self, view: ModelView, roles: Roles) -> Iterable[nn.Parameter]:
        if not view.sees:
            raise UserError(f"pgm parts image and text, and {type(view.model).__name__} reads text alone; use lora")
        p = self.params
        made = Partition(view.width, p.rank, p.gate_rank, p.gate, p.words, p.spread)
        self.partition = self.attach(view.decoder, "pgm", made)
        self.keep(view.decoder.register_forward_pre_hook(entering(made, roles), with_kwargs=True))
        return made.parameters()

    def groups(self) -> Mapping[str, Iterable[nn.Parameter]]:
        """lr[modality][partition]: the learners of each, and the gates."""
        own = {(m, part): self._modality(m).get_submodule(part) for m in MODALITIES for part in RATED}
        return {f"{m}.{part}": module.parameters() for (m, part), module in own.items()}

    @property
    def rates(self) -> Mapping[str, float]:
        found = {f"{m}.{part}": getattr(getattr(self.params.lr, m), part) for m in MODALITIES for part in RATED}
        return {name: rate for name, rate in found.items() if rate is not None}

    @property
    def tasks(self) -> Sequence[str]:
        return self.params.tasks

    def terms(self, view: ModelView) -> PgmTerms | None:
        p = self.params
        return PgmTerms(self.partition, p) if any((p.a1, p.a2, p.a3, p.a4, p.a5 and p.targets)) else None

    def settings(self) -> Sequence[str]:
        """Without each part, and with the parts of one modality weighed toward the one or the other."""
        return (*(f"without-{m}-{part}" for m in MODALITIES for part in PARTS), *_DIALLED)

    def set_to(self, setting: str) -> AbstractContextManager[None]:
        return self.partition.weighed(SETTINGS[setting])

    def partings(self, view: ModelView, batch: Batch) -> Mapping[str, Parting]:
        """Of the prompts' words and pictures as the decoder takes them; one forward."""
        self.partition.keeping = True
        try:
            with torch.no_grad():
                view.core(**batch, use_cache=False)
            return self.partition.latest
        finally:
            self.partition.keeping, self.partition.latest = False, {}

    def _modality(self, m: str) -> nn.Module:
        return self.partition.get_submodule(m)


def dialled(share: float) -> tuple[float, float]:
    """What the parts are multiplied by for the uni-modal one to weigh ``share`` of both; 1/2 is the plain setting."""
    return (2 * share, 2 * (1 - share))


_DIALLED = {f"{m}-uni-{share:g}": {m: dialled(share)} for m in MODALITIES for share in DIALS}
SETTINGS: Mapping[str, Weights] = {
    **{f"without-{m}-uni": {m: (0.0, 1.0)} for m in MODALITIES},
    **{f"without-{m}-paired": {m: (1.0, 0.0)} for m in MODALITIES},
    **_DIALLED,
}

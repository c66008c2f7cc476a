"""`train:` and `tune:`: training from scratch, and tuning a model that is there."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, StringConstraints, model_validator

from factory.recipe.explain import refusal
from factory.recipe.nodes import Node, Spec, distinct, plugin, read_node
from factory.recipe.sections.words import PathText, Text, Word

Part = Literal["connector", "vision_tower"]


class TrainSpec(Spec):
    """Training: optimiser steps, batch size in samples, warm-up in steps; ``threads`` null leaves the environment's.

    ``text_weight`` is the weight of the language-modelling loss on the prompt's text beside that on the answer.
    ``vision_steps``, ``text_steps`` and ``connector_steps`` train the vision tower, the language model and then the
    connector alone, before all learn together for ``steps``.

    ``batch_size`` samples make one step at ``learning_rate``, reached after ``warmup`` steps; ``weight_decay`` is
    AdamW's; every ``save_every`` steps a checkpoint is kept.
    """

    steps: PositiveInt
    vision_steps: Annotated[int, Field(ge=0)] = 0
    text_steps: Annotated[int, Field(ge=0)] = 0
    connector_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: PositiveInt = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    text_weight: Annotated[float, Field(ge=0)] = 0.0
    save_every: PositiveInt = 500
    threads: PositiveInt | None = None


class DataFileSpec(Spec):
    """One of several data files, as ``path`` and ``images`` of the data are. ``weight``: how often an epoch shows each
    of its samples; of 0.5 a half of them is drawn.
    """

    path: PathText
    images: PathText | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0


class TuneDataSpec(Spec):
    """What a model is tuned on: a file of conversations with the folder of its images, a folder of labelled photos, or
    the lessons of a benchmark.

    ``path``: LLaVA-JSON, messages, sharegpt, alpaca, or query and response; JSONL, one JSON array or Parquet;
    ``images`` null is the file's own folder. ``mix``: several such files, each with its weight. With ``mask_history``
    each sample's last answer alone is learnt. ``photos``: a folder; a photo's label is in the .txt file beside it, or
    its folder's name, and answers ``question``.
    ``take`` samples are drawn by ``seed``. ``max_tokens`` null cuts nothing; ``max_skipped`` is the share of samples
    that may be unusable; before the first step every row and every picture's header is read, with ``decode`` every
    picture in full. ``cache_features`` runs the frozen vision tower over every picture once, before the first step, and
    trains on what it kept (in half precision, under runs/.features).

    ``lessons``: a benchmark that draws its own training samples. ``group_by_length`` puts samples of like length into
    one batch; ``workers`` processes read ahead. ``pack`` puts short samples that are run at once into rows of up to
    ``max_tokens``, where each is read as if it stood alone.

    ``hub`` is a data set of the Hugging Face hub (OWNER/NAME), of which ``split`` is read, with ``subset`` that of one
    of its configurations; ``revision`` is a branch, tag or commit. With ``streaming`` nothing is indexed, fetched
    whole or held: rows are drawn from a ``buffer`` of so many of each file, and looked at when they come; it takes
    ``steps``. The files of a ``mix`` are then counted once, for their weights.
    """

    path: PathText | None = None
    images: PathText | None = None
    mix: Annotated[tuple[DataFileSpec, ...], Field(min_length=1)] | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    subset: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    photos: PathText | None = None
    question: Text = "What does the picture show?"
    lessons: Annotated[Node, plugin("benchmark")] | None = None
    take: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    max_tokens: PositiveInt | None = 2048
    mask_history: bool = False
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.0
    decode: bool = False
    group_by_length: bool = True
    cache_features: bool = False
    pack: bool = False
    streaming: bool = False
    buffer: PositiveInt = 1000
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_one_source(self) -> TuneDataSpec:
        if sum(given is not None for given in (self.path, self.mix, self.hub, self.photos, self.lessons)) != 1:
            raise ValueError("needs one of path, mix, hub, photos and lessons")
        if odd := [key for key in ("subset", "revision") if getattr(self, key) and not self.hub]:
            raise refusal([((odd[0],), "is for data under hub")])
        if self.mix and self.images:
            raise refusal([(("images",), "with mix each file names the folder of its own images")])
        if self.mask_history and not (self.path or self.mix or self.hub):
            raise refusal([(("mask_history",), "is for conversations, from a file under path, mix or hub")])
        if self.lessons is not None and self.take is None:
            raise ValueError("needs take, the number of lessons to draw")
        if self.pack and (self.max_tokens is None or self.cache_features):
            why = "needs max_tokens" if self.max_tokens is None else "is not done with cache_features"
            raise refusal([(("pack",), f"{why}; leave pack out")])
        if self.streaming:
            self._streams()
        return self

    def _streams(self) -> None:
        if odd := next((key for key in ("photos", "lessons") if getattr(self, key) is not None), None):
            raise refusal([(("streaming",), f"reads rows under path, mix or hub, not {odd}; leave streaming out")])
        if self.take or self.cache_features or self.decode:
            key = next(key for key in ("take", "cache_features", "decode") if getattr(self, key))
            raise refusal([((key,), "needs all rows before the first step, which streaming never has")])
        if self.workers:
            raise refusal([(("workers",), "would share a stream's rows out among themselves; leave workers out")])
        if self.group_by_length and "group_by_length" in self.model_fields_set:
            raise refusal([(("group_by_length",), "needs the length of every row, which streaming does not know")])

    @property
    def origins(self) -> set[str]:
        """Where the samples come from, however many of them are taken."""
        paths = [
            self.path,
            self.photos,
            self.hub and f"{self.hub}:{self.subset}:{self.split}",
            *(file.path for file in self.mix or ()),
        ]
        return {str(path) for path in paths if path} | ({self.lessons.model_dump_json()} if self.lessons else set())


class HeldOutSpec(Spec):
    """What is looked at while tuning and never learnt: a ``share`` of the samples, drawn by the data's seed, or
    ``data`` of its own, or the answers to a ``benchmark``, whose score then decides.

    Looks come ``every`` so many steps and after the last. ``keep`` best: the weights of the best look are the result,
    and a checkpoint is kept at each look, whatever ``save_every`` says. ``patience``: looks in a row without a better
    one that end the training; null never does.
    """

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    data: TuneDataSpec | None = None
    benchmark: Annotated[Node, plugin("benchmark")] | None = None
    every: PositiveInt = 100
    keep: Literal["best", "last"] = "best"
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.share is not None and self.data is not None:
            raise refusal([(("data",), "share is given too; choose one of them")])
        if self.share is None and self.data is None and self.benchmark is None:
            raise ValueError("needs something to look at: share, data or benchmark")
        return self


class TermsSpec(Spec):
    """The terms on which anything is tuned.

    ``batch_size`` is the samples of one optimiser step, over all ranks; each rank takes ``micro_batch`` of its share at
    once (null: all) and accumulates their gradients, so neither the number of ranks nor the memory of one changes what
    is learnt. ``steps`` null follows from ``epochs``. ``warmup`` is a share of the steps. ``beside`` are the parts that
    are trained in full with the tuner. ``bf16`` computes in bfloat16 and keeps what is trained in float32.

    ``schedule`` of the learning rate after the warm-up; ``weight_decay`` is AdamW's; ``max_grad_norm`` clips the
    gradient; ``gradient_checkpointing`` computes activations twice to save memory; every ``save_every`` steps a
    checkpoint is kept; ``threads`` null leaves the environment's. ``report.also`` of the recipe names trackers.

    ``new_tokens`` become tokens of the model, which start at the mean of the embeddings and are trained.

    ``learning_rates`` are those of parts of ``beside`` that learn at a rate of their own. ``neftune`` is the alpha of
    noise on the embeddings while training (NEFTune). ``fp16`` computes in float16 with a scaled loss, on a GPU.
    ``optimizer`` adamw_8bit keeps AdamW's moments in 8 bits (bitsandbytes). The newest ``keep_checkpoints`` are kept.

    ``optimizer`` sam gives AdamW the gradient at the weights that an ascent of length ``rho`` reaches (sharpness-aware
    minimisation): two passes a step, in one process without ZeRO. The training's log has each step's sharpness,
    L(w + eps) - L(w).
    """

    beside: Annotated[tuple[Part, ...], AfterValidator(distinct)] = ("connector",)
    new_tokens: Annotated[tuple[Word, ...], AfterValidator(distinct)] = ()
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 128
    micro_batch: PositiveInt | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    learning_rates: dict[Part, Annotated[float, Field(gt=0)]] | None = None
    optimizer: Literal["adamw", "adamw_8bit", "sam"] = "adamw"
    rho: Annotated[float, Field(gt=0)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    neftune: Annotated[float, Field(gt=0)] | None = None
    bf16: bool = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 1
    threads: PositiveInt | None = None

    @model_validator(mode="after")
    def _agree_with_each_other(self) -> Self:
        if frozen := [part for part in self.learning_rates or {} if part not in self.beside]:
            raise refusal([(("learning_rates", frozen[0]), f"{frozen[0]} is not trained; add it to beside")])
        if self.bf16 and self.fp16:
            raise refusal([(("fp16",), "bf16 is set too; choose one of them")])
        return self


class TuneSpec(TermsSpec):
    """Tuning a pretrained or composed model: ``align`` its connector with the words of short answers, without the
    language model, ``pretrain`` it (tuner ``connector``), or ``finetune`` the model on instructions.

    ``learning_rate`` null is the tuner's own. ``exam``: how many samples of each task of its lessons' benchmark the
    tuned model is examined on afterwards (null: none).

    ``held_out`` is looked at while tuning. ``initial``: a finished run, its tuned/ folder or a folder in PEFT's layout,
    whose values the tuner begins with; the step count and the schedule begin anew.

    ``stage`` says which of the three; ``tuner`` is the method, in ``stage: finetune`` alone; ``data`` is what is
    learnt.
    """

    stage: Literal["align", "pretrain", "finetune"] = "finetune"
    tuner: Annotated[Node, plugin("tuner")] | None = None
    data: TuneDataSpec
    initial: PathText | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    exam: PositiveInt | None = None
    held_out: HeldOutSpec | None = None

    @model_validator(mode="after")
    def _fits_its_stage(self) -> TuneSpec:
        if (self.stage == "finetune") == (self.tuner is None):
            raise ValueError(
                "needs a tuner, as in tuner: {type: mores}"
                if self.tuner is None
                else "pretrains the connector alone: leave tuner out, or say stage: finetune"
            )
        if self.stage == "align" and (self.beside != ("connector",) or not self.data.cache_features):
            raise ValueError(
                "aligns the connector alone, on features that are kept: needs beside: [connector] and data:"
                " {cache_features: true}"
            )
        if self.data.pack and self.neftune:
            raise refusal([(("neftune",), "its noise depends on a row's length, which data.pack changes")])
        if self.data.streaming and self.steps is None:
            raise ValueError("needs steps: how many rows an epoch of data.streaming has is not known")
        if self.data.streaming and self.held_out and self.held_out.share:
            raise refusal([(("held_out", "share"), "a stream's rows are not known before they come; give data")])
        if self.held_out and self.held_out.data and self.held_out.data.streaming:
            raise refusal([(("held_out", "data", "streaming"), "every look reads the same rows; leave streaming out")])
        if self.stage == "align" and self.new_tokens:
            raise refusal([(("new_tokens",), "stage: align runs no language model, which would learn them")])
        if self.stage == "align" and self.neftune:
            raise refusal([(("neftune",), "stage: align runs no language model, whose embeddings would get the noise")])
        if self.held_out and self.held_out.data:
            if self.data.cache_features:
                raise refusal([(("held_out", "data"), "with cache_features give a share of the same data: share: 0.1")])
            if self.held_out.data.origins & self.data.origins:
                raise refusal([(("held_out", "data"), "is what is learnt; hold out a share of it: share: 0.1")])
        if self.data.cache_features and "vision_tower" in self.beside:
            raise ValueError("trains the vision tower, whose features cannot be kept: leave data.cache_features out")
        if self.exam and self.data.lessons is None:
            raise ValueError("has an exam, which needs a benchmark to learn from: data.lessons")
        return self

    @property
    def method(self) -> Node:
        """The tuner's node; in pretraining the one that adds nothing to the language model."""
        return self.tuner or read_node("tuner", "connector")

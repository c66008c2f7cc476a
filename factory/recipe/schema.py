"""What a recipe may say: frozen models whose fields, bounds and defaults are the recipe's reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    FiniteFloat,
    PositiveInt,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from factory.data.instructions import Style
from factory.recipe.explain import refusal
from factory.recipe.nodes import Node, Spec, distinct, distinct_labels, plugin, read_node
from factory.registry import lookup

DEFAULT_STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # SPEC A19
Direction = Literal["vision", "text"]
Layer = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, StringConstraints(min_length=1)]
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
FileName = Annotated[str, StringConstraints(pattern=rf"^{FILE_NAME}$")]


class ComposeSpec(Spec):
    """A model from registered parts; each of vision_encoder and llm names its ``source`` (a folder or hub id), or sizes as ``config``."""

    vision_encoder: Annotated[Node, plugin("vision_encoder")]
    connector: Annotated[Node, plugin("connector")]
    llm: Annotated[Node, plugin("llm")]


class ModelSpec(Spec):
    """Which model: a zoo card, a folder, a hub id, parts to compose, or a configuration to build with random weights.

    Beside a card, ``path`` or ``hub`` say where its weights are. ``tuned`` names tuning runs (their folders, or a ``tuned/``
    folder) whose trained parts are put into it, in order: pretrained connector first. ``quantize`` packs the decoder's linear maps (bitsandbytes);
    ``device_map`` spreads the model over all GPUs (and host memory) as accelerate places it, ``device`` then has no say.
    """

    zoo: Text | None = None
    path: Text | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Text | None = None
    compose: ComposeSpec | None = None
    build: dict[str, Any] | None = None
    tuned: tuple[Text, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: Literal["8bit", "4bit"] | None = None
    device: Text = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    layer: Layer | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> ModelSpec:
        if all(source is None for source in (self.zoo, self.path, self.hub, self.compose, self.build)):
            raise ValueError("needs at least one of zoo, path, hub, compose, build")
        return self


class CollectSpec(Spec):
    """Where hidden states are read; ``layer`` null takes the model's own, then its card's. ``instructions`` words P+ and P-."""

    layer: Layer | None = None
    instructions: Style = "amps_eq9"
    position: Literal["last", "second_last", "last_user_token", "mean_prompt"] = "last"
    batch_size: PositiveInt = 32


class EvaluateSpec(Spec):
    """What is compared: directions, strengths, and the share of errors a strength may add on the dev split; ``cost`` also times
    an answer under each method, on the test split's first samples."""

    directions: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(distinct)] = ("vision", "text")
    strengths: Annotated[tuple[FiniteFloat, ...], Field(min_length=1), AfterValidator(distinct)] = DEFAULT_STRENGTHS
    error_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.05
    batch_size: PositiveInt = 32
    max_new_tokens: PositiveInt = 16
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    cost: bool = False


class TrainSpec(Spec):
    """Training: optimiser steps, batch size in samples, warm-up in steps; ``threads`` null leaves the environment's.

    ``text_weight`` is the weight of the language-modelling loss on the prompt's text beside that on the answer.
    ``vision_steps``, ``text_steps`` and ``connector_steps`` train the vision tower, the language model and then the connector
    alone, before all learn together for ``steps``.
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


class TuneDataSpec(Spec):
    """What a model is tuned on: a file of conversations with the folder of its images, a folder of labelled photos, or the lessons of a benchmark.

    ``path``: LLaVA-JSON or messages, JSONL or one JSON array; ``images`` null is the file's own folder. ``photos``: a folder; a photo's label
    is in the .txt file beside it, or its folder's name, and answers ``question``. ``take`` samples are drawn by
    ``seed``. ``max_tokens`` null cuts nothing; ``max_skipped`` is the share of samples that may be unusable. ``cache_features`` runs the
    frozen vision tower over every picture once, before the first step, and trains on what it kept (in half precision, under runs/.features).
    """

    path: Text | None = None
    images: Text | None = None
    photos: Text | None = None
    question: Text = "What does the picture show?"
    lessons: Annotated[Node, plugin("benchmark")] | None = None
    take: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    max_tokens: PositiveInt | None = 2048
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.0
    group_by_length: bool = True
    cache_features: bool = False
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _has_one_source(self) -> TuneDataSpec:
        if sum(given is not None for given in (self.path, self.photos, self.lessons)) != 1:
            raise ValueError("needs one of path, photos and lessons")
        if self.lessons is not None and self.take is None:
            raise ValueError("needs take, the number of lessons to draw")
        return self


class TermsSpec(Spec):
    """The terms on which anything is tuned.

    ``batch_size`` is the samples of one optimiser step, over all ranks; each rank takes ``micro_batch`` of its share at once (null: all)
    and accumulates their gradients, so neither the number of ranks nor the memory of one changes what is learnt. ``steps`` null
    follows from ``epochs``. ``warmup`` is a share of the steps. ``beside`` are the parts that are trained in full with the tuner.
    ``bf16`` computes in bfloat16 and keeps what is trained in float32.
    """

    beside: Annotated[tuple[Literal["connector", "vision_tower"], ...], AfterValidator(distinct)] = ("connector",)
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 128
    micro_batch: PositiveInt | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 500
    report: Annotated[tuple[Literal["tensorboard", "wandb"], ...], AfterValidator(distinct)] = ("tensorboard",)
    threads: PositiveInt | None = None


class TuneSpec(TermsSpec):
    """Tuning a pretrained or composed model: ``align`` its connector with the words of short answers, without the language model,
    ``pretrain`` it (tuner ``connector``), or ``finetune`` the model on instructions.

    ``learning_rate`` null is the tuner's own. ``exam``: how many samples of each task of its lessons' benchmark the tuned model is
    examined on afterwards (null: none).
    """

    stage: Literal["align", "pretrain", "finetune"] = "finetune"
    tuner: Annotated[Node, plugin("tuner")] | None = None
    data: TuneDataSpec
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    exam: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits_its_stage(self) -> TuneSpec:
        if (self.stage == "finetune") == (self.tuner is None):
            raise ValueError("needs a tuner, as in tuner: {type: mores}" if self.tuner is None else "pretrains the connector alone: leave tuner out, or say stage: finetune")
        if self.stage == "align" and (self.beside != ("connector",) or not self.data.cache_features):
            raise ValueError("aligns the connector alone, on features that are kept: needs beside: [connector] and data: {cache_features: true}")
        if self.data.cache_features and "vision_tower" in self.beside:
            raise ValueError("trains the vision tower, whose features cannot be kept: leave data.cache_features out")
        if self.exam and self.data.lessons is None:
            raise ValueError("has an exam, which needs a benchmark to learn from: data.lessons")
        return self

    @property
    def method(self) -> Node:
        """The tuner's node; in pretraining the one that adds nothing to the language model."""
        return self.tuner or read_node("tuner", "connector")


class ContenderSpec(Spec):
    """A tuner in a comparison and the learning rates it may choose among; null are those that the tuner itself proposes (its ``sweep``).
    Where a task has nothing to choose on, one rate is named, or null is the tuner's default."""

    tuner: Annotated[Node, plugin("tuner")]
    learning_rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), AfterValidator(distinct)] | None = None


class TaskSpec(Spec):
    """What every tuner learns, and how it is scored: on each benchmark of ``score``, at the learning rate that scores best on ``choose``."""

    name: FileName
    data: TuneDataSpec
    choose: Annotated[Node, plugin("benchmark")] | None = None
    score: Annotated[tuple[Annotated[Node, plugin("benchmark")], ...], Field(min_length=1)]

    def nodes(self) -> list[tuple[tuple[str | int, ...], Node]]:
        """Its benchmarks, each with its place in the task."""
        chosen = [(("choose",), self.choose)] if self.choose else []
        return [*chosen, *((("score", i), node) for i, node in enumerate(self.score))]

    @model_validator(mode="after")
    def _chooses_elsewhere(self) -> TaskSpec:
        if self.choose and any(node.type == self.choose.type and node.params == self.choose.params for node in self.score):
            raise refusal([(("choose",), "learning rates would be chosen on what is scored; choose on another split")])
        return self


class CompareSpec(TermsSpec):
    """Tuners side by side on equal terms: each learns each task from the recipe's model anew. ``diagnose_on``: prompts of a task's first
    scored benchmark on which the recipe's diagnostics look at every tuned model."""

    tuners: Annotated[tuple[ContenderSpec, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=1)]
    diagnose_on: PositiveInt = 100

    @model_validator(mode="after")
    def _names_are_apart(self) -> CompareSpec:
        labels, names = [c.tuner.label for c in self.tuners], [task.name for task in self.tasks]
        mistakes = [(("tuners", i, "tuner"), f"another one is called '{label}' too; name one with 'as:'") for i, label in enumerate(labels) if label in labels[:i]]
        mistakes += [(("tuners", i, "tuner"), f"'{label}' cannot name a file; name it with 'as:', of letters, digits, '.', '_' and '-'")
                     for i, label in enumerate(labels) if not re.fullmatch(FILE_NAME, label)]  # fmt: skip
        mistakes += [(("tasks", i, "name"), f"another task is called '{name}' too") for i, name in enumerate(names) if name in names[:i]]
        nodes = [(("tasks", i, *loc), node) for i, task in enumerate(self.tasks) for loc, node in task.nodes()]
        seen = [node.label for _, node in nodes]
        mistakes += [(loc, f"another benchmark is called '{node.label}' too; name one with 'as:'") for k, (loc, node) in enumerate(nodes) if node.label in seen[:k]]
        mistakes += [(("tuners", i, "learning_rates"), f"task '{task.name}' has no 'choose', so that no rate can be chosen: name one") for i, c in enumerate(self.tuners)
                     for task in self.tasks if task.choose is None and c.learning_rates and len(c.learning_rates) > 1]  # fmt: skip
        if mistakes:
            raise refusal(mistakes)
        return self

    def rates(self, contender: ContenderSpec, task: TaskSpec) -> tuple[float, ...]:
        """The learning rates of one tuner on one task, in ascending order."""
        method = lookup("tuner", contender.tuner.type)
        return tuple(sorted(contender.learning_rates or (method.sweep if task.choose else (method.learning_rate,))))

    def tune(self, contender: ContenderSpec, task: TaskSpec, rate: float) -> TuneSpec:
        """One tuning of the comparison as a recipe of its own would have it."""
        terms = {name: getattr(self, name) for name in TermsSpec.model_fields}
        return TuneSpec(tuner=contender.tuner, data=task.data, learning_rate=rate, **terms)


class ReportSpec(Spec):
    """What the report shows."""

    plots: bool = True


class RunSpec(Spec):
    """Where runs are kept; a run's folder is ``root/name``."""

    root: Text = "runs"


class LaunchSpec(Spec):
    """How many ``processes`` on each host; ``hostfile`` (lines ``HOST slots=N``) names the hosts, null is this machine.

    ``zero`` is the ZeRO stage. 3 cuts the model over the processes, for one that no GPU holds; 1 and 2 cut what training keeps.
    ``offload`` names what ZeRO keeps in the host's memory while training.
    """

    processes: PositiveInt = 1
    hostfile: Text | None = None
    zero: Annotated[int, Field(ge=0, le=3)] = 0
    offload: Annotated[tuple[Literal["optimizer", "parameters"], ...], AfterValidator(distinct)] = ()

    @model_validator(mode="after")
    def _offload_fits(self) -> LaunchSpec:
        least = max((3 if part == "parameters" else 1 for part in self.offload), default=0)
        if self.zero < least:
            raise ValueError(f"offload of {' and '.join(self.offload)} needs zero: {least} or more")
        return self


@dataclass(frozen=True)
class Source:
    """Where a recipe came from. No field is compared: two recipes that say the same are equal wherever they stand."""

    path: Path | None = field(default=None, compare=False)
    text: str = field(default="", compare=False)
    overrides: tuple[str, ...] = field(default=(), compare=False)


class Recipe(Spec):
    """One run: a model, the data it is put to, and what is done with it.

    ``data`` is the conflict benchmark that methods are fitted, chosen and scored on; ``benchmarks`` are question benchmarks put to
    the model as it is, to every method at its chosen strength, and to saved ``artefacts``. ``compare`` tunes the model by several
    methods instead and scores each. With ``seeds`` the recipe is run once for each, and the runs are compared.
    """

    name: FileName
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = ()
    plugins: tuple[Text, ...] = ()
    model: ModelSpec
    data: Annotated[Node, plugin("benchmark")] | None = None
    benchmarks: Annotated[tuple[Annotated[Node, plugin("benchmark")], ...], AfterValidator(distinct_labels)] = ()
    artefacts: Annotated[tuple[Text, ...], AfterValidator(distinct)] = ()
    diagnostic: Annotated[Node, plugin("diagnostic")] | None = None
    diagnostics: Annotated[tuple[Annotated[Node, plugin("diagnostic")], ...], AfterValidator(distinct_labels)] = ()
    collect: CollectSpec = CollectSpec()
    steering: Annotated[tuple[Annotated[Node, plugin("steering")], ...], AfterValidator(distinct_labels)] = ()
    evaluate: EvaluateSpec = EvaluateSpec()
    train: TrainSpec | None = None
    tune: TuneSpec | None = None
    compare: CompareSpec | None = None
    report: ReportSpec = ReportSpec()
    run: RunSpec = RunSpec()
    launch: LaunchSpec = LaunchSpec()

    _source: Source = PrivateAttr(Source())

    @model_validator(mode="after")
    def _has_one_job(self) -> Recipe:
        jobs = [job for job in ("train", "tune", "compare") if getattr(self, job) is not None]
        if len(jobs) > 1:
            raise refusal([((jobs[1],), f"stands beside '{jobs[0]}'; a recipe trains from scratch, tunes or compares tuners, one of them")])
        if self.compare and (idle := [key for key in ("data", "diagnostic", "steering", "benchmarks", "artefacts") if getattr(self, key)]):
            raise refusal([((key,), "has no use beside 'compare', whose tasks name their own data and benchmarks; leave it out") for key in idle])
        alone = self.benchmarks and not (self.steering or self.train or self.diagnostic or self.diagnostics)
        if self.data is None and not (self.tune or self.compare) and not alone:
            raise refusal([((), "needs the key 'data' (only benchmarks and artefacts go without)")])
        return self

    @model_validator(mode="after")
    def _zero_has_a_use(self) -> Recipe:
        if not (self.train or self.tune or self.compare) and self.launch.zero in (1, 2):
            raise refusal([(("launch", "zero"), f"stage {self.launch.zero} cuts gradients and optimiser states, and nothing is trained here; use 0, or 3 to cut the model")])
        return self

    @property
    def asked(self) -> tuple[Node, ...]:
        """Every question benchmark that the recipe puts to a model."""
        tasks = self.compare.tasks if self.compare else ()
        return (*self.benchmarks, *(node for task in tasks for _, node in task.nodes()))

    @property
    def source_path(self) -> Path | None:
        """The recipe's file; None for one made in memory."""
        return self._source.path

    @property
    def text(self) -> str:
        """The file's text as given, without overrides."""
        return self._source.text

    @property
    def overrides(self) -> tuple[str, ...]:
        """The ``a.b=c`` that were applied over the text, in order."""
        return self._source.overrides

    def made_from(self, source: Source) -> Recipe:
        """The same recipe, knowing where it came from."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in; reading it back gives an equal recipe."""
        return self.model_dump(mode="json")


PLUGIN_NODES = re.compile(
    r"data|diagnostic|(steering|diagnostics|benchmarks) \d+|tune tuner|tune data lessons|model compose \S+"
    r"|compare tuners \d+ tuner|compare tasks \d+ (choose|score \d+|data lessons)"
)


def is_plugin_node(path: tuple[str | int, ...]) -> bool:
    """Whether the recipe expects a plugin node at ``path``, so that a bare word there stands for ``{type: word}``."""
    return PLUGIN_NODES.fullmatch(" ".join(map(str, path))) is not None

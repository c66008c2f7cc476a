"""What a recipe may say: frozen models whose fields, bounds and defaults are the recipe's reference."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FiniteFloat,
    PositiveInt,
    PrivateAttr,
    SerializeAsAny,
    StringConstraints,
    ValidationError,
    model_serializer,
    model_validator,
)

from factory.data.instructions import Style
from factory.errors import UserError
from factory.recipe.explain import explain, refusal
from factory.registry import Params, lookup

DEFAULT_STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # SPEC A19
Direction = Literal["vision", "text"]
Layer = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Spec(Params):
    """Base of the recipe's own sections: as strict as a plugin's parameters."""


class Node(Spec):
    """A plugin with its parameters: ``{type: amps, beta: 0.5}``, or the bare word ``amps``.

    ``label`` names it in results; it is the recipe's ``as:`` key, else the type.
    """

    kind: str
    type: str
    params: SerializeAsAny[Params]
    label: str

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        head = {"type": self.type} | ({"as": self.label} if self.label != self.type else {})
        return head | self.params.model_dump(mode="json")


def read_node(kind: str, raw: Any) -> Node:
    """The plugin node that ``raw`` describes. Raises pydantic's ValidationError with every mistake in it."""
    if isinstance(raw, Node):
        return raw
    options = {"type": raw} if isinstance(raw, str) else dict(raw) if isinstance(raw, dict) else {}
    plugin = options.pop("type", None)
    label = options.pop("as", plugin)
    if not isinstance(plugin, str):
        raise refusal([((), f"should name a {kind} plugin, as in 'type: NAME' or the bare NAME")])
    try:
        model = lookup(kind, plugin).Params
    except UserError as error:
        raise refusal([(("type",), str(error))]) from error
    mistakes = [] if isinstance(label, str) and label else [(("as",), "should be a name")]
    try:
        params = model.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        mistakes += explain(error, model)
    if mistakes:
        raise refusal(mistakes)
    return Node(kind=kind, type=plugin, params=params, label=label)


def _plugin(kind: str) -> BeforeValidator:
    return BeforeValidator(lambda raw: read_node(kind, raw))


def _distinct_labels(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    labels = [node.label for node in nodes]
    again = [(index, label) for index, label in enumerate(labels) if label in labels[:index]]
    if again:
        raise refusal(((i,), f"another one is called '{label}' too; name one with 'as:'") for i, label in again)
    return nodes


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError("should name each value once")
    return values


class ComposeSpec(Spec):
    """A model from registered parts; each of vision_encoder and llm names its ``source`` (a folder or hub id), or sizes as ``config``."""

    vision_encoder: Annotated[Node, _plugin("vision_encoder")]
    connector: Annotated[Node, _plugin("connector")]
    llm: Annotated[Node, _plugin("llm")]


class ModelSpec(Spec):
    """Which model: a zoo card, a folder, a hub id, parts to compose, or a configuration to build with random weights.

    Beside a card, ``path`` or ``hub`` say where its weights are. ``tuned`` names tuning runs (their folders, or a ``tuned/``
    folder) whose trained parts are put into it, in order: pretrained connector first. ``quantize`` needs bitsandbytes and a GPU;
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

    directions: Annotated[tuple[Direction, ...], Field(min_length=1), AfterValidator(_distinct)] = ("vision", "text")
    strengths: Annotated[tuple[FiniteFloat, ...], Field(min_length=1), AfterValidator(_distinct)] = DEFAULT_STRENGTHS
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
    lessons: Annotated[Node, _plugin("benchmark")] | None = None
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


class TuneSpec(Spec):
    """Tuning a pretrained or composed model: ``align`` its connector with the words of short answers, without the language model,
    ``pretrain`` it (tuner ``connector``), or ``finetune`` the model on instructions.

    ``batch_size`` is the samples of one optimiser step, over all ranks; each rank takes ``micro_batch`` of its share at once (null: all)
    and accumulates their gradients, so neither the number of ranks nor the memory of one changes what is learnt. ``steps`` null
    follows from ``epochs``. ``learning_rate`` null is the tuner's own. ``warmup`` is a share of the steps. ``beside`` are the parts that
    are trained in full with the tuner. ``exam``: how many samples of each task of its lessons' benchmark the tuned model is examined on
    afterwards (null: none). ``bf16`` computes in bfloat16 and keeps what is trained in float32.
    """

    stage: Literal["align", "pretrain", "finetune"] = "finetune"
    tuner: Annotated[Node, _plugin("tuner")] | None = None
    beside: Annotated[tuple[Literal["connector", "vision_tower"], ...], AfterValidator(_distinct)] = ("connector",)
    data: TuneDataSpec
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: PositiveInt | None = None
    batch_size: PositiveInt = 128
    micro_batch: PositiveInt | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_every: PositiveInt = 500
    exam: PositiveInt | None = None
    report: Annotated[tuple[Literal["tensorboard", "wandb"], ...], AfterValidator(_distinct)] = ("tensorboard",)
    threads: PositiveInt | None = None

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
    offload: Annotated[tuple[Literal["optimizer", "parameters"], ...], AfterValidator(_distinct)] = ()

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
    the model as it is, to every method at its chosen strength, and to saved ``artefacts``. With ``seeds`` the recipe is run once for
    each, and the runs are compared.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_distinct)] = ()
    plugins: tuple[Text, ...] = ()
    model: ModelSpec
    data: Annotated[Node, _plugin("benchmark")] | None = None
    benchmarks: Annotated[tuple[Annotated[Node, _plugin("benchmark")], ...], AfterValidator(_distinct_labels)] = ()
    artefacts: Annotated[tuple[Text, ...], AfterValidator(_distinct)] = ()
    diagnostic: Annotated[Node, _plugin("diagnostic")] | None = None
    diagnostics: Annotated[tuple[Annotated[Node, _plugin("diagnostic")], ...], AfterValidator(_distinct_labels)] = ()
    collect: CollectSpec = CollectSpec()
    steering: Annotated[tuple[Annotated[Node, _plugin("steering")], ...], AfterValidator(_distinct_labels)] = ()
    evaluate: EvaluateSpec = EvaluateSpec()
    train: TrainSpec | None = None
    tune: TuneSpec | None = None
    report: ReportSpec = ReportSpec()
    run: RunSpec = RunSpec()
    launch: LaunchSpec = LaunchSpec()

    _source: Source = PrivateAttr(Source())

    @model_validator(mode="after")
    def _has_one_job(self) -> Recipe:
        if self.train is not None and self.tune is not None:
            raise refusal([(("tune",), "stands beside 'train'; a recipe trains from scratch or tunes, one of them")])
        alone = self.benchmarks and not (self.steering or self.train or self.diagnostic or self.diagnostics)
        if self.data is None and self.tune is None and not alone:
            raise refusal([((), "needs the key 'data' (only benchmarks and artefacts go without)")])
        return self

    @model_validator(mode="after")
    def _zero_has_a_use(self) -> Recipe:
        if self.train is None and self.tune is None and self.launch.zero in (1, 2):
            raise refusal([(("launch", "zero"), f"stage {self.launch.zero} cuts gradients and optimiser states, and nothing is trained here; use 0, or 3 to cut the model")])
        return self

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


def is_plugin_node(path: tuple[str | int, ...]) -> bool:
    """Whether the recipe expects a plugin node at ``path``, so that a bare word there stands for ``{type: word}``."""
    alone = {("data",), ("diagnostic",), ("tune", "tuner"), ("tune", "data", "lessons")}
    listed = len(path) == 2 and path[0] in ("steering", "diagnostics", "benchmarks")
    return path in alone or listed or (path[:2] == ("model", "compose") and len(path) == 3)

"""What a recipe may say: frozen models whose fields, bounds and defaults are the recipe's reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from factory.errors import did_you_mean
from factory.recipe.explain import refusal
from factory.recipe.nodes import Node, Spec, distinct, distinct_labels, plugin, read_node, seen_as
from factory.recipe.sections.claim import ClaimSpec
from factory.recipe.sections.contest import CompareSpec, ContenderSpec, TaskSpec
from factory.recipe.sections.launch import LaunchSpec, ReportSpec, RunSpec
from factory.recipe.sections.model import ComposeSpec, ModelSpec
from factory.recipe.sections.steering import DEFAULT_STRENGTHS, CollectSpec, EvaluateSpec
from factory.recipe.sections.training import DataFileSpec, HeldOutSpec, TermsSpec, TrainSpec, TuneDataSpec, TuneSpec
from factory.recipe.sections.words import Direction, FileName, PathText, Seed, Text
from factory.recipe.toward import sources_of, toward

__all__ = [
    "DEFAULT_STRENGTHS",
    "ClaimSpec",
    "CollectSpec",
    "CompareSpec",
    "ComposeSpec",
    "ContenderSpec",
    "DataFileSpec",
    "Direction",
    "EvaluateSpec",
    "HeldOutSpec",
    "LaunchSpec",
    "ModelSpec",
    "Node",
    "Origin",
    "Recipe",
    "ReportSpec",
    "RunSpec",
    "TaskSpec",
    "TermsSpec",
    "TrainSpec",
    "TuneDataSpec",
    "TuneSpec",
    "read_node",
]


@dataclass(frozen=True)
class Origin:
    """Where a recipe came from. No field is compared: two recipes that say the same are equal wherever they stand."""

    path: Path | None = field(default=None, compare=False)
    text: str = field(default="", compare=False)
    overrides: tuple[str, ...] = field(default=(), compare=False)


class Recipe(Spec):
    """One run: a model, the data it is put to, and what is done with it.

    ``data`` is the conflict benchmark that methods are fitted, chosen and scored on; ``benchmarks`` are question
    benchmarks put to the model as it is, to every method at its chosen strength, and to saved ``artefacts``.
    ``compare`` tunes the model by several methods instead and scores each; ``claim`` tests on several draws of ``data``
    whether variants of one steering method do better than one of them. With ``seeds`` the recipe is run once for
    each, and the runs are compared.

    ``name`` is that of the run's folder; ``seed`` decides fits and noise. ``plugins`` are files and modules to load
    first. ``model``: which model; ``diagnostic`` measures every training prompt for the methods that ask for it,
    ``diagnostics`` look at samples by themselves; ``collect``: where states are read; ``steering``: the methods;
    ``evaluate``: how they are compared. ``train`` makes a model from scratch, ``tune`` tunes one; ``report`` is what is
    shown, ``run`` where runs are kept, ``launch`` on how many processes they go.
    """

    name: FileName
    seed: Seed = 0
    seeds: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = ()
    plugins: tuple[Text, ...] = ()
    model: ModelSpec
    data: Annotated[Node, plugin("benchmark")] | None = None
    benchmarks: Annotated[tuple[Annotated[Node, plugin("benchmark")], ...], AfterValidator(distinct_labels)] = ()
    artefacts: Annotated[tuple[PathText, ...], AfterValidator(distinct)] = ()
    diagnostic: Annotated[Node, plugin("diagnostic")] | None = None
    diagnostics: Annotated[tuple[Annotated[Node, plugin("diagnostic")], ...], AfterValidator(distinct_labels)] = ()
    collect: CollectSpec = CollectSpec()
    steering: Annotated[tuple[Annotated[Node, plugin("steering")], ...], AfterValidator(distinct_labels)] = ()
    evaluate: Annotated[EvaluateSpec, Field(validate_default=True)] = EvaluateSpec()
    train: TrainSpec | None = None
    tune: TuneSpec | None = None
    compare: CompareSpec | None = None
    claim: ClaimSpec | None = None
    report: ReportSpec = ReportSpec()
    run: RunSpec = RunSpec()
    launch: LaunchSpec = LaunchSpec()

    _source: Origin = PrivateAttr(Origin())

    @field_validator("diagnostics")
    @classmethod
    def _diagnostics_ask_for_sources(cls, nodes: tuple[Node, ...], info: ValidationInfo) -> tuple[Node, ...]:
        if info.data.get("data") is None:
            return nodes
        sources, out = sources_of(info.data["data"]), []
        for i, node in enumerate(nodes):
            params = toward(node.params, sources, (i,))
            out.append(node if params is node.params else node.model_copy(update={"params": params}))
        return tuple(out)

    @field_validator("evaluate")
    @classmethod
    def _directions_are_sources(cls, evaluate: EvaluateSpec, info: ValidationInfo) -> EvaluateSpec:
        return toward(evaluate, sources_of(info.data.get("data")))

    @model_validator(mode="after")
    def _has_one_job(self) -> Recipe:
        jobs = [job for job in ("train", "tune", "compare") if getattr(self, job) is not None]
        if len(jobs) > 1:
            raise refusal(
                [
                    (
                        (jobs[1],),
                        (
                            f"stands beside '{jobs[0]}'; a recipe trains from scratch, tunes or compares tuners, one of"
                            " them"
                        ),
                    )
                ]
            )
        if self.compare and (
            idle := [key for key in ("data", "diagnostic", "steering", "benchmarks", "artefacts") if getattr(self, key)]
        ):
            raise refusal(
                [
                    (
                        (key,),
                        "has no use beside 'compare', whose tasks name their own data and benchmarks; leave it out",
                    )
                    for key in idle
                ]
            )
        alone = self.benchmarks and not (self.steering or self.train or self.diagnostic or self.diagnostics)
        if self.claim and (
            idle := [key for key in (*jobs, "benchmarks", "artefacts", "diagnostics") if getattr(self, key)]
        ):
            raise refusal([((key,), "has no use beside 'claim', which tests one steering method") for key in idle])
        if self.claim and not (self.data and self.diagnostic and len(self.steering) == 1):
            raise refusal(
                [(("claim",), "needs 'data', a 'diagnostic' and one method of 'steering', whose variants it tests")]
            )
        if self.data is None and not (self.tune or self.compare) and not alone:
            raise refusal([((), "needs the key 'data' (only benchmarks and artefacts go without)")])
        return self

    @model_validator(mode="after")
    def _answers_are_kept_apart(self) -> Recipe:
        """Answers to ``data`` are kept under its plugin's name, those to a benchmark under its label."""
        again = [
            i for i, node in enumerate(self.benchmarks) if self.data and seen_as(node.label) == seen_as(self.data.type)
        ]
        why = "the answers to 'data' are kept under this name; name the benchmark with 'as:'"
        if again:
            raise refusal((("benchmarks", i), why) for i in again)
        return self

    @model_validator(mode="after")
    def _reference_is_a_method(self) -> Recipe:
        labels = [node.label for node in self.steering]
        for key in ("reference", "known"):
            named = getattr(self.evaluate, key)
            if named is not None and named not in labels:
                there = f"{did_you_mean(named, labels)} There are: {', '.join(labels) or 'none'}"
                raise refusal([(("evaluate", key), f"names no method of 'steering', got '{named}'.{there}")])
        if self.evaluate.known and len(self.evaluate.directions) < 2:
            raise refusal([(("evaluate", "known"), "needs both directions: a sample is known from either modality")])
        return self

    @model_validator(mode="after")
    def _diagnostic_measures_prompts(self) -> Recipe:
        if self.diagnostic and not self.diagnostic.plugin.measures_prompts():
            why = f"{self.diagnostic.type} asks prompts of its own and measures no other: list it under `diagnostics:`"
            raise refusal([(("diagnostic",), why)])
        return self

    @model_validator(mode="after")
    def _zero_has_a_use(self) -> Recipe:
        if not (self.train or self.tune or self.compare) and self.launch.zero in (1, 2):
            raise refusal(
                [
                    (
                        ("launch", "zero"),
                        (
                            f"stage {self.launch.zero} cuts gradients and optimiser states, and nothing is trained"
                            " here; use 0, or 3 to cut the model"
                        ),
                    )
                ]
            )
        return self

    @property
    def asked(self) -> tuple[Node, ...]:
        """Every question benchmark that the recipe puts to a model."""
        tasks = self.compare.tasks if self.compare else ()
        held = self.tune.held_out.benchmark if self.tune and self.tune.held_out else None
        return (*self.benchmarks, *([held] if held else []), *(node for task in tasks for _, node in task.nodes()))

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

    def made_from(self, source: Origin) -> Recipe:
        """The same recipe, knowing where it came from."""
        copy = self.model_copy()
        copy._source = source
        return copy

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default filled in; reading it back gives an equal recipe."""
        return self.model_dump(mode="json")

"""Counting what a run would do, from the recipe and the model's configuration alone: no weights are read or allocated.

A prompt pass is one forward of a whole prompt through all blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.model.family import Family
from factory.model.load import family_of, find
from factory.model.zoo import card_folder, read_card
from factory.recipe import Recipe
from factory.recipe.schema import ModelSpec
from factory.run.collect import ASKS
from factory.run.samples import SPLITS, fault, thin
from factory.run.study import make
from factory.steer import LogitsMethod, PromptMethod, States, Steerer

LOOKED_AT = 16
FIT_ON = 128
MODALITIES = 2


@dataclass(frozen=True)
class ModelFacts:
    """A model as its configuration tells it; ``parts`` are parameters by part, each counted once."""

    cls: str
    family: str
    parts: dict[str, int]
    depth: int
    width: int
    kv_width: int
    mlp: int
    vocabulary: int
    dtype: str

    @property
    def bytes_per_value(self) -> int:
        return getattr(torch, self.dtype).itemsize

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def bytes(self) -> int:
        return self.parameters * self.bytes_per_value


@dataclass(frozen=True)
class Data:
    """Samples by split, the forms each is asked in, one of the prompts, and what is wrong with the samples looked at."""

    samples: dict[str, int] = field(default_factory=dict)
    forms: tuple[str, ...] = ()
    prompt: Prompt | None = None
    missing: tuple[str, ...] = ()

    @property
    def prompts(self) -> dict[str, int]:
        return {split: n * len(self.forms) for split, n in self.samples.items()}


@dataclass(frozen=True)
class Method:
    """One method of the comparison; ``parameters`` are the fitted numbers of one variant toward one direction."""

    label: str
    type: str
    place: str
    variants: int
    steers: bool = True
    parameters: int | None = None
    fit_seconds: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Predicted work: ``trunk`` whole-prompt passes, ``cells`` passes of the blocks above the steered one alone, ``share`` of
    all blocks that these are, ``tokens`` generated at most, prompts ``diagnosed`` (once for each wording of the prompt)."""

    name: str
    prompts: int
    trunk: float = 0.0
    cells: int = 0
    share: float = 1.0
    tokens: int = 0
    diagnosed: int = 0
    fits: int = 0

    @property
    def collects(self) -> bool:
        """Whether states are collected, with or without a diagnosis: the shared prefix, then three short suffixes."""
        return self.name in ("collect", "diagnose")

    @property
    def passes(self) -> float:
        return self.trunk + self.cells * self.share


@dataclass(frozen=True)
class Estimate:
    """All that is known of a run before it starts; None where something needed is missing."""

    name: str
    missing: list[str]
    model: ModelFacts | None
    layer: int | None
    data: Data
    methods: list[Method] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    @property
    def passes(self) -> float:
        return sum(stage.passes for stage in self.stages)


def facts(config: Any, family: Family, dtype: torch.dtype) -> ModelFacts:
    """A model's sizes from its configuration; its weights are neither read nor allocated."""
    with torch.device("meta"):
        model = getattr(transformers, family.model_class)(config)
    return facts_of(model, family, dtype)


def facts_of(model: nn.Module, family: Family, dtype: torch.dtype) -> ModelFacts:
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("vision", family.vision_tower(model)), ("connector", family.connector(model)), ("decoder", family.decoder(model)))
    }
    parts["unembedding"] = sum(p.numel() for p in model.parameters()) - sum(parts.values())
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_width = (getattr(text, "num_key_value_heads", None) or heads) * head_dim
    parts = {name: n for name, n in parts.items() if n}
    return ModelFacts(
        type(model).__name__, family.name, parts, text.num_hidden_layers, text.hidden_size, kv_width, text.intermediate_size, text.vocab_size, str(dtype).removeprefix("torch.")
    )  # fmt: skip


def find_facts(spec: ModelSpec) -> tuple[ModelFacts | None, list[str]]:
    """The model's facts as far as its files tell them, and what is missing of it."""
    missing = []
    try:
        find(spec)
    except UserError as error:
        missing.append(str(error))
    card = read_card(spec.zoo) if spec.zoo else None
    folder = Path(spec.path).expanduser() if spec.path else card_folder(card) if card else None
    if folder is None or not (folder / "config.json").is_file():
        return None, missing
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        return facts(config, family_of(config), getattr(torch, spec.dtype)), missing
    except (UserError, ValueError, OSError, KeyError) as error:
        return None, missing or [str(error).splitlines()[0]]


def estimate(recipe: Recipe) -> Estimate:
    """Count a comparison's work. Nothing is loaded; what is missing becomes a line, not an error."""
    model, missing = find_facts(recipe.model)
    layer = site(recipe, model) if model else None
    if model and not layer < model.depth:
        missing.append(f"layer {layer}: the model has decoder blocks 0 to {model.depth - 1}")
    data = look(recipe)
    methods = [describe(node.label, node.type, make(node), model, data, recipe.seed) for node in recipe.steering]
    share = (model.depth - layer - 1) / model.depth if model else 1.0
    return Estimate(recipe.name, [*missing, *data.missing], model, layer, data, methods, stages(recipe, data, share))


def site(recipe: Recipe, model: ModelFacts) -> int:
    """The block that a run steers, as ``factory.run.study.steered_layer`` has it, for a model that is not loaded."""
    card = read_card(recipe.model.zoo) if recipe.model.zoo else None
    named = (recipe.collect.layer, recipe.model.layer, card.layer if card else None)
    return next((layer for layer in named if layer is not None), model.depth // 2)


def look(recipe: Recipe) -> Data:
    """Count the samples and look at some of each split."""
    try:
        benchmark = make(recipe.data)
        splits = {split: benchmark.samples(split) for split in SPLITS}
    except UserError as error:
        return Data(missing=(str(error),))
    looked_at = [s for samples in splits.values() for s in thin(samples, LOOKED_AT)]
    faults = {s.id: why for s in looked_at if (why := fault(s))}
    usable = next((s for s in looked_at if s.id not in faults), None)
    prompt = benchmark.prompt(usable, benchmark.forms[0]) if usable else None
    lost = [f"{len(faults)} of {len(looked_at)} samples looked at cannot be used; the first: {': '.join(next(iter(faults.items())))}"] if faults else []
    return Data({split: len(samples) for split, samples in splits.items()}, tuple(benchmark.forms), prompt, tuple(lost))


def describe(label: str, kind: str, method: Any, model: ModelFacts | None, data: Data, seed: int) -> Method:
    """Where a method acts, and what it learns: it is fitted on random states of the model's width."""
    if isinstance(method, PromptMethod):
        shots = f", {method.shots} worked example(s)" if method.shots else ""
        return Method(label, kind, f"the prompt{shots}", 1, steers=False)
    if isinstance(method, LogitsMethod):
        copies = len(method.copies(data.prompt or Prompt(()), "vision"))
        return Method(label, kind, f"the logits, beside {copies} altered copy(s) of the prompt" if copies else "the computation of the prompt and the answer", 1, steers=False)
    where = method.where()
    prompt = "no prompt token" if where.role == "none" else f"{where.role} prompt tokens" + (f" ({where.take})" if where.take != "all" else "")
    place = prompt + (" and the answer's tokens" if where.generated else "")
    variants = method.variants() or {"": method}
    if model is None or not data.prompts:
        return Method(label, kind, place, len(variants))
    total = data.prompts["train"]
    n = max(2, min(FIT_ON, total))
    state, seconds = timed(lambda: next(iter(variants.values())).fit(random_states(n, model.width, seed)))
    return Method(label, kind, place, len(variants), True, sum(t.numel() for t in state.values()), seconds * max(1.0, total / n))


def random_states(n: int, width: int, seed: int) -> States:
    draw = torch.Generator().manual_seed(seed)
    base, toward, away, *tails = torch.randn(6, n, width, generator=draw)
    return States("vision", base, toward, away, torch.rand(n, generator=draw) + 0.1, ["all"] * n, seed, tuple(tails))


def stages(recipe: Recipe, data: Data, share: float) -> list[Stage]:
    """The stages of a comparison in the order in which they run; ``share`` of the blocks lie above the steered one."""
    prompts = data.prompts
    if not prompts:
        return []
    methods = [make(node) for node in recipe.steering]
    steerers = [m for m in methods if isinstance(m, Steerer)]
    directions, variants = len(recipe.evaluate.directions), sum(len(m.variants()) or 1 for m in steerers)
    train, out = prompts["train"], []
    if recipe.diagnostic:
        out.append(Stage("diagnose", prompts["test"], prompts["test"], diagnosed=len(ASKS) * prompts["test"]))
    if steerers:
        out.append(Stage("collect", train, train, diagnosed=train if recipe.diagnostic else 0))
        out.append(Stage("fit", train, fits=variants * directions))
    want = sum(len(m.variants()) or 1 for m in steerers if m.trial_strengths)
    if want:
        out.append(_scored("trials", recipe, data, "train", [], want * directions, share))
    out.append(_scored("dev", recipe, data, "dev", methods, variants * directions, share))
    out.append(_scored("test", recipe, data, "test", methods, len(steerers) * directions, share))
    return out


def _scored(name: str, recipe: Recipe, data: Data, split: str, methods: Sequence[Any], fitted: int, share: float) -> Stage:
    """A scored split: prompt methods answer in full, fitted ones share a trunk; a worked example costs one more prompt."""
    e, prompts = recipe.evaluate, data.prompts[split]
    cells = fitted * len(e.strengths)
    trunk, tokens = prompts if cells else 0, cells * prompts * e.max_new_tokens
    for method in methods:
        if isinstance(method, LogitsMethod):
            rows = prompts * sum(1 + len(method.copies(data.prompt or Prompt(()), d)) for d in e.directions)
            trunk, tokens = trunk + rows, tokens + rows * len(e.strengths) * e.max_new_tokens
        elif isinstance(method, PromptMethod):
            asked = prompts * (len(e.directions) if by_direction(method, data.prompt) else 1)
            trunk += asked * (1 + method.shots)
            tokens += asked * (method.max_new_tokens or e.max_new_tokens)
    return Stage(name, prompts, trunk, cells * prompts, share, tokens)


def by_direction(method: PromptMethod, prompt: Prompt | None) -> bool:
    """Whether the method's prompts depend on the direction; with worked examples they do, through the examples' answers."""
    prompt = prompt or Prompt(())
    return bool(method.shots) or method.rewrite(prompt, "vision", []) != method.rewrite(prompt, "text", [])


def memory(recipe: Recipe, model: ModelFacts, prompt_tokens: int) -> int:
    """Bytes at the fullest moment, about: weights, and the caches and widest activations of one batch.

    A collected prompt's cache is held once for itself, once for each wording and, until its backward pass, once for
    each of the diagnostic's draws in each modality; an evaluated one once for the trunk and once for the cell.
    """
    cache = 2 * model.depth * model.kv_width * prompt_tokens * model.bytes_per_value
    widest = prompt_tokens * (3 * model.mlp + 4 * model.width) * model.bytes_per_value
    collecting = recipe.collect.batch_size
    drawn = 0
    if recipe.diagnostic:
        drawn = collecting * MODALITIES * getattr(recipe.diagnostic.params, "draws", 0)
        drawn = min(drawn, getattr(recipe.diagnostic.params, "row_chunk", None) or drawn)
    steered = prompt_tokens * model.width * (4 + model.bytes_per_value)
    evaluating = recipe.evaluate.batch_size * (2 * cache + widest + 2 * steered + 4 * model.vocabulary)
    return model.bytes + max(collecting * ((1 + len(ASKS)) * cache + widest) + drawn * cache, evaluating)


def timed(job: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, float]:
    """What a job returns, and its seconds."""
    start = time.perf_counter()
    value = job()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, time.perf_counter() - start

"""Counting what a run would do, from the recipe and the model's configuration alone: no weights are read or allocated.

A prompt pass is one forward of a whole prompt through all blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.model.family import Family
from factory.model.load import placement
from factory.model.source import family_of, find, known
from factory.model.zoo import Card
from factory.recipe import Recipe
from factory.recipe.schema import ModelSpec
from factory.run.collect import ASKS
from factory.run.samples import SPLITS, fault, missing, thin
from factory.run.study import make, steered_layer
from factory.steer import Context, LogitsMethod, PromptMethod, States, Steerer, Trials

LOOKED_AT = 16
FIT_ON = 128
TRIED_ON = 4
MODALITIES = 2
QUANTISED = {"8bit": 1.0, "4bit": 0.516}  # bytes a weight: LLM.int8 and nf4 with doubly quantised scales (QLoRA, sec. 3: 0.127 bits)
TOKENS_A_WORD, TEMPLATE_TOKENS = 1.35, 30  # for a tokenizer that is not there; English under a vocabulary of 32,000 or more


@dataclass(frozen=True)
class ModelFacts:
    """A model as its configuration tells it; ``parts`` are parameters by part, each counted once, ``linear`` those that quantisation packs."""

    cls: str
    family: str
    parts: dict[str, int]
    depth: int
    width: int
    kv_width: int
    mlp: int
    vocabulary: int
    dtype: str
    linear: int = 0
    quantize: str | None = None
    image_tokens: int | None = None

    @property
    def bytes_per_value(self) -> int:
        return getattr(torch, self.dtype).itemsize

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())

    @property
    def bytes(self) -> int:
        packed = self.linear if self.quantize else 0
        return (self.parameters - packed) * self.bytes_per_value + round(packed * QUANTISED.get(self.quantize, 0))


@dataclass(frozen=True)
class Data:
    """Samples by split, the forms each is asked in, one of the prompts, the words of a prompt, and what is wrong with the samples looked at."""

    samples: dict[str, int] = field(default_factory=dict)
    forms: tuple[str, ...] = ()
    prompt: Prompt | None = None
    words: float = 0.0
    missing: tuple[str, ...] = ()

    @property
    def prompts(self) -> dict[str, int]:
        return {split: n * len(self.forms) for split, n in self.samples.items()}


@dataclass(frozen=True)
class Method:
    """One method of the comparison; ``parameters`` are the fitted numbers of one variant toward one direction; ``looks`` the look-ahead
    passes of the blocks above the site that its controller makes on each prompt, ``hidings`` those of all blocks with a modality
    hidden, ``trials`` the strengths it tries on training prompts."""

    label: str
    type: str
    place: str
    variants: int
    steers: bool = True
    parameters: int | None = None
    fit_seconds: float = 0.0
    looks: int = 0
    hidings: int = 0
    trials: int = 0


@dataclass(frozen=True)
class Stage:
    """Predicted work: ``trunk`` whole-prompt passes, ``cells`` and ``looks`` (a controller's, ahead) passes of the blocks above the
    steered one alone, ``share`` of all blocks that these are, ``hidings`` passes of all blocks without the images', ``tokens`` generated at most, prompts ``diagnosed`` (once for each wording)."""

    name: str
    prompts: int
    trunk: float = 0.0
    cells: int = 0
    looks: int = 0
    hidings: int = 0
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
        return self.trunk + self.hidings + (self.cells + self.looks) * self.share


@dataclass(frozen=True)
class Estimate:
    """All that is known of a run before it starts; None where something needed is missing. ``prompt_tokens`` are guessed from words."""

    name: str
    missing: list[str]
    model: ModelFacts | None
    layer: int | None
    data: Data
    prompt_tokens: int | None = None
    methods: list[Method] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    @property
    def passes(self) -> float:
        return sum(stage.passes for stage in self.stages)


def facts(config: Any, family: Family, dtype: torch.dtype) -> ModelFacts:
    """A model's sizes from its configuration; its weights are neither read nor allocated."""
    with torch.device("meta"):
        model = family.hf_class()(config)
    return facts_of(model, family, dtype)


def _largest(size: int | list[int] | None) -> int | None:
    """A size that may differ from block to block."""
    return max(size) if isinstance(size, list) else size


def facts_of(model: nn.Module, family: Family, dtype: torch.dtype) -> ModelFacts:
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (("vision", family.vision_tower(model)), ("connector", family.connector(model)), ("decoder", family.decoder(model)))
    }
    parts["unembedding"] = sum(p.numel() for p in model.parameters()) - sum(parts.values())
    text = model.config.get_text_config()
    heads, kv_heads, inner = (_largest(getattr(text, name, None)) for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"))
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_width = (kv_heads or heads) * head_dim
    parts = {name: n for name, n in parts.items() if n}
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return ModelFacts(
        type(model).__name__, family.name, parts, text.num_hidden_layers, text.hidden_size, kv_width, inner, text.vocab_size, str(dtype).removeprefix("torch."), linear
    )  # fmt: skip


def find_facts(spec: ModelSpec) -> tuple[ModelFacts | None, Card | None, list[str]]:
    """The model's facts from its folder's configuration, else from its zoo card, the card if it is this model's, and what is missing of it."""
    lacking = []
    for check in (find, placement):
        try:
            check(spec)
        except UserError as error:
            lacking.append(str(error))
    try:
        config, card = known(spec)
        found = facts(config, family_of(config), getattr(torch, spec.dtype))
    except UserError as error:
        return None, None, lacking or [str(error)]
    return replace(found, quantize=spec.quantize, image_tokens=card.image_tokens if card else None), card, lacking


def estimate(recipe: Recipe, limit: int | None = None) -> Estimate:
    """Count a comparison's work, of at most ``limit`` samples of each split. Nothing is loaded; what is missing becomes a line, not an error."""
    model, card, lacking = find_facts(recipe.model)
    layer = None
    if model:
        try:
            layer = steered_layer(recipe, model.depth, card)
        except UserError as error:
            lacking.append(str(error))
    data = look(recipe, limit)
    methods = [describe(node.label, node.type, make(node), model, data, recipe.seed) for node in recipe.steering]
    share = (model.depth - layer - 1) / model.depth if layer is not None else 1.0
    tokens = round(model.image_tokens + TOKENS_A_WORD * data.words + TEMPLATE_TOKENS) if model and model.image_tokens and data.words else None
    return Estimate(recipe.name, [*lacking, *data.missing], model, layer, data, tokens, methods, stages(recipe, data, methods, share))


def look(recipe: Recipe, limit: int | None = None) -> Data:
    """Count the samples and look at some of each split; a benchmark whose file is not there may know what it would hold."""
    benchmark = make(recipe.data)
    forms = tuple(getattr(benchmark, "forms", ()))
    try:
        splits = {split: thin(benchmark.samples(split), limit) for split in SPLITS}
    except UserError as error:
        expected = getattr(benchmark, "expected", {})
        counts = {split: n if limit is None else min(n, limit) for split, n in expected.items()}
        return Data(counts, forms, words=getattr(benchmark, "typical_words", 0.0), missing=(str(error),))
    absent, line = missing(benchmark, [s for samples in splits.values() for s in samples])
    gone = set(absent)
    looked_at = [s for samples in splits.values() for s in thin([s for s in samples if s.id not in gone], LOOKED_AT)]
    faults = {s.id: why for s in looked_at if (why := fault(s))}
    usable = next((s for s in looked_at if s.id not in faults), None)
    prompt = benchmark.prompt(usable, forms[0]) if usable else None
    lost = [line] if absent else []
    if faults:
        lost.append(f"{len(faults)} of {len(looked_at)} samples looked at cannot be used; the first: {': '.join(next(iter(faults.items())))}")
    typical = sum(len(segment.text.split()) for segment in prompt.segments) if prompt else getattr(benchmark, "typical_words", 0.0)
    return Data({split: len(samples) for split, samples in splits.items()}, forms, prompt, typical, tuple(lost))


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
    first = next(iter(variants.values()))
    try:
        state, seconds = timed(lambda: first.fit(random_states(n, model.width, seed)))
    except UserError:  # it is fitted on what the run's diagnostics find
        return Method(label, kind, place, len(variants))
    looks, hidings = count_looks(first, state, model.width, seed)
    return Method(label, kind, place, len(variants), True, sum(t.numel() for t in state.values()), seconds * max(1.0, total / n), looks, hidings, len(first.trial_strengths))


def count_looks(method: Steerer, state: dict[str, Tensor], width: int, seed: int) -> tuple[int, int]:
    """How often a method's controller runs the blocks above the site, and all blocks, ahead on a prompt: counted on random prompts,
    once it is calibrated."""
    draw, asked = torch.Generator().manual_seed(seed), []

    def noting(what: str) -> Callable[[Tensor], Tensor]:
        def look(_: Tensor) -> Tensor:
            asked.append(what)
            return torch.randn(TRIED_ON, 2 * TRIED_ON, generator=draw)

        return look

    states, ctx = random_states(TRIED_ON, width, seed), Context(layer=0, probe=noting("above"), hiding=noting("hiding"))
    if strengths := method.trial_strengths:
        follow = torch.rand(TRIED_ON, len(strengths), generator=draw) < 0.5
        trials = Trials(follow, ~follow, method.look(states.base, state, ctx), states.base, states.r_v, torch.arange(TRIED_ON), seed)
        state = method.calibrate(state, trials)
    asked.clear()
    method.gain(states.base, state, ctx)
    return asked.count("above"), asked.count("hiding")


def random_states(n: int, width: int, seed: int) -> States:
    draw = torch.Generator().manual_seed(seed)
    base, toward, away, *tails = torch.randn(6, n, width, generator=draw)
    return States("vision", base, toward, away, torch.rand(n, generator=draw) + 0.1, ["all"] * n, seed, tuple(tails))


def stages(recipe: Recipe, data: Data, methods: Sequence[Method], share: float) -> list[Stage]:
    """The stages of a comparison in the order in which they run; ``share`` of the blocks lie above the steered one."""
    prompts = data.prompts
    if not prompts:
        return []
    directions, steerers = len(recipe.evaluate.directions), [m for m in methods if m.steers]
    fits, train = directions * sum(m.variants for m in steerers), prompts["train"]
    out = [Stage("diagnose", prompts["test"], prompts["test"], diagnosed=len(ASKS) * prompts["test"])] if recipe.diagnostic else []
    for node in recipe.diagnostics:
        diagnostic = make(node)
        asked = sum(diagnostic.whole_prompts(prompts[split]) for split in diagnostic.splits)
        out.append(Stage(f"diagnose-{node.label}", asked, asked))
    if steerers:
        out.append(Stage("collect", train, train, diagnosed=train if recipe.diagnostic else 0))
        out.append(Stage("fit", train, fits=fits))
    if tried := [m for m in steerers if m.trials]:
        each = (lambda m: m.trials, lambda m: m.looks, lambda m: m.hidings)
        cells, looks, hidings = (directions * train * sum(m.variants * n(m) for m in tried) for n in each)
        out.append(Stage("trials", train, train, cells, looks, hidings, share, cells * answer_length(recipe)))
    out.append(_scored("dev", recipe, data, [(m, m.variants) for m in steerers], share))
    out.append(_scored("test", recipe, data, [(m, 1) for m in steerers], share))
    return out


def _scored(split: str, recipe: Recipe, data: Data, steered: Sequence[tuple[Method, int]], share: float) -> Stage:
    """A scored split: prompt methods answer in full, the variants of fitted ones share a trunk; a worked example costs one more prompt."""
    e, prompts = recipe.evaluate, data.prompts[split]
    each = (lambda m: len(e.strengths), lambda m: m.looks, lambda m: m.hidings)
    cells, looks, hidings = (len(e.directions) * prompts * sum(variants * n(m) for m, variants in steered) for n in each)
    trunk, tokens = prompts if cells else 0, cells * answer_length(recipe)
    for method in (make(node) for node in recipe.steering):
        if isinstance(method, LogitsMethod):
            rows = prompts * sum(1 + len(method.copies(data.prompt or Prompt(()), d)) for d in e.directions)
            trunk, tokens = trunk + rows, tokens + rows * len(e.strengths) * answer_length(recipe)
        elif isinstance(method, PromptMethod):
            asked = prompts * (len(e.directions) if by_direction(method, data.prompt) else 1)
            trunk += asked * (1 + method.shots)
            tokens += asked * answer_length(recipe, method.max_new_tokens)
    return Stage(split, prompts, trunk, cells, looks, hidings, share, tokens)


def answer_length(recipe: Recipe, own: int | None = None) -> int:
    """Most tokens of an answer, of a method with a limit of its ``own``; one where the benchmark forces a choice."""
    return 1 if getattr(make(recipe.data), "letters", ()) else own or recipe.evaluate.max_new_tokens


def by_direction(method: PromptMethod, prompt: Prompt | None) -> bool:
    """Whether the method's prompts depend on the direction; with worked examples they do, through the examples' answers."""
    prompt = prompt or Prompt(())
    return bool(method.shots) or method.rewrite(prompt, "vision", []) != method.rewrite(prompt, "text", [])


def memory(recipe: Recipe, model: ModelFacts, prompt_tokens: int) -> int:
    """Bytes at the fullest moment, about: weights, and the caches and widest activations of one batch.

    Of a collected prompt the cache is held for itself and for each wording, with a copy of the latter on the way; in a diagnosis also
    for the wording diagnosed and, as noise that waits for the backward pass, for each draw. Of an evaluated one it is held for the
    trunk and for the cell. ``eval_suite.speed.plan`` holds this against what a run allocates.
    """
    cache = 2 * model.depth * model.kv_width * prompt_tokens * model.bytes_per_value
    widest = prompt_tokens * (3 * model.mlp + 4 * model.width) * model.bytes_per_value
    collecting, held = recipe.collect.batch_size, (1 + 2 * len(ASKS)) * recipe.collect.batch_size
    if recipe.diagnostic:
        drawn = collecting * getattr(recipe.diagnostic.params, "draws", 0)
        held += collecting + min(drawn, (getattr(recipe.diagnostic.params, "row_chunk", None) or MODALITIES * drawn) / MODALITIES)
    steered = prompt_tokens * model.width * (4 + model.bytes_per_value)
    evaluating = recipe.evaluate.batch_size * (2 * cache + widest + 2 * steered + 4 * model.vocabulary)
    return model.bytes + round(max(held * cache + collecting * widest, evaluating))


def timed(job: Callable[[], Any], device: torch.device | None = None) -> tuple[Any, float]:
    """What a job returns, and its seconds."""
    start = time.perf_counter()
    value = job()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return value, time.perf_counter() - start

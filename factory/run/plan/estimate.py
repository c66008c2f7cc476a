"""Counting what a run would do, from the recipe and the model's configuration alone: no weights are read or allocated.

A prompt pass is one forward of a whole prompt through all blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import thread_time
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from factory.bench import conflicts
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.alike import groups_of
from factory.model.facts import ModelFacts, find_facts
from factory.model.load import outline, to_fetch
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.registry import lookup
from factory.run.labels import changes_nothing
from factory.run.methods.comparison import prompters
from factory.run.methods.study import steered_layer
from factory.run.plan.data import Data, look_at_data
from factory.run.plan.work import ALL, Begun, Expected, Method, stages, stages_beside
from factory.run.samples import checks
from factory.run.timing import Clock, timed
from factory.steer import Context, LogitsMethod, PromptMethod, States, Steerer, Trials, TwoCalls
from factory.steer.base import sound
from factory.steer.collect import WORDINGS

FIT_ON = 128
TRIED_ON = 4
STAND_IN = Prompt(
    (
        Segment(Role.IMAGE, image=Image.new("RGB", (1, 1))),
        Segment(Role.CONTEXT, "context"),
        Segment(Role.QUESTION, "question"),
    )
)  # where no sample is there
TOKENS_A_WORD, TEMPLATE_TOKENS = (
    1.35,
    30,
)  # for a tokenizer that is not there; English under a vocabulary of 32,000 or more


@dataclass(frozen=True)
class Estimate:
    """All that is known of a run before it starts; None where something needed is missing, and what is ``lacking`` of
    the model. ``beside``: what is measured beside the table, in neither the passes nor the time of the run's stages.
    ``prompt_tokens``, and those of the ``longest`` prompt, are guessed from words."""

    name: str
    lacking: list[str]
    model: ModelFacts | None
    layer: int | None
    data: Data
    prompt_tokens: int | None = None
    longest: int | None = None
    methods: list[Method] = field(default_factory=list)
    stages: list[Expected] = field(default_factory=list)
    beside: list[Expected] = field(default_factory=list)
    begun: Begun = ALL

    @property
    def tokens(self) -> tuple[int, int] | None:
        """Of a usual prompt and of the longest, where both could be guessed."""
        return (self.prompt_tokens, self.longest) if self.prompt_tokens and self.longest else None

    @property
    def missing(self) -> list[str]:
        return [*self.lacking, *self.data.missing]

    @property
    def passes(self) -> float:
        return sum(stage.passes for stage in self.stages)


def estimate(
    recipe: Recipe, limit: int | None = None, clock: Clock = thread_time, wanted: Wanted | None = None
) -> Estimate:
    """Count a comparison's work, of at most ``limit`` samples of each split. Nothing is loaded; what is missing becomes
    a line, not an error.
    """
    model, card, lacking = find_facts(wanted or recipe.model)
    layer = None
    if model:
        try:
            layer = steered_layer(recipe, model.depth, card)
        except UserError as error:
            lacking.append(str(error))
    known = (
        ()
        if lacking or to_fetch(wanted or recipe.model)
        else checks(recipe, outline(wanted or recipe.model), conflicts(recipe.data))
    )
    data = look_at_data(recipe, limit, known)
    begun = ALL if model is None or recipe.model.tuned else begun_by(model.family, data.asked)
    if begun.collected == 1:
        data = replace(data, asked=())
    methods = {node.label: node.make() for node in recipe.steering}
    kinds = {node.label: node.type for node in recipe.steering}
    guess = lambda words: (
        round(model.image_tokens + TOKENS_A_WORD * words + TEMPLATE_TOKENS)
        if model and model.image_tokens and words
        else None
    )
    tokens = guess(data.words) or (round(TOKENS_A_WORD * data.words + TEMPLATE_TOKENS) if data.words else None)
    described = [
        describe(label, kinds.get(label), method, recipe, model, layer, data, clock, tokens)
        for label, method in {**methods, **prompters(methods)}.items()
    ]
    share = (model.depth - layer - 1) / model.depth if model and layer is not None else 1.0
    return Estimate(
        recipe.name,
        lacking,
        model,
        layer,
        data,
        guess(data.words),
        guess(data.longest),
        described,
        stages(recipe, data.ids, len(data.forms), described, share, begun),
        stages_beside(recipe, data.ids, len(data.forms), described, share, begun),
        begun,
    )


def describe(
    label: str,
    kind: str | None,
    method: Any,
    recipe: Recipe,
    model: ModelFacts | None,
    layer: int | None,
    data: Data,
    clock: Clock,
    tokens: int | None = None,
) -> Method:
    """Where a method acts, what it runs, and what it learns: it is fitted on random states of the model's width.
    ``kind`` is None for one that the recipe does not name; ``tokens`` of a usual prompt, where they are known."""
    prompt, directions = data.prompt or STAND_IN, recipe.evaluate.directions
    if isinstance(method, PromptMethod):
        shots = f", {method.shots} worked example(s)" if method.shots else ""
        asked = len(directions) if by_direction(method, prompt) else 1
        return Method(
            label,
            kind,
            f"the prompt{shots}",
            1,
            "prompt",
            rows=asked,
            firsts=len(directions) if isinstance(method, TwoCalls) else 0,
            first_answer=method.first_tokens if isinstance(method, TwoCalls) else 0,
            unsteered=changes_nothing(type(method)),
            answer=answer_length(recipe, method.max_new_tokens),
            shots=method.shots,
            begun=_begun_as_asked(method, data.asked, directions[0]),
        )
    length = answer_length(recipe)
    if isinstance(method, LogitsMethod):
        copies = len(method.copies(prompt, prompt.sources.first.name))
        place = (
            f"the logits, beside {copies} altered copy(s) of the prompt"
            if copies
            else "the computation of the prompt and the answer"
        )
        rows = sum(1 + len(method.copies(prompt, d)) for d in directions)
        return Method(label, kind, place, 1, "logits", rows=rows, again=not method.shares_prompt, answer=length)
    where = method.where()
    at = (
        "no prompt token"
        if where.role == "none"
        else f"{where.role} prompt tokens" + (f" ({where.take})" if where.take != "all" else "")
    )
    place = at + (" and the answer's tokens" if where.generated else "")
    variants = method.variants() or {"": method}
    asks = tuple(method.rewrite(prompt, d).digest for d in directions)
    known = Method(label, kind, place, len(variants), "steerer", asks=asks, whole=where.site != "block", answer=length)
    known = replace(known, control=bool(method.control))
    if model is None or not data.prompts:
        return known
    train = data.prompts["train"]
    return fitted(known, next(iter(variants.values())), model.width, layer, train, recipe.seed, clock, tokens)


def fitted(
    known: Method,
    method: Steerer,
    width: int,
    layer: int | None,
    total: int,
    seed: int,
    clock: Clock,
    tokens: int | None = None,
) -> Method:
    """What fitting a method on ``total`` random states shows of it. A method that needs what the diagnostics find shows
    nothing; one that steers the last of a prompt's ``tokens`` alone runs a share of it (none where they are unknown).
    """
    n = max(2, min(FIT_ON, total))
    try:
        state, seconds = timed(lambda: method.fit(random_states(n, width, seed)), clock=clock)
        sound(state, f"steering '{method.name}': fit")
    except UserError:
        return known
    where = method.placed(state, layer or 0)
    state, calibration = timed(lambda: calibrated(method, state, width, n, seed), clock=clock)
    above, hidden, ignoring = count_looks(method, state, width, seed)
    weight = 1.0 if not where.last_alone else 1 / tokens if tokens else 0.0
    more = max(1.0, total / n)
    return replace(
        known,
        parameters=sum(t.numel() for t in state.values()),
        fit_seconds=seconds * more,
        calibration_seconds=calibration * more,
        looks=above * weight,
        hidings=hidden + ignoring * weight,
        weight=weight,
        trials=len(method.trial_strengths),
        whole=where.site != "block" or where.blocks != (layer or 0,),
    )


def calibrated(method: Steerer, state: dict[str, Tensor], width: int, n: int, seed: int) -> dict[str, Tensor]:
    """The state of a method whose trial strengths had random outcomes on ``n`` prompts."""
    if not (strengths := method.trial_strengths):
        return state
    draw, states = torch.Generator().manual_seed(seed), random_states(n, width, seed)
    follow = torch.rand(n, len(strengths), generator=draw) < 0.5
    looks = method.look(states.base, state, ahead([], n, seed))
    return method.calibrate(state, Trials(follow, ~follow, looks, states.base, states.measured, torch.arange(n), seed))


def count_looks(method: Steerer, state: dict[str, Tensor], width: int, seed: int) -> tuple[int, int, int]:
    """How often a calibrated method's controller runs the blocks above the site ahead on a prompt, all blocks without a
    modality, and all blocks on its last token with a modality unseen."""
    asked: list[str] = []
    method.gain(random_states(TRIED_ON, width, seed).base, state, ahead(asked, TRIED_ON, seed))
    return asked.count("above"), asked.count("hiding"), asked.count("ignoring")


def ahead(asked: list[str], rows: int, seed: int) -> Context:
    """A look ahead that shows random logits of some ``rows``, and notes in ``asked`` what was asked of it."""
    draw = torch.Generator().manual_seed(seed)

    def noting(what: str) -> Callable[[Tensor], Tensor]:
        def look(asked_for: Tensor) -> Tensor:
            several = asked_for.shape[:-1] if what == "above" else asked_for.shape
            asked.extend([what] * several.numel())
            return torch.randn(*several, rows, 2 * TRIED_ON, generator=draw)

        return look

    return Context(layer=0, probe=noting("above"), hiding=noting("hiding"), ignoring=noting("ignoring"))


class Anything(Mapping[str, Tensor]):
    """The same numbers under every name: which one a method will ask for is its own affair."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def __getitem__(self, name: str) -> Tensor:
        return self.numbers

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def random_states(n: int, width: int, seed: int) -> States:
    draw = torch.Generator().manual_seed(seed)
    base, toward, away, *tails = torch.randn(6, n, width, generator=draw)
    measured = Anything(torch.rand(n, generator=draw) + 0.1)
    return States("vision", base, toward, away, measured, ["all"] * n, seed, tuple(tails))


def answer_length(recipe: Recipe, own: int | None = None) -> int:
    """Most tokens of an answer, of a method with a limit of its ``own``; one where the benchmark forces a choice."""
    return 1 if conflicts(recipe.data).letters else own or recipe.evaluate.max_new_tokens


def begun_by(family: str, asked: Sequence[Prompt]) -> Begun:
    """Which share of prompts ``asked`` of one sample a model of this family runs from their beginning."""
    cls, share = lookup("family", family), len(groups_of(asked)) / max(1, len(asked))
    if cls.bidirectional_prompt or cls.columnless or not asked:
        return ALL
    return Begun(share, share if cls.plain_calls else 1.0)


def _begun_as_asked(method: PromptMethod, asked: Sequence[Prompt], direction: str) -> float:
    """The same share of the prompts that a method makes of those ``asked``, with examples like them."""
    if not asked:
        return 1.0
    shown = [[p.append(Segment(Role.ANSWER, "answer"))] * method.shots for p in asked]
    made = [
        method.first(p, direction) if isinstance(method, TwoCalls) else method.rewrite(p, direction, some)
        for p, some in zip(asked, shown, strict=True)
    ]
    return len(groups_of(made)) / len(made)


def by_direction(method: PromptMethod, prompt: Prompt) -> bool:
    """Whether the method's prompts depend on the direction; with worked examples they do, through the examples'
    answers.
    """
    one, other = (method.rewrite(prompt, name, []) for name in prompt.sources.names)
    return bool(method.shots) or one != other


def memory(recipe: Recipe, model: ModelFacts, tokens: tuple[int, int], prompts: Mapping[str, int]) -> int:
    """Bytes at the fullest moment, about: weights, and caches, states and widest activations of one batch of prompts,
    of which there are ``prompts`` in each split; ``tokens`` of a usual and of the longest prompt.

    Of a collected prompt the cache is held for itself, for each wording and for what the diagnostic says it holds. Of
    an evaluated one it is held for the trunk and for the cell, and of a further diagnostic's, which asks toward each
    direction, also for the ends that are run again. A prompt with worked examples is as much longer as those usually
    are.
    ``eval_suite.speed.plan`` holds this against what a run allocates.
    """
    usual, longest = tokens
    b = model.bytes_per_value
    cache = 2 * model.depth * model.kv_width * b
    state = model.width * b

    def forward(tokens: int) -> int:
        """A prompt's cache and the widest moment of a block: its MLP, or its attention with a mask of booleans and one
        of numbers.
        """
        return tokens * (cache + max((3 * model.mlp + 4 * model.width) * b, 6 * state + tokens * (1 + b)))

    collecting, evaluating = (
        min(batch, max(prompts.values(), default=batch))
        for batch in (recipe.collect.batch_size, recipe.evaluate.batch_size)
    )
    held = 1 + WORDINGS
    if recipe.diagnostic:
        held += recipe.diagnostic.make().rows_held(collecting) / collecting
    collected = max(forward(longest), longest * (held * cache + (1 + WORDINGS) * state))
    swept = forward(longest) + longest * (cache + 2 * model.width * (4 + b)) + 4 * model.vocabulary
    shots = max(
        (method.shots for node in recipe.steering if isinstance(method := node.make(), PromptMethod)), default=0
    )
    asked = forward(longest + shots * usual) + 4 * model.vocabulary
    toward = max((len(getattr(node.params, "directions", "1")) for node in recipe.diagnostics), default=0)
    investigated = toward * (forward(longest) + 2 * longest * cache)
    return model.bytes + round(max(collecting * max(collected, investigated), evaluating * max(swept, asked)))

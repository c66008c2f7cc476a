"""What a steering method is: a prompt that is rewritten, a vector that is fitted and added, or logits that are
contrasted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from factory.data.prompt import Prompt
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.errors import UserError
from factory.model.manifest import not_finite
from factory.model.view import ModelView
from factory.registry import Plugin
from factory.steer.where import Where

Direction = str
"""The name of a conflict's source: vision or text, or one of two texts."""
Tensors = dict[str, Tensor]


def sound(state: Any, whose: str) -> Tensors:
    """What a method has learnt. Raises ``UserError`` where that is no dictionary of tensors, or holds no numbers."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{whose} should return named tensors, as in {{'v': …}}, and returned {type(state).__name__}")
    if odd := not_finite(state):
        raise UserError(f"{whose} gave NaN or infinite values in '{odd}'")
    return state


def needs(metric: str, whose: str, by: str) -> str:
    """That the method ``whose`` is fitted on a ``metric`` of each prompt, which the diagnostic ``by`` gives."""
    return f"{whose} needs {metric} of each training prompt: add `diagnostic: {by}` to the recipe"


@dataclass(frozen=True)
class States:
    """What a method is fitted on, for one direction, the name of one of ``sources``; n training prompts, d the model's
    width.

    ``base`` h_[I,T], ``toward`` h_[I,T,P+], ``away`` h_[I,T,P-] [n, d] float32 (AMPS eq. 11); ``measured`` by metric
    what the recipe's ``diagnostic:`` gives once a prompt [n]; ``tasks`` one name per prompt; ``seed`` decides all
    randomness of a fit. ``tails``: base, toward and away averaged over each prompt's last tokens (a tenth of them,
    three to eight), None unless the method ``reads_tails``. ``found``: tidy rows of the recipe's further diagnostics on
    the training split. ``agreeing``: by split (train, dev) what ``base`` is of prompts without a conflict [m, d], empty
    unless the method ``reads_agreeing``.
    """

    direction: Direction
    base: Tensor
    toward: Tensor
    away: Tensor
    measured: Mapping[str, Tensor]
    tasks: Sequence[str]
    seed: int = 0
    tails: tuple[Tensor, Tensor, Tensor] | None = None
    found: Sequence[Mapping[str, Any]] = ()
    sources: Sources = PICTURE_AND_TEXT
    agreeing: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def toward_first(self) -> bool:
        """Whether the direction is that of the first source."""
        return self.direction == self.sources.first.name

    def number(self, metric: str, whose: str, by: str) -> Tensor:
        """``measured[metric]`` [n] for the method ``whose``; ``by`` is a diagnostic that gives it. Raises ``UserError``
        where the recipe's does not, or not of every prompt.
        """
        if (given := self.measured.get(metric)) is None:
            instead = f"; the recipe's gives {', '.join(self.measured)}" if self.measured else ""
            raise UserError(f"{needs(metric, whose, by)}{instead}")
        if undefined := int(given.isnan().sum()):
            raise UserError(
                f"{whose} needs {metric} of each training prompt, and for {undefined} of {len(given)} the recipe's"
                " diagnostic gives no number"
            )
        return given


@dataclass(frozen=True)
class Trials:
    """Outcomes of a fitted method on its training prompts: what each strength did to each prompt.

    ``follow`` and ``error`` [n, S] booleans for the method's ``trial_strengths``, ``looks`` [n, S, F] what it saw of
    them beforehand, ``base`` h_[I,T] [n, d], ``measured`` as in ``States``, ``groups`` [n]: prompts of one sample
    share a number.
    """

    follow: Tensor
    error: Tensor
    looks: Tensor
    base: Tensor
    measured: Mapping[str, Tensor]
    groups: Tensor
    seed: int = 0


@dataclass(frozen=True)
class Context:
    """What a method may know beside the states: the layer, and whether the rows are prompt or generated tokens.

    ``probe(strength [.., rows])`` looks ahead: float32 next-token logits [.., rows, vocabulary] of the prompts at a
    strength per row, for one run of the blocks above the steered one each. ``hiding(role [..])`` gives those of the
    unsteered prompts without the tokens of a role [.., rows, vocabulary], for one run of all blocks each: what the
    model says of the other modality alone. ``ignoring(role [..])`` gives those of the unsteered prompts whose last
    token alone does not see the tokens of a role.
    None where the runtime cannot look ahead. ``roles`` [rows, T] of the prompts' tokens are known to a controller only.

    Of a method that steers the output of one block at each prompt's last token alone (``Where.last_alone``) a probe
    runs that token alone through the blocks above, and ``ignoring`` through all; those of a call are one run.
    """

    layer: int
    generated: bool = False
    probe: Callable[[Tensor], Tensor] | None = None
    hiding: Callable[[Tensor], Tensor] | None = None
    roles: Tensor | None = None
    ignoring: Callable[[Tensor], Tensor] | None = None


class PromptMethod(Plugin):
    """A baseline that changes the prompt and leaves the activations alone."""

    @property
    def shots(self) -> int:
        """How many answered training prompts ``rewrite`` is given."""
        return getattr(self.params, "shots", 0)

    @property
    def max_new_tokens(self) -> int | None:
        """How long an answer may be where that is not the evaluation's own limit."""
        return getattr(self.params, "max_new_tokens", None)

    def rewrite(self, prompt: Prompt, direction: Direction, examples: Sequence[Prompt]) -> Prompt:
        """The prompt that asks for ``direction``; ``examples`` are answered training prompts of the same task and
        form.
        """
        return prompt


class TwoCalls(PromptMethod):
    """A baseline that asks twice: its second prompt knows what was answered to the first."""

    @property
    def first_tokens(self) -> int:
        """The most tokens of the answer to the first prompt."""
        return getattr(self.params, "first_tokens", 64)

    def first(self, prompt: Prompt, direction: Direction) -> Prompt:
        """What is asked first."""
        raise TypeError(f"{type(self).__name__} must define first(prompt, direction)")

    def second(self, prompt: Prompt, direction: Direction, told: str) -> Prompt:
        """What is then asked, given what was ``told`` in answer to the first."""
        raise TypeError(f"{type(self).__name__} must define second(prompt, direction, told)")

    def rewrite(self, prompt: Prompt, direction: Direction, examples: Sequence[Prompt]) -> Prompt:
        """The second prompt, to be looked at: something stands in the place of what is not told yet."""
        return self.second(prompt, direction, "…")


class LogitsMethod(Plugin):
    """A decoding-time method: every prompt is run, mostly together with altered copies of it, and their next-token
    logits are combined.

    What is altered may be the prompt (``copies``), the image tensors (``images``) or the computation (``running``).
    Prompts and copies are rows of one batch, block after block: first the ``B`` prompts, then their first copies, and
    so on. A row must not depend on what else is in the batch, and at strength 0 the answers must be the model's own.

    ``shares_prompt``: what ``running`` does is the same at every strength, so that one pass over the prompts serves
    them all.
    """

    shares_prompt: ClassVar[bool] = True

    def copies(self, prompt: Prompt, direction: Direction) -> tuple[Prompt, ...]:
        """The prompts that run beside a prompt; here the prompt itself, once."""
        return (prompt,)

    def images(self, inputs: dict[str, Tensor], direction: Direction, blocks: int) -> dict[str, Tensor]:
        """The image inputs of all ``blocks`` (the prompts' first), with those of the copies altered."""
        return inputs

    @contextmanager
    def running(self, view: ModelView, direction: Direction, blocks: int, strength: float) -> Iterator[None]:
        """Around every forward of the rows, the answer's tokens included."""
        yield

    def numbers(self, direction: Direction) -> Tensors:
        """What it has learnt toward ``direction``; nothing, unless it is trained."""
        return {}

    def combine(self, own: Tensor, others: Tensor, direction: Direction, strength: float) -> Tensor:
        """Logits [B, V] to choose from, out of the prompts' own [B, V] and those of their copies [blocks - 1, B, V];
        here their own.
        """
        return own


class TrainedMethod(LogitsMethod):
    """A method with numbers of its own inside the model, trained by gradients on the training prompts' answers.

    ``trained``: what it has learnt toward each direction, put there by whoever had it trained. It is run without copies
    of the prompt, and nothing of it stays in the model.
    """

    shares_prompt = False

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.trained: dict[Direction, Tensors] = {}

    def copies(self, prompt: Prompt, direction: Direction) -> tuple[Prompt, ...]:
        return ()

    def numbers(self, direction: Direction) -> Tensors:
        return self.trained[direction]

    @contextmanager
    def running(self, view: ModelView, direction: Direction, blocks: int, strength: float) -> Iterator[None]:
        """Raises ``UserError`` where it was not trained toward ``direction``."""
        if strength == 0:
            yield
            return
        if direction not in self.trained:
            raise UserError(f"'{self.name}' has to be trained first: run a recipe that lists it under `steering:`")
        with self.acting(view, self.trained[direction], strength):
            yield

    def train(self, view: ModelView, wanted: Sequence[Prompt], other: Sequence[Prompt], seed: int) -> Tensors:
        """Learn from prompts that end with the ``wanted`` answer, and the same that end with the ``other``; returns
        named float32 tensors on the CPU.
        """
        raise TypeError(f"{type(self).__name__} must define train(view, wanted, other, seed)")

    def acting(self, view: ModelView, state: Tensors, strength: float) -> AbstractContextManager[None]:
        """A block in which the model is as ``state`` at a ``strength`` has it."""
        raise TypeError(f"{type(self).__name__} must define acting(view, state, strength)")


class Steerer(Plugin):
    """A method that adds ``strength * gain(h) * delta(h)`` to the output of one decoder block.

    ``reads`` says what h is: the state of the last prompt token, whose delta is then added to every chosen token
    (SPEC A13, as learn-to-steer does), or each chosen token's own state. ``reads_tails``: its ``fit`` reads
    ``States.tails``, which are collected for such methods alone; ``reads_agreeing``: so with ``States.agreeing``.
    """

    reads: Literal["last_prompt", "per_token"] = "last_prompt"
    reads_tails: bool = False
    reads_agreeing: bool = False
    yardstick: ClassVar[bool] = False  # what others are held against, where a recipe does not say

    @property
    def control(self) -> Literal["", "plugin", "all"]:
        """Whether it is the random control of the other methods of its ``plugin``, or of ``all`` that steer; a method
        that follows no more often than its control has shown nothing.
        """
        return ""

    def unfit(self, diagnostic: str | None, diagnostics: Sequence[str]) -> str | None:
        """Why it cannot be fitted on what a recipe's ``diagnostic:`` and ``diagnostics:`` of these types measure; None
        where it may be."""
        return None

    def variants(self) -> Mapping[str, Steerer]:
        """Methods of the same kind among which dev data decides, by name; empty where there is nothing to decide."""
        return {}

    def rewrite(self, prompt: Prompt, direction: Direction) -> Prompt:
        """The prompt that is steered; as it is, unless the method needs one that asks for ``direction``."""
        return prompt

    def where(self) -> Where:
        """Default token choice; the layer is filled in by ``placed``."""
        return Where()

    def placed(self, state: Tensors, layer: int) -> Where:
        """Where the fitted method acts in a run at ``layer``."""
        return self.where().model_copy(update={"layer": layer})

    def fit(self, states: States) -> Tensors:
        """Learn from the states of the training prompts; returns named float32 tensors."""
        return {}

    @property
    def trial_strengths(self) -> tuple[float, ...]:
        """Strengths to try on the training prompts before ``calibrate``; none for a method that has no controller."""
        return ()

    def look(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        """What can be seen of each trial strength without labels [rows, S, F], through ``ctx.probe``."""
        raise TypeError(f"{type(self).__name__} has trial strengths and must define look(h, state, ctx)")

    def calibrate(self, state: Tensors, trials: Trials) -> Tensors:
        """Learn a controller from what the trial strengths did to the training prompts."""
        return state

    def choose(self, h: Tensor, chosen: Tensor, state: Tensors) -> Tensor:
        """Which of the ``chosen`` prompt tokens [R, T] to steer, from their states ``h`` [R, T, d]; all unless the
        method is choosy.
        """
        return chosen

    def delta(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        """The steering vectors [rows, d] for states ``h`` [rows, d]; pure."""
        raise TypeError(f"{type(self).__name__} must define delta(h, state, ctx)")

    def own_scale(self, states: States, state: Tensors) -> Tensor:
        """What this variant would multiply each prompt's strength by [n] if it did not learn that but were told the
        prompt's own measured numbers: of a method whose targets are scaled by them, with the anchors in ``state``.
        """
        raise TypeError(f"{type(self).__name__} scales nothing by what is measured: it defines no own_scale")

    def gain(self, h: Tensor, state: Tensors, ctx: Context) -> Tensor:
        """Each row's own factor [rows] on the strength; 1 unless the method controls it."""
        return torch.ones(h.shape[0], dtype=h.dtype, device=h.device)

"""What a benchmark is asked of: the model as it is, a rewritten prompt, or a steering or decoding-time method at its
strength.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from factory import code
from factory.bench import answer_prompts
from factory.data.prompt import Prompt
from factory.model.view import ModelView
from factory.run.labels import AS_IT_IS
from factory.steer import LogitsMethod, PromptMethod, Steering, TwoCalls, steer
from factory.steer.base import Direction, Tensors
from factory.steer.logits import contrasted


@dataclass(frozen=True)
class Arm:
    """One row of a comparison; without ``steering``, ``rewrite`` and ``contrast`` it is the model as it is, tuned or
    not (``trained`` numbers), a tuner perhaps in one of its settings (``setting``), in which whoever asks puts it.
    """

    method: str = AS_IT_IS[0]
    direction: Direction | None = None
    strength: float | None = None
    variant: str = ""
    steering: Steering | None = None
    rewrite: PromptMethod | None = None
    trained: int = 0
    contrast: LogitsMethod | None = None
    setting: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.method, self.direction)))

    @property
    def facts(self) -> dict[str, Any]:
        """The keys by which rows and predictions name the arm."""
        return {"method": self.method, "direction": self.direction, "strength": self.strength, "variant": self.variant}

    @property
    def parameters(self) -> int:
        """Fitted or trained numbers."""
        if self.contrast:
            return sum(t.numel() for t in self.contrast.numbers(self.toward).values())
        return sum(t.numel() for t in self.steering.state.values()) if self.steering else self.trained

    @property
    def lives_in_model(self) -> bool:
        """Whether a harness that asks the model by itself meets the arm there: prompts and decoding are its own."""
        return self.rewrite is None and self.contrast is None

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that makes the arm answer as it does, tensors by their hash; prompts carry what ``rewrite`` does by
        themselves.
        """
        if self.contrast:
            params = self.contrast.params.model_dump(mode="json")
            return {
                "type": self.contrast.name,
                "code": code.of_plugin(self.contrast),
                "params": params,
                "direction": self.direction,
                "strength": self.strength,
                **({"state": tensors_digest(learnt)} if (learnt := self.contrast.numbers(self.toward)) else {}),
            }
        if self.steering is None:
            return {"setting": self.setting} if self.setting else {}
        s = self.steering
        return {
            "type": s.steerer.name,
            "code": code.of_plugin(s.steerer),
            "params": s.steerer.params.model_dump(mode="json"),
            "where": s.where.model_dump(mode="json"),
            "strength": s.strength,
            "state": tensors_digest(s.state),
        }

    @property
    def asking(self) -> dict[str, Any]:
        """What ``rewrite`` is, which prompts carry by themselves once they are made."""
        if self.rewrite is None:
            return {}
        params = self.rewrite.params.model_dump(mode="json")
        return {"type": self.rewrite.name, "code": code.of_plugin(self.rewrite), "params": params}

    @property
    def toward(self) -> Direction:
        """The side that a method which rewrites prompts or contrasts logits is asked to follow."""
        assert self.direction is not None, f"{self.method} has no direction"
        return self.direction

    def prompt(self, prompt: Prompt) -> Prompt:
        return self.rewrite.rewrite(prompt, self.toward, []) if self.rewrite else prompt

    @property
    def caller(self) -> TwoCalls | None:
        """The method, where it asks twice."""
        return self.rewrite if isinstance(self.rewrite, TwoCalls) else None

    def new_tokens(self, asked: int) -> int:
        return (self.rewrite and self.rewrite.max_new_tokens) or asked

    def steered(self, view: ModelView) -> AbstractContextManager[None]:
        """The block in which ``view`` is steered as the arm has it."""
        return steer(view, self.steering) if self.steering else nullcontext()

    def answer(self, view: ModelView, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        if self.contrast:
            assert self.strength is not None, f"{self.method} contrasts logits at some strength"
            return contrasted(view, self.contrast, prompts, self.toward, [self.strength], max_new_tokens)[0]
        with self.steered(view):
            return answer_prompts(view, prompts, max_new_tokens)


def tensors_digest(state: Tensors) -> str:
    """A hash of named tensors: names, shapes, dtypes and values."""
    h = hashlib.sha256()
    for key, value in sorted(state.items()):
        h.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        h.update(value.detach().contiguous().cpu().numpy().tobytes())
    return h.hexdigest()

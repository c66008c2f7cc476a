"""Requests that wait are answered in one batch, a row each: rows differ in artefact and strength, never in what they
would answer alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from factory.data.prompt import Prompt
from factory.errors import UserError
from factory.model.prefix import at_last, greedy, prefill
from factory.model.view import ModelView
from factory.steer import Steering, steer

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Said:
    """News of an answer: ``text`` that came, and, with the last of it, how it ended and how many tokens it took.

    ``fault`` in place of it where the prompt cannot be answered.
    """

    text: str = ""
    reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    fault: Exception | None = None


@dataclass(eq=False)
class Job:
    """One request: a prompt, the name of its steering (None for none) and its strength. ``news`` gets what is said, a
    ``Said`` with ``reason`` or ``fault`` last; once ``left`` is set nobody listens any more."""

    prompt: Prompt
    steering: str | None
    strength: float
    max_new_tokens: int
    news: queue.SimpleQueue[Said] = field(default_factory=queue.SimpleQueue)
    left: threading.Event = field(default_factory=threading.Event)


class Abandoned(Exception):
    """Nobody listens to any row of a batch any more."""


class Batches:
    """Answers jobs from a thread of its own, up to ``rows`` at once; the first waits ``pause`` seconds for company."""

    def __init__(
        self, view: ModelView, steerings: Mapping[str, Steering], rows: int = 16, pause: float = 0.005
    ) -> None:
        self.view, self.steerings, self.rows, self.pause = view, dict(steerings), rows, pause
        self.waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def put(self, job: Job) -> None:
        self.waiting.put(job)

    def close(self) -> None:
        """Answer what has begun, then end the thread."""
        self.waiting.put(None)
        self.thread.join()

    def _serve(self) -> None:
        while (first := self.waiting.get()) is not None:
            time.sleep(self.pause)
            jobs, end = [first], False
            while len(jobs) < self.rows and not self.waiting.empty():
                if (job := self.waiting.get()) is None:
                    end = True
                    break
                jobs.append(job)
            self._answer([job for job in jobs if not job.left.is_set()])
            if end:
                return

    def _answer(self, jobs: Sequence[Job]) -> None:
        """One batch; where it cannot be run, each job by itself, so that one bad prompt harms no other."""
        try:
            if jobs:
                self._run(jobs)
        except Abandoned:
            return
        except Exception as fault:  # noqa: BLE001  the server outlives whatever a request brings about
            if len(jobs) == 1:
                jobs[0].news.put(Said(fault=fault))
                return
            for job in jobs:
                self._answer([job])

    @torch.no_grad()
    def _run(self, jobs: Sequence[Job]) -> None:
        view = self.view
        batch = view.encode([job.prompt for job in jobs])
        rows = _Rows(view, jobs, batch.attention_mask.sum(-1).tolist())
        longest = max(rows.longest)
        with steer(view, self._steering(jobs)):
            hidden, prefix = prefill(view, batch)
            logits = view.logits(at_last(hidden, batch.attention_mask))
            greedy(view, prefix, logits, longest, heard=rows.heard)

    def _steering(self, jobs: Sequence[Job]) -> list[Steering]:
        """Each artefact that a job asks for, with a strength a row: 0, which changes no bit, for the others'."""
        names = dict.fromkeys(job.steering for job in jobs if job.steering is not None and job.strength)
        return [
            replace(self.steerings[name], strength=torch.tensor([j.strength * (j.steering == name) for j in jobs]))
            for name in names
        ]


class _Rows:
    """What each row of a batch has said so far."""

    def __init__(self, view: ModelView, jobs: Sequence[Job], prompt_tokens: Sequence[int]) -> None:
        self.view, self.jobs, self.prompt_tokens = view, jobs, prompt_tokens
        self.said, self.over = ["" for _ in jobs], [False for _ in jobs]
        self.ends = set(view.end_ids)
        self.longest = [self._left(job, n) for job, n in zip(jobs, prompt_tokens, strict=True)]

    def _left(self, job: Job, prompt_tokens: int) -> int:
        """How many tokens an answer may have: as many as are asked for, and as the model has positions."""
        room = job.max_new_tokens if self.view.positions is None else self.view.positions - prompt_tokens
        if room < 1:
            raise UserError(f"a prompt of {prompt_tokens} tokens, and the model has {self.view.positions} positions")
        return min(job.max_new_tokens, room)

    def heard(self, tokens: Tensor) -> None:
        """Tell each job what is new; raises ``Abandoned`` once nobody waits for more."""
        for i, row in enumerate(tokens.tolist()):
            if not self.over[i]:
                self._tell(i, row)
        if all(over or job.left.is_set() for over, job in zip(self.over, self.jobs, strict=True)):
            raise Abandoned

    def _tell(self, i: int, row: list[int]) -> None:
        job, ended = self.jobs[i], row[-1] in self.ends
        self.over[i] = ended or len(row) == self.longest[i]
        text = self.view.tokenizer.decode(row, skip_special_tokens=True).lstrip()
        text = text.rstrip() if self.over[i] else _settled(text)
        new, self.said[i] = text[len(self.said[i]) :], text
        reason = ("stop" if ended else "length") if self.over[i] else None
        if new or reason:
            job.news.put(Said(new, reason, self.prompt_tokens[i], len(row)))


def _settled(text: str) -> str:
    """What later tokens change no more: a begun character and spaces at the end wait for what follows."""
    return text.rstrip(UNFINISHED).rstrip()


def chosen(
    steerings: Mapping[str, Steering], direction: str | None, strength: float | None
) -> tuple[str | None, float]:
    """The steering that a request asks for, the first where it names none, and its strength.

    Raises ``UserError`` for a direction that is not there.
    """
    if direction is not None and direction not in steerings:
        raise UserError(f"direction '{direction}' is not served; there are: {', '.join(steerings) or 'none'}")
    if (name := direction or next(iter(steerings), None)) is None:
        if strength:
            raise UserError("strength: no artefact is served; start with --artefact FOLDER")
        return None, 0.0
    own = steerings[name].strength
    assert isinstance(own, int | float), "an artefact holds one number"
    return name, own if strength is None else strength

"""Steered generation by this project and by other tools: one vector at one block, at every token, on one model.

Each way has a process of its own, and in it the same model from the same folder; they take turns, and are launched
several times. A comparison is refused unless all steered ways write the same tokens, and others than without steering.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from safetensors.torch import save_file

from eval_suite.speed import timing
from eval_suite.speed.peers.environments import PACKAGES, environment_of
from eval_suite.speed.peers.pairs import Pair, in_turn, paired
from eval_suite.speed.peers.worker import UNSTEERED
from factory import files
from factory.data.prompt import Role
from factory.errors import UserError
from factory.extras import ROOT
from factory.model.view import ModelView

OURS = "ours"
ONLY_TEXT = ("repeng",)  # it looks for the blocks of a text model
MODELS = ("image and text", "text")
A_WORD = 300  # an id that is no special token: what stands in the place of a picture


def prepared(view: ModelView, text_alone: bool, batch: int, new_tokens: int, folder: Path) -> dict[str, Any]:
    """Write a model, inputs and job for the workers; returns what was set. The text model is the view's own decoder
    with an unembedding, its prompts those of the view without their pictures' places.
    """
    encoded, model = view.encode(timing.conflicts(batch)), view.model
    inputs = {**encoded, "roles": encoded.roles, "position_ids": encoded.position_ids}
    if text_alone:
        model = transformers.LlamaForCausalLM(view.model.config.get_text_config())
        model.model.load_state_dict(view.decoder.state_dict())
        model.tie_weights()
        picture = encoded.roles == Role.IMAGE
        inputs = {key: t for key, t in inputs.items() if key not in encoded.images}
        inputs["input_ids"] = inputs["input_ids"].masked_fill(picture, A_WORD)
        inputs["roles"] = inputs["roles"].masked_fill(picture, int(Role.CONTEXT))
        view.tokenizer.save_pretrained(folder)
    else:
        view.processor.save_pretrained(folder)
    model.save_pretrained(folder)
    v = torch.randn(view.width, generator=torch.Generator().manual_seed(0))
    save_file({**{k: t.contiguous() for k, t in inputs.items()}, "v": v}, folder / "inputs.safetensors")
    block = view.depth // 2
    files.write_json(folder / "job.json", {"class": type(model).__name__, "block": block, "new_tokens": new_tokens})
    return {
        "model": f"{type(model).__name__}, width {view.width}, {view.depth} blocks",
        "batch": batch,
        "tokens": inputs["input_ids"].shape[1],
        "new": new_tokens,
    }


class Worker:
    """A process that runs one way of generating when it is told to. What it says beside its answers goes to the file
    ``said``: a pipe that nobody reads would fill up.
    """

    def __init__(self, name: str, python: Path, folder: Path, said: IO[str]) -> None:
        self.name, self.said = name, said
        self.process = subprocess.Popen(
            [python, "-m", "eval_suite.speed.peers.worker", name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=ROOT,
        )
        self.tokens: list[list[int]] = []

    def ready(self) -> None:
        self._answer()

    def __call__(self) -> float:
        """Seconds of one generation."""
        assert self.process.stdin is not None, "it was opened to be told"
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        told = self._answer()
        self.tokens = told["tokens"]
        return float(told["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "it was opened to be heard"
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            last = (self.said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{self.name} ended before it answered: {last}")
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(names: Sequence[str], pythons: Mapping[str, Path], folder: Path) -> Iterator[dict[str, Worker]]:
    with ExitStack() as ending:
        made = {}
        for name in names:
            said = ending.enter_context(tempfile.TemporaryFile("w+"))
            made[name] = Worker(name, pythons.get(name, Path(sys.executable)), folder, said)
            ending.callback(made[name].end)
        for worker in made.values():
            worker.ready()
        yield made


def refuse_different(tokens: Mapping[str, list[list[int]]]) -> None:
    """Raises RuntimeError unless all steered ways wrote the same, and something else than without steering."""
    for name, written in tokens.items():
        if name == UNSTEERED and written == tokens[OURS]:
            raise RuntimeError("steering changes no token, so that nothing shows that the ways do the same")
        if name != UNSTEERED and written != tokens[OURS]:
            raise RuntimeError(f"{name} does not write the tokens that ours writes")


def compare(view: ModelView, kind: str, names: Sequence[str], root: Path, how: Mapping[str, int]) -> Iterator[Pair]:
    """Ours beside each of ``names`` on a model of ``kind``; ``how`` has launches, rounds, batch and new tokens. The
    environments lie below ``root``.
    """
    text_alone = kind == "text"
    here = [name for name in names if text_alone or name not in ONLY_TEXT]
    pythons = {name: environment_of(name, root) for name in here if name in PACKAGES}
    with tempfile.TemporaryDirectory() as made:
        setting = prepared(view, text_alone, how["batch"], how["new_tokens"], Path(made))
        launches = [_launched([*here, OURS], pythons, Path(made), how["rounds"]) for _ in range(how["launches"])]
    for name in here:
        ours, theirs = ([seconds[way] for seconds in launches] for way in (OURS, name))
        yield paired(f"steered generation, {kind}", name, versions_of(name, pythons), setting, ours, theirs)


def _launched(names: Sequence[str], pythons: Mapping[str, Path], folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by each way, in new processes."""
    with workers(names, pythons, folder) as running:
        runs: dict[str, Callable[[], float]] = dict(running)
        seconds = in_turn(runs, rounds)
        refuse_different({name: worker.tokens for name, worker in running.items()})
    return seconds


def versions_of(name: str, pythons: Mapping[str, Path]) -> dict[str, str]:
    """The versions that a tool really ran on, asked of its own environment."""
    libraries = ([name] if name in PACKAGES else []) + ["transformers", "torch", "numpy"]
    ask = f"from importlib.metadata import version as v; print(*[v(n) for n in {libraries}])"
    told = subprocess.run([pythons.get(name, sys.executable), "-c", ask], capture_output=True, text=True, check=True)
    return dict(zip(libraries, told.stdout.split(), strict=True))

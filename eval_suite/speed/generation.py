"""Steered over plain generation in the same engine: one layer and all layers, prefill and decode apart.

    python -m eval_suite.speed.generation --width 384 --layers 8 --batch 4

Prefill and decode are those of factory.model.prefix; at every step plain and steered take turns. ``generate`` is a
whole generation by the model's own method. Every answer has the same length: no token ends it. Before anything is
timed, steering at strength 0 is compared with no steering, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from eval_suite.speed import timing
from factory.data.prompt import Role
from factory.model.encode import Batch
from factory.model.prefix import at_last, extend, greedy, prefill
from factory.model.view import ModelView
from factory.registry import lookup
from factory.steer import States, Steering
from factory.steer.runtime import going_on

Kinds = dict[str, list[Steering]]
TARGETS = {"one layer": 1.02, "all layers": 1.08}


def fitted(view: ModelView, method: str, layers: Sequence[int], strength: float) -> list[Steering]:
    """``method`` fitted on random states, at each of ``layers``."""
    cls = lookup("steering", method)
    steerer = cls(cls.Params())
    state = steerer.fit(random_states(view))
    return [Steering(steerer, state, steerer.where().model_copy(update={"layer": layer}), strength) for layer in layers]


def random_states(view: ModelView) -> States:
    """32 prompts of random states and random MCR."""
    draw = torch.Generator().manual_seed(0)
    base, toward, away = torch.randn(3, 32, view.width, generator=draw)
    return States("vision", base, toward, away, {"R_V": torch.rand(32, generator=draw)}, ["task"] * 32)


@contextmanager
def endless(view: ModelView) -> Iterator[None]:
    """No token ends an answer."""
    config = view.model.generation_config
    before, config.eos_token_id = config.eos_token_id, view.unembed.weight.shape[0]
    try:
        yield
    finally:
        config.eos_token_id = before


@torch.no_grad()
def steps(view: ModelView, batch: Batch, kinds: Kinds, n: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each ``prefill`` and of each of ``n`` ``decode`` steps on the cache, the kinds in turn at every
    step.
    """
    times: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        prefixes = {}
        for name, steerings in _turned(kinds, turn):
            with steered(view, steerings, begins=True), timing.stopwatch(view.device) as clock:
                hidden, prefixes[name] = prefill(view, batch)
                token = view.logits(at_last(hidden, batch.attention_mask)).argmax(-1)[:, None]
            if turn:
                times.setdefault(f"{name}, prefill", []).append(clock.seconds)
        one = torch.ones_like(token)
        for step in range(n if turn else 2):
            for name, steerings in _turned(kinds, step):
                with steered(view, steerings), timing.stopwatch(view.device) as clock:
                    hidden, prefixes[name] = extend(
                        view, prefixes[name], token, one, one * int(Role.ANSWER), generated=True
                    )
                    view.logits(hidden[:, -1]).argmax(-1)
                if turn:
                    times.setdefault(f"{name}, decode", []).append(clock.seconds)
    return times


def _turned(kinds: Kinds, turn: int) -> list[tuple[str, list[Steering]]]:
    return list(kinds.items())[:: -1 if turn % 2 else 1]


def steered(view: ModelView, steerings: Sequence[Steering], begins: bool = False) -> AbstractContextManager[None]:
    """The block in which prompts are run or answers go on; a steering that ``begins`` forgets the prompts that it
    knew.
    """
    for steering in steerings if begins else ():
        steering.forget()
    return going_on(view, steerings) if steerings else nullcontext()


@torch.no_grad()
def generate(view: ModelView, batch: Batch, steerings: Sequence[Steering], n: int) -> Tensor:
    with steered(view, steerings, begins=True):
        return view.model.generate(**batch, max_new_tokens=n, do_sample=False)


@torch.no_grad()
def check_strength_zero(view: ModelView, batch: Batch, method: str, n: int) -> None:
    """Raises RuntimeError unless steering every block at strength 0 leaves every bit of a generation as it was."""

    def run(steerings: Sequence[Steering]) -> list[Tensor]:
        with steered(view, steerings, begins=True):
            hidden, prefix = prefill(view, batch)
            tokens = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), n)
        generated = generate(view, batch, steerings, n)
        caches = [t for layer in prefix.cache.layers for t in (layer.keys, layer.values)]
        return [hidden, tokens, generated, *caches]

    for plain, zero in zip(run([]), run(fitted(view, method, range(view.depth), 0.0)), strict=True):
        if not torch.equal(plain.view(torch.uint8), zero.view(torch.uint8)):
            raise RuntimeError(f"{method} at strength 0 is not bit-equal to no steering")


def measure(
    view: ModelView, batch: int = 4, tokens: int = 16, repeats: int = 9, method: str = "l2s", strength: float = 0.5
) -> timing.Result:
    with endless(view):
        inputs = view.encode(timing.conflicts(batch))
        check_strength_zero(view, inputs, method, 4)
        kinds = {
            "plain": [],
            "one layer": fitted(view, method, [view.depth // 2], strength),
            "all layers": fitted(view, method, range(view.depth), strength),
        }
        times = steps(view, inputs, kinds, tokens, repeats)
        jobs = {f"{kind}, generate": lambda s=s: generate(view, inputs, s, tokens) for kind, s in kinds.items()}
        times |= timing.interleaved(jobs, repeats, view.device)
    ratios = [
        timing.ratio(times, f"{kind}, {part}", f"plain, {part}", target)
        for kind, target in TARGETS.items()
        for part in ("prefill", "decode", "generate")
    ]
    setting = {"method": method, "batch": batch, "tokens": inputs.input_ids.shape[1], "new": tokens, "repeats": repeats}
    return timing.result("generation", view, setting, times, ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".generation", __doc__)
    parser.add_argument("--method", default="l2s", help="a registered steering method (default l2s)")
    parser.add_argument("--new", type=int, default=16, help="tokens to generate (default 16)")
    a = parser.parse_args(arguments)
    timing.finish(
        [measure(view, **timing.options(a), tokens=a.new, method=a.method) for view in timing.models(a)], a.json
    )


if __name__ == "__main__":
    main()

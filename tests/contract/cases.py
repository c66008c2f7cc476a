"""What the contract suite runs: every registered plugin, fitted on random states, and a slow obvious reference for
steering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factory.data.prompt import USER_TEXT, Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.diagnose import Diagnostic, Known
from factory.instruments.heads import METRIC, SILENCED
from factory.model.encode import Encoded
from factory.model.prefix import at_last, greedy, prefill
from factory.model.view import ModelView
from factory.registry import available, lookup
from factory.steer import Context, LogitsMethod, PromptMethod, States, Steerer, Steering, Trials, steer
from factory.steer.sweep import look_ahead, run_trunk
from tests.tiny import conflict_prompts, tiny_view

torch.set_num_threads(1)  # the models are so small that threads only wait for each other
LAYERS = (0, 1, 2)
STRENGTH = 3.0
OPTIONS = {
    "predict_from": ("per_token",),
    "apply_to": ("generated_only", "last_and_generated", "from_index:5"),
    "of": ((("type", "msrs"), ("tokens", "argmax")), (("type", "l2s"), ("apply_to", "last_and_generated"))),
    "alone": ("last",),
}

SPECIAL = {
    "heads": (
        ("role", "all"),
        ("generated", True),
        ("coefficient", 2.0),
    ),  # else it steers only what an instruction has added
    "maci": (("conditional", False), ("top", 30)),  # else it leaves prompts that it takes for none, and most heads
    "dose": (("conflicts_only", False),),  # else it leaves prompts with one modality alone
}

SMALL = {  # else it trains networks of full size, again and again
    "influence": {
        "of": {"type": "l2s", "net": {"hidden": 3, "epochs": 4, "batch_size": 4}},
        "again": "anew",
        "exact": 0,
        "solver_steps": 10,
        "retrainings": 3,
        "draws": 1,
        "removed": 0.3,
        "planted": 0.3,
        "moments": 2,
    },
    "regret": {"max_new_tokens": 4},
    "dose": {"doses": (0.5, 1.0, 3.0), "gate_epochs": 20},
    "msrs": {"epochs": 20},
}


class Case(NamedTuple):
    """A steering method under options, by name and hence hashable."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join(
            [self.method, *(str(dict(value)["type"] if name == "of" else value) for name, value in self.options)]
        )


def classes(kind: str) -> dict[str, type]:
    return {entry.name: lookup(kind, entry.name) for entry in available(kind)}


def steerer_cases(with_options: bool = False) -> list[Case]:
    """Every registered method that adds vectors, and each with one of its token choices changed."""
    found = [name for name, cls in classes("steering").items() if issubclass(cls, Steerer)]
    cases = [Case(name, SPECIAL.get(name, ())) for name in found]
    for name in found if with_options else ():
        for option, values in OPTIONS.items():
            if option in lookup("steering", name).Params.model_fields:
                cases += [Case(name, (*SPECIAL.get(name, ()), (option, value))) for value in values]
    return cases


def acting_cases() -> list[Case]:
    """Those that change a forward over a prompt alone."""
    asleep = [Case(case.method, (("apply_to", "generated_only"),)) for case in steerer_cases()]
    return [case for case in steerer_cases(with_options=True) if case not in asleep]


def sites() -> list[tuple[Case, int]]:
    """Every method at the first, a middle and the last layer, and its options at the middle one."""
    plain = steerer_cases()
    return [(case, layer) for case in plain for layer in LAYERS] + [
        (c, 1) for c in steerer_cases(True) if c not in plain
    ]


def diagnostics(asks: bool) -> list[str]:
    """Diagnostics that ask prompts of their own about samples, or that measure any prompt on any model."""
    return [
        name
        for name, cls in classes("diagnostic").items()
        if asks == (cls.on_samples is not Diagnostic.on_samples) and not cls.of_tuners
    ]


def prefix_diagnostics() -> list[str]:
    """Those that measure prompts of a shared prefix, not whole ones."""
    measuring = {name: lookup("diagnostic", name) for name in diagnostics(asks=False)}
    return [name for name, cls in measuring.items() if cls.on_prefix is not Diagnostic.on_prefix]


def prompt_methods() -> list[str]:
    return [name for name, cls in classes("steering").items() if issubclass(cls, PromptMethod)]


def random_states(seed: int = 0, n: int = 24, d: int = 48, direction: str = "vision") -> States:
    rng = torch.Generator().manual_seed(seed)
    base = torch.randn(n, d, generator=rng)
    push = torch.randn(d, generator=rng) + base @ torch.randn(d, d, generator=rng) / d
    toward, away = base + push + 0.1 * torch.randn(n, d, generator=rng), base - push
    r_v = 0.2 + 0.6 * torch.rand(n, generator=rng)
    tails = tuple(view / 2 + 0.1 * torch.randn(n, d, generator=rng) for view in (base, toward, away))
    found = [
        {
            "sample": str(i),
            "form": "open",
            "direction": way,
            "outcome": "follow",
            "metric": metric,
            "layer": layer,
            "head": head,
            "value": abs(value) if metric == SILENCED else value,
        }
        for i in range(2)
        for way in ("vision", "text")
        for layer in LAYERS
        for head in range(4)
        for metric, value in zip((METRIC, SILENCED), torch.randn(2, generator=rng).tolist(), strict=True)
    ]
    return States(
        direction,
        base,
        toward,
        away,
        {"R_V": r_v},
        ["color" if i % 3 else "counting" for i in range(n)],
        seed,
        tails,
        found,
    )


def known(samples: Sequence[ConflictSample]) -> Known:
    """A run that knows some samples, of one form, and random states of each."""
    states = lambda direction, split: random_states(0 if split == "train" else 1, len(samples), direction=direction)
    return Known({"train": samples, "dev": samples, "test": samples}, states, 0)


@cache
def _trial_view() -> ModelView:
    """A view of its own, so that a fit does not change which prompts the tests' view has encoded last."""
    return fresh_view()


def random_trials(method: Steerer, state: dict[str, Tensor], seed: int = 0) -> Trials:
    """Random outcomes of a method's trial strengths, beside what it truly sees of them on twelve prompts."""
    view, n = _trial_view(), 12
    trunk = run_trunk(view, view.encode(conflict_prompts(n)), 1)
    looks = look_ahead(view, trunk, Steering(method, dict(state), method.where().model_copy(update={"layer": 1})))
    drawn = torch.rand(looks.shape[:2], generator=torch.Generator().manual_seed(seed))
    measured = random_states(seed, n).measured
    return Trials(drawn < 0.5, drawn > 0.9, looks, trunk.last, measured, torch.arange(n) // 2, seed)


def make(case: Case) -> Steerer:
    options = {name: small(**dict(value)) if name == "of" else value for name, value in case.options}
    settings = small(case.method, **options)
    cls = lookup("steering", settings.pop("type"))
    return cls(cls.Params(**settings))


def small(type: str, **options: Any) -> dict[str, Any]:
    """A method as a recipe names it, made small."""
    return {"type": type, **SMALL.get(type, {}), **options}


def fit(case: Case, seed: int = 0, direction: str = "vision") -> dict[str, Tensor]:
    method = make(case)
    state = method.fit(random_states(seed, direction=direction))
    return method.calibrate(state, random_trials(method, state, seed)) if method.trial_strengths else state


@cache
def fitted(case: Case) -> tuple[Steerer, dict[str, Tensor]]:
    return make(case), fit(case)


def steering(case: Case, layer: int, strength: Any = STRENGTH, **where: Any) -> Steering:
    """A fresh steering by a fitted method; ``where`` replaces parts of the method's own token choice."""
    method, state = fitted(case)
    return Steering(method, dict(state), method.where().model_copy(update={"layer": layer, **where}), strength)


def logits(view: ModelView, prompts: Sequence[Prompt], steerings: Any = (), side: str = "left") -> Tensor:
    """Next-token logits [B, vocabulary] of prompts."""
    batch = view.encode(prompts, side)
    with torch.no_grad(), steer(view, steerings):
        return view.logits(at_last(prefill(view, batch)[0], batch.attention_mask))


def answers(
    view: ModelView, prompts: Sequence[Prompt], steerings: Any = (), side: str = "left", n: int = 5
) -> list[list[int]]:
    """Greedy tokens through prefill and the KV cache."""
    batch = view.encode(prompts, side)
    with torch.no_grad(), steer(view, steerings):
        hidden, prefix = prefill(view, batch)
        return greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), n).tolist()


def recompute(view: ModelView, prompt: Prompt, answer: Tensor, steerings: Sequence[Steering]) -> Tensor:
    """Logits [t, vocabulary] before each of ``answer`` [t], with no cache, batch or runtime: the definition, spelt out.

    The vector of a method that reads the last prompt token stays what it was at that token while the answer grows.
    """
    images, texts = view.images_of([prompt])
    (encoded,) = view.tokens([prompt], texts)
    n, rest = len(encoded.ids), answer[:-1].tolist()
    batch = view.collate([encoded], images)
    whole = view.collate([Encoded(encoded.ids + rest, encoded.roles + [int(Role.ANSWER)] * len(rest), "")], images)

    def run_again(layers: Sequence[int], move: Callable[..., Tensor], mask: Tensor, positions: Tensor | None) -> Tensor:
        """Logits after the prompt, run whole with one hook in the place of the methods' own at some layers."""
        hooks = [view.layers[layer]._forward_hooks for layer in layers]
        others = [dict(each) for each in hooks]
        for each in hooks:
            each.clear()
        mine = view.layers[layers[0]].register_forward_hook(move)
        out = view.core(**{**batch, "attention_mask": mask}, position_ids=positions, use_cache=False)
        mine.remove()
        for each, before in zip(hooks, others, strict=True):
            each.update(before)
        return view.logits(out.last_hidden_state[:, -1])

    def seen_ahead(
        s: Steering, vector: Tensor, chosen: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """The prompt at another strength, without a role's tokens, and with these unseen by its last token, for
        controllers that look ahead (of one method at a time).
        """

        def probe(strength: Tensor) -> Tensor:
            def add(module: nn.Module, args: tuple, h: Tensor) -> Tensor:
                return h + strength * chosen[:n, None] * vector[:n]

            return run_again([s.where.layer], add, batch.attention_mask, batch.position_ids)

        def hiding(role: Tensor) -> Tensor:
            left = without_role(batch.roles[0].tolist(), int(role))
            positions = (torch.arange(n)[None] if batch.position_ids is None else batch.position_ids).clone()
            for t in range(n - 2, -1, -1):  # what a token took, all after it are given back
                if not left[t]:
                    positions[..., t + 1 :] -= positions[..., t + 1 : t + 2] - positions[..., t : t + 1]
            return run_again(range(view.depth), lambda module, args, h: h, torch.tensor([left]), positions)

        def ignoring(role: Tensor) -> Tensor:
            seen = torch.ones(n, n).tril().bool()
            seen[-1] &= batch.roles[0] != int(role)
            mask = torch.zeros(n, n).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
            return run_again(range(view.depth), lambda module, args, h: h, mask, batch.position_ids)

        def each(one: Callable[[Tensor], Tensor], rows: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
            """Of several strengths or roles: one after another."""

            def all_of(given: Tensor) -> Tensor:
                found = torch.stack([one(x) for x in given.reshape(-1, *rows)])
                return found.view(*given.shape[: given.ndim - len(rows)], *found.shape[1:])

            return all_of

        return each(probe, (1,)), each(hiding, ()), each(ignoring, ())

    def hook_of(s: Steering):
        later_too = torch.full((len(answer) - 1,), s.where.generated)
        ctx, later = Context(s.where.layer), Context(s.where.layer, True)
        gains: list[float] = []

        def hook(module: nn.Module, args: tuple, h: Tensor) -> Tensor:
            last = h[:, n - 1]
            chosen = torch.cat([s.steerer.choose(h[:, :n], s.where.mask(batch.roles), s.state)[0], later_too])
            if s.steerer.reads == "last_prompt":
                vector = s.steerer.delta(last, s.state, ctx).expand(h.shape[1], -1)
            else:
                vector = torch.cat([s.steerer.delta(h[0, :n], s.state, ctx), s.steerer.delta(h[0, n:], s.state, later)])
            if not gains:
                probe, hiding, ignoring = seen_ahead(s, vector, chosen)
                ahead = Context(s.where.layer, False, probe, hiding, batch.roles, ignoring)
                gains.append(float(s.steerer.gain(last, s.state, ahead)[0]))
            out = h.clone()
            for t in chosen.nonzero()[:, 0].tolist():
                out[0, t] += s.strength * gains[0] * vector[t]
            return out

        return hook

    def put(s: Steering):
        hook = hook_of(s)
        if s.where.site == "heads":
            return view.o_proj(s.where.layer).register_forward_pre_hook(
                lambda module, args: (hook(module, (), args[0]),)
            )
        return view.layers[s.where.layer].register_forward_hook(hook)

    handles = [put(s) for s in steerings]
    try:
        with torch.no_grad():
            out = view.core(**whole, position_ids=whole.position_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return view.logits(out.last_hidden_state[0, n - 1 :])


def without_role(roles: list[int], role: int) -> list[int]:
    """1 for each token that stays when a role is left out, 0 for its tokens and for what the template put between them
    and a text.
    """
    left, said = [], 0
    for t, r in enumerate(roles):
        said = r if r > Role.TEMPLATE else said
        text = next((x for x in roles[t:] if x > Role.TEMPLATE), 0) in (*USER_TEXT, Role.INSTRUCTION)
        left.append(int(r != role and not (r == Role.TEMPLATE and said == role and text)))
    return left


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Within ``tolerance`` of the largest value (float32 sums in another order differ by some 1e-7 of it)."""
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


def same_weights(a: ModelView, b: ModelView) -> bool:
    """To the bit. Logits are not: weights in a mapped file begin at other addresses, and the order of sums in matrix
    products may depend on these."""
    own, theirs = a.model.state_dict(), b.model.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


def traces(view: ModelView) -> dict[str, Any]:
    """All that a plugin could leave behind: hooks, attributes, gradients, flags and values of every module."""
    found: dict[str, Any] = {"view": sorted(vars(view)), "step": view.step}
    for name, module in view.model.named_modules():
        hooks = {key: len(value) for key, value in vars(module).items() if "hook" in key and hasattr(value, "__len__")}
        found[name] = (sorted(vars(module)), hooks, module.training)
    for name, p in view.model.named_parameters():
        found[name] = (p.requires_grad, p.grad is None, p.detach().double().sum().item(), p.dtype)
    return found


def fresh_view(**sizes: Any) -> ModelView:
    """A view of its own, for a test that changes the model."""
    return tiny_view.__wrapped__(**sizes)


def answered_example(prompt: Prompt) -> Prompt:
    return prompt.append(Segment(Role.ANSWER, "A"))


@cache
def trained(name: str) -> dict[str, dict[str, Tensor]]:
    """What a method that trains the model has learnt from a few answers toward each direction."""
    cls = lookup("steering", name)
    sides = [[p.append(Segment(Role.ANSWER, answer)) for p in conflict_prompts(4)] for answer in ("red", "blue")]
    method = cls(cls.Params(learning_rate=1e-2))
    return {way: method.train(_trial_view(), *pair, 0) for way, pair in (("vision", sides), ("text", sides[::-1]))}


def logits_methods() -> list[str]:
    return [name for name, cls in classes("steering").items() if issubclass(cls, LogitsMethod)]

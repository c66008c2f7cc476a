"""Collection: the three states of AMPS eq. 11 and the diagnosis, from one shared prefix.

The prompts [I,T], [I,T,P+] and [I,T,P-] of a sample agree up to the end of the user's text. That common prefix is found
by comparing token ids, prefilled once, for all forms of a sample that begin alike, and extended by the three short
suffixes as rows of one pass. Cost per sample: one prefill, one pass over 3 suffixes a form, and the diagnosis on the
cache. A model whose prompt tokens see what follows them, or whose blocks keep running states, shares nothing: there the
three are run whole.

Learn-to-steer contrasts completions instead: P+ and P- are then the beginnings of an answer of the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from factory.data.instructions import Style, instruction
from factory.data.prompt import USER_TEXT, Prompt, Role, Segment
from factory.data.sources import PICTURE_AND_TEXT, Sources
from factory.diagnose import Diagnostic, Row, once_a_prompt
from factory.errors import UserError
from factory.model.alike import common_length, cut_at, groups_of, shareable
from factory.model.prefix import Prefix, extend, last_index, prefill
from factory.model.view import ModelView
from factory.steer import States
from factory.steer.base import Direction

BASE = "base"
WORDINGS = 3
"""How often a prompt is asked: as it is, and toward either source."""
MEASURED = "measured."


@dataclass(frozen=True)
class Plan:
    """How to collect: ``layer`` (0-based block), ``position`` (SPEC A14), wording of P, the prompts to diagnose, and
    whether the means over the prompts' ``tails`` are wanted too.
    """

    layer: int
    position: str = "last"
    style: Style = "amps_eq9"
    diagnose: tuple[str, ...] = ("base",)
    tails: bool = False


def asks_of(sources: Sources) -> tuple[str, ...]:
    """What every prompt is asked: as it is (``base``), and toward either source, by their names."""
    return (BASE, *sources.names)


ASKS = asks_of(PICTURE_AND_TEXT)


def asked(prompt: Prompt, ask: str, style: Style) -> Prompt:
    """[I,T] for ``base``, else [I,T,P] (AMPS eq. 9)."""
    return prompt if ask == BASE else prompt.append(instruction(style, ask, prompt.sources))


@torch.no_grad()
def collect(
    view: ModelView,
    prompts: Sequence[Prompt],
    plan: Plan,
    diagnostic: Diagnostic | None,
    keys: Sequence[str],
    completions: Mapping[str, Sequence[str]] | None = None,
    pairs: Mapping[str, Sequence[Prompt]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, list[Row]]]:
    """States {ask: [B, d] float32 on the CPU} for base and the names of the prompts' sources (vision and text), and
    diagnostic rows by ask.

    ``completions`` {ask: text of each prompt} begin the model's answer in place of P (learn-to-steer); base has none.
    ``pairs`` {ask: prompts} are the prompts toward either source themselves; they are run whole.

    ``ask.tail`` is the mean state of the prompt's last tokens, a tenth of them, three to eight; ``measured.metric`` [B]
    what the diagnostic gives once a prompt without instruction, where it is diagnosed.
    """
    whole = view.whole_prompts or pairs is not None
    asks = {BASE: prompts, **pairs} if pairs else _asks(prompts, plan, completions)
    names = tuple(asks)
    run = (_apart if whole else _shared)(view, asks, plan)
    chosen = read_position(run.states, run.whole.mask, run.whole.roles, plan.position).float().cpu().chunk(len(names))
    tensors = dict(zip(names, chosen, strict=True))
    if plan.tails:
        means = _tail_mean(run.states, run.whole.mask).cpu().chunk(len(names))
        tensors |= {f"{ask}.tail": mean for ask, mean in zip(names, means, strict=True)}
    found: dict[str, list[Row]] = {}
    if diagnostic is not None:
        for ask in plan.diagnose:
            rows = names.index(ask) * len(prompts) + torch.arange(len(prompts), device=view.device)
            found[ask] = diagnostic.on_whole(view, *run.pick(rows), [f"{key}/{ask}" for key in keys])
    once = once_a_prompt(found.get("base", ()), [f"{key}/base" for key in keys])
    return {**tensors, **{f"{MEASURED}{metric}": values for metric, values in once.items()}}, found


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What was collected of prompts, batch after batch, as one; NaN for what was measured of other batches alone."""
    names = dict.fromkeys(name for part in parts for name in part)
    unknown = [torch.full((len(part["base"]),), torch.nan) for part in parts]
    return {name: torch.cat([part.get(name, nan) for part, nan in zip(parts, unknown, strict=True)]) for name in names}


def measured_in(collected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What ``collected`` holds of a diagnostic, by metric."""
    return {name.removeprefix(MEASURED): t for name, t in collected.items() if name.startswith(MEASURED)}


def states_toward(
    direction: Direction,
    collected: Mapping[str, Tensor],
    tasks: Sequence[str],
    seed: int,
    found: Sequence[Mapping[str, Any]] = (),
    sources: Sources = PICTURE_AND_TEXT,
    agreeing: Mapping[str, Tensor] | None = None,
) -> States:
    """What a method is fitted on toward ``direction``, of ``collected`` states and numbers."""
    c, other = collected, sources.other(direction).name
    tails = (c["base.tail"], c[f"{direction}.tail"], c[f"{other}.tail"]) if "base.tail" in c else None
    measured = measured_in(c)
    return States(
        direction, c["base"], c[direction], c[other], measured, tasks, seed, tails, found, sources, agreeing or {}
    )


Asks = Mapping[str, Sequence[Prompt]]


def _asks(prompts: Sequence[Prompt], plan: Plan, completions: Mapping[str, Sequence[str]] | None) -> Asks:
    """The prompts of each ask."""
    if completions is None:
        sources = prompts[0].sources if prompts else PICTURE_AND_TEXT
        return {ask: [asked(prompt, ask, plan.style) for prompt in prompts] for ask in asks_of(sources)}
    begun = {
        ask: [p.append(Segment(Role.ANSWER, text)) for p, text in zip(prompts, texts, strict=True)]
        for ask, texts in completions.items()
    }
    return {BASE: list(prompts), **begun}


@dataclass(frozen=True)
class _Pass:
    """The three asks of all prompts, run: their ids [3 B, T], the cache they lie in, and the layer's output [3 B, T,
    d].

    ``final`` holds the final states by blocks of columns, each with the row that every ask takes of it.
    """

    ids: Tensor
    whole: Prefix
    states: Tensor
    final: tuple[tuple[Tensor, Tensor], ...]

    def pick(self, rows: Tensor) -> tuple[Tensor, Prefix, Tensor]:
        """Ids, cache and final states of some rows."""
        return self.ids[rows], self.whole.fork(rows), torch.cat([hidden[at[rows]] for hidden, at in self.final], 1)


def _shared(view: ModelView, asks: Asks, plan: Plan) -> _Pass:
    """The three asks of each prompt, from what they share."""
    prompts = asks["base"]
    groups = groups_of(prompts) if shareable(view) else [[i] for i in range(len(prompts))]
    counts = view.images_of(prompts)[1]
    encoded = {ask: view.tokens(some, counts) for ask, some in asks.items()}
    shared = [common_length([own[i] for own in encoded.values() for i in group]) for group in groups]
    of_prompt = [g for g, group in enumerate(groups) for _ in group]
    first = [group[0] for group in groups]
    heads = [cut_at(encoded["base"][i], n)[0] for i, n in zip(first, shared, strict=True)]
    tails = [cut_at(e, shared[g])[1] for own in encoded.values() for e, g in zip(own, of_prompt, strict=True)]
    head, tail = view.collate(heads, view.images_of([prompts[i] for i in first])[0]), view.collate(tails, {})
    every = torch.arange(len(tails), device=view.device)
    rows = torch.tensor(of_prompt, device=view.device)[every % len(prompts)]
    with _output_of(view, plan.layer) as seen:
        of_head, prefix = prefill(view, head)
        of_tail, whole = extend(view, prefix.fork(rows), tail.input_ids, tail.attention_mask, tail.roles)
    ids, states = torch.cat([head.input_ids[rows], tail.input_ids], 1), torch.cat([seen[0][rows], seen[1]], 1)
    return _Pass(ids, whole, states, ((of_head, rows), (of_tail, every)))


def _apart(view: ModelView, asks: Asks, plan: Plan) -> _Pass:
    """The three asks as prompts of their own, for models that run prompts whole."""
    if view.family.bidirectional_prompt and any(
        prompt.answered for ask, prompts in asks.items() if ask != BASE for prompt in prompts
    ):
        raise UserError(
            f"collect.completion: the prompt's tokens of {type(view.model).__name__} see what follows them, so that a"
            " begun answer would not be read as it is written; contrast instructions there"
        )
    batch = view.encode([prompt for some in asks.values() for prompt in some])
    with _output_of(view, plan.layer) as seen:
        hidden, whole = prefill(view, batch)
    return _Pass(batch.input_ids, whole, seen[0], ((hidden, torch.arange(batch.size, device=view.device)),))


@contextmanager
def _output_of(view: ModelView, layer: int) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        seen.append(output.to(view.device))

    handle = view.layers[layer].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _tail_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean float32 state [R, d] of each row's last tokens, a tenth of them, three to eight."""
    length = mask.sum(-1, keepdim=True)
    k = (0.1 * length).round().clamp(3, 8)
    last = (mask.bool() & (length - mask.cumsum(-1) < k)).float()
    return (states.float() * last[..., None]).sum(1) / last.sum(-1, keepdim=True)


def read_position(states: Tensor, mask: Tensor, roles: Tensor, position: str) -> Tensor:
    """One state per row [R, d] from [R, T, d] at a position of SPEC A14 (mean_prompt: the mean over P; without P, the
    last user token), or over the answer that has begun (mean_completion; without one, the last token).
    """
    rows = torch.arange(len(states), device=states.device)
    user = (
        torch.isin(roles, torch.tensor([int(r) for r in (*USER_TEXT, Role.INSTRUCTION)], device=roles.device))
        & mask.bool()
    )
    if position in ("last", "second_last"):
        rest = mask.clone()
        if position == "second_last":
            rest[rows, last_index(mask)] = 0
        return states[rows, last_index(rest)]
    if position == "mean_completion":
        said = roles == Role.ANSWER
        before = last_index((mask.bool() & ~said).long())[:, None]
        said = said & mask.bool() & (torch.arange(roles.shape[1], device=roles.device) > before)
        mean = (states.float() * said[..., None]).sum(1) / said.sum(1, keepdim=True).clamp_min(1)
        return torch.where(said.any(1, keepdim=True), mean, states[rows, last_index(mask)].float())
    last_user = states[rows, last_index(user.long())]
    if position == "last_user_token":
        return last_user
    p = (roles == Role.INSTRUCTION).float()
    mean = (states.float() * p[..., None]).sum(1) / p.sum(1, keepdim=True).clamp_min(1)
    return torch.where(p.any(1, keepdim=True), mean, last_user.float())

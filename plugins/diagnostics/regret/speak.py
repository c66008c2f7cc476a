"""Dialogues put to a model: its answers, plain, steered or with some units held at a value, and its states in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from factory.bench import Bench
from factory.data.prompt import Prompt, Role
from factory.diagnose import Query, hold_back
from factory.errors import UserError
from factory.model.encode import Batch
from factory.model.prefix import Prefix, at_last, decode_texts, extend, greedy, prefill
from factory.model.view import ModelView

from .dialogues import Dialogue, Reply, act, token_at
from .keywords import Keywords

Units = Literal["residual", "mlp"]
Said = tuple[str, tuple[int, ...]]
Around = Callable[[], AbstractContextManager[None]]


@torch.no_grad()
def say(
    view: ModelView, prompts: Sequence[Prompt], tokens: int, batch: int, around: Around = nullcontext
) -> list[Said]:
    """Greedy answers of at most ``tokens`` tokens: text, and ids without what follows its end; ``around`` is entered
    about each ``batch`` of prompts.
    """
    said: list[Said] = []
    for i in range(0, len(prompts), batch):
        encoded = view.encode(prompts[i : i + batch])
        with around():
            hidden, prefix = prefill(view, encoded)
            ids = greedy(view, prefix, view.logits(at_last(hidden, encoded.attention_mask)), tokens)
        said += _said(view, ids)
    return said


def _said(view: ModelView, ids: Tensor) -> list[Said]:
    ends, out = set(view.end_ids), []
    for text, row in zip(decode_texts(view, ids), ids.tolist(), strict=True):
        own = next((n for n, token in enumerate(row) if token in ends), len(row))
        out.append((text, tuple(row[:own])))
    return out


def first_answers(bench: Bench, asked: Sequence[Dialogue], given: bool, batch: int) -> list[Said]:
    """a1 of each dialogue: the model's own, or, ``given``, the benchmark's words for the wrong modality's."""
    view = bench.view
    if not given:
        name = lambda d: (d.sample.id, d.form, d.kind, d.toward if d.kind == "evidence" else None)
        once = {name(d): d.first for d in asked}  # a hint either way comes after the same question
        said = dict(zip(once, say(view, list(once.values()), bench.max_new_tokens, batch), strict=True))
        return [said[name(d)] for d in asked]
    wrong = ["text" if d.toward == "vision" else "vision" for d in asked]
    texts = [bench.benchmark.answer(d.sample, d.form, w) for d, w in zip(asked, wrong, strict=True)]
    return [(text, tuple(view.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]


def replies(
    bench: Bench,
    asked: Sequence[tuple[Dialogue, Said]],
    keywords: Keywords,
    tokens: int,
    batch: int,
    around: Around = nullcontext,
) -> list[Reply]:
    """The second answers."""
    said = say(bench.view, [d.second(first) for d, (first, _) in asked], tokens, batch, around)
    return [reply(bench, d, first, each, keywords) for (d, first), each in zip(asked, said, strict=True)]


def reply(bench: Bench, dialogue: Dialogue, first: Said, said: Said, keywords: Keywords) -> Reply:
    """What one second answer is."""
    (text, ids), keyword = said, keywords.first(said[0])
    token = None if keyword is None else token_at(bench.view.tokenizer, ids, keyword.at)
    return Reply(dialogue, *first, text, ids, act(bench, dialogue, text), keyword, token)


@dataclass(frozen=True)
class Looked:
    """At each answer's place and at the ``before`` tokens ahead of it, nearest first: ``states`` [n, before + 1,
    layers, units] float32 on the CPU; ``odds`` [n, before + 1], in nats, that a word of regret begins next.
    """

    states: Tensor
    odds: Tensor


@torch.no_grad()
def look(
    view: ModelView,
    asked: Sequence[tuple[Prompt, tuple[int, ...], int]],
    before: int,
    units: Units,
    first_tokens: Sequence[int],
    batch: int,
) -> Looked:
    """The states where prompts were answered with known tokens; each has its place among these. Ahead of an answer
    stand its prompt's last tokens.
    """
    parts = [_look(view, asked[i : i + batch], before, units, first_tokens) for i in range(0, len(asked), batch)]
    return Looked(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _look(
    view: ModelView,
    asked: Sequence[tuple[Prompt, tuple[int, ...], int]],
    before: int,
    units: Units,
    first_tokens: Sequence[int],
) -> tuple[Tensor, Tensor]:
    encoded = view.encode([prompt for prompt, _, _ in asked])
    answers = [ids[: place + 1] for _, ids, place in asked]
    prefix, end = _held_back(view, encoded, before)
    width = max(map(len, answers))
    padded = [[*ids, *[view.pad_id] * (width - len(ids))] for ids in answers]
    ids = torch.tensor(padded, device=view.device).view(len(asked), width)
    given = torch.tensor([[i < len(a) for i in range(width)] for a in answers], device=view.device).long()
    given = given.view(len(asked), width)
    query = Query(*(torch.cat(pair, 1) for pair in zip(end, (ids, given, given * int(Role.ANSWER)), strict=True)))
    places = torch.tensor([place for _, _, place in asked], device=view.device)
    at = before + places[:, None] - torch.arange(before + 1, device=view.device)
    with _kept(view, at, units) as kept:
        hidden, _ = extend(view, prefix, *query)
    rows = torch.arange(len(at), device=view.device)[:, None]
    logits = view.logits(hidden[rows, at])
    begins = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    begins[list(first_tokens)] = True
    odds = logits.masked_fill(~begins, -torch.inf).logsumexp(-1) - logits.masked_fill(begins, -torch.inf).logsumexp(-1)
    return torch.stack(kept, 2).float().cpu(), odds.float().cpu()


def _held_back(view: ModelView, encoded: Batch, n: int) -> tuple[Prefix, Query]:
    """Prompts in a cache up to their last ``n`` tokens, and these. Raises ``UserError`` for a shorter prompt."""
    if bool((encoded.attention_mask.sum(-1) <= n).any()):
        raise UserError(f"regret: a prompt has no {n} tokens ahead of its answer; lower `before`")
    hidden, whole = prefill(view, encoded)
    rank = encoded.attention_mask.flip(-1).cumsum(-1).flip(-1)
    last = (encoded.attention_mask == 1) & (rank <= n)
    prefix, query, _ = hold_back(view, encoded.input_ids, hidden, whole, last)
    return prefix, query


@contextmanager
def _kept(view: ModelView, at: Tensor, units: Units) -> Iterator[list[Tensor]]:
    """Each block's units at columns ``at`` [B, n] of the forward inside: [B, n, units] by block, on the view's
    device.
    """
    kept: list[Tensor] = []
    rows = torch.arange(len(at), device=at.device)[:, None]

    def keep(x: Tensor) -> None:
        kept.append(x.reshape(len(at), -1, x.shape[-1])[rows.to(x.device), at.to(x.device)].to(at.device))

    with ExitStack() as stack:
        for layer in range(view.depth):
            stack.callback(hooked(view, layer, units, keep))
        yield kept


def hooked(view: ModelView, layer: int, units: Units, see: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
    """Show ``see`` what the units of a block are, and let it put others in their place: the block's output [.., d], or
    what its MLP's last projection is given [.., m]. Returns what takes the hook away.
    """
    if units == "residual":
        return view.layers[layer].register_forward_hook(lambda module, args, output: see(output)).remove

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        other = see(args[0])
        return None if other is None else (other, *args[1:])

    return down_projection(view, layer).register_forward_pre_hook(before).remove


def down_projection(view: ModelView, layer: int) -> nn.Module:
    """What takes block ``layer``'s MLP units back to the stream. Raises ``UserError`` for an MLP of other parts."""
    block = view.layers[layer]
    try:
        mlp = block.get_submodule(view.family.mlp_path)
    except AttributeError:
        mlp = nn.Module()
    linear = [m for m in mlp.modules() if getattr(m, "out_features", getattr(m, "nf", None)) == view.width]
    if not linear:
        raise UserError(f"regret: the MLP of {type(block).__name__} has no last projection; use `units: residual`")
    return linear[-1]


@contextmanager
def silenced(view: ModelView, layer: int, units: Units, mask: Tensor, value: Tensor) -> Iterator[None]:
    """The units of ``mask`` [units] of a block are ``value`` [units] at every token of the forwards inside."""

    def see(x: Tensor) -> Tensor:
        return torch.where(mask.to(x.device), value.to(x.device, x.dtype), x)

    remove = hooked(view, layer, units, see)
    try:
        yield
    finally:
        remove()


Silence = Mapping[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def say_silenced(
    view: ModelView, prompts: Sequence[Prompt], tokens: int, layer: int, units: Units, by: Silence
) -> dict[str, list[Said]]:
    """Answers of one batch of prompts by the name of what is silenced, a mask and a value of the units: from the last
    prompt token on. What comes before it runs once.
    """
    prefix, end = _held_back(view, view.encode(prompts), 1)
    found = {}
    for name, (mask, value) in by.items():
        with silenced(view, layer, units, mask, value):
            hidden, longer = extend(view, prefix.fork(), *end)
            ids = greedy(view, longer, view.logits(hidden[:, -1]), tokens)
        found[name] = _said(view, ids)
    return found


def first_tokens(view: ModelView, phrases: Sequence[str] | Mapping[str, str]) -> list[int]:
    """The tokens that begin a phrase, alone or after a space, with a capital or without."""
    spelt = (f"{space}{p}" for p in phrases for p in (p, p[:1].upper() + p[1:]) for space in ("", " "))
    found = set()
    for text in spelt:
        ids = view.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.add(next((i for i in ids if view.tokenizer.decode([i]).strip()), None))
    return sorted(i for i in found if i is not None)

"""New words of a model's vocabulary: told to its tokenizer, with rows of the embeddings that are trained.

The rows are PEFT's trainable tokens (``trainable_token_indices`` of its LoRA), put around the embedding and, where that
has weights of its own, the unembedding. They start at the mean of the rows that were there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from tokenizers import AddedToken
from torch import nn

from factory.errors import UserError
from factory.model.view import ModelView


def tell_words(tokenizer: Any, words: Iterable[str]) -> dict[str, int]:
    """Add ``words`` to a tokenizer, each a token of its own; returns their ids. Raises ``UserError`` for one that is a
    token already, or that the tokenizer reads otherwise.
    """
    words = list(words)
    if known := [word for word in words if word in tokenizer.get_vocab()]:
        raise UserError(f"tune.new_tokens: '{known[0]}' is a token of the model already; leave it out")
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    ids = {word: int(tokenizer.convert_tokens_to_ids(word)) for word in words}
    for word, own in ids.items():
        if tokenizer(word, add_special_tokens=False)["input_ids"] != [own]:
            raise UserError(f"tune.new_tokens: the tokenizer does not read '{word}' as one token; choose another")
    return ids


class NewTokens:
    """``words`` as tokens of a view's model, with their ids where they are known already; of a view without a tokenizer
    they follow the last row. ``undo`` gives it its former vocabulary.
    """

    def __init__(self, view: ModelView, words: Mapping[str, int | None]) -> None:
        self.before = view.processor and view.processor.tokenizer
        self.rows, self.wrapped = (
            _embedding(view).weight.shape[0],
            list[tuple[nn.Module, str, TrainableTokensWrapper]](),
        )
        self.ids = self._told(view, words)
        needed = max(self.ids.values()) + 1
        self.kept = (
            [m.weight.detach()[list(self.ids.values())].clone() for m in _maps(view)] if needed <= self.rows else []
        )
        if needed > self.rows:
            view.model.resize_token_embeddings(needed, mean_resizing=False)
        for module in _maps(view) if view.device.type != "meta" else ():
            with torch.no_grad():
                mean = module.weight[: min(self.rows, *self.ids.values())].float().mean(0)
                module.weight[list(self.ids.values())] = mean.to(module.weight.dtype)

    def _told(self, view: ModelView, words: Mapping[str, int | None]) -> dict[str, int]:
        known = {word: own for word, own in words.items() if own is not None}
        if self.before is None:
            return known or {word: self.rows + i for i, word in enumerate(words)}
        tokenizer = deepcopy(self.before)
        ids = tell_words(tokenizer, words)
        if known and known != ids:
            word = next(w for w in ids if known.get(w) != ids[w])
            raise UserError(
                f"the new token '{word}' was {known.get(word)} where it was trained, and is {ids[word]} here"
            )
        view.processor.tokenizer = tokenizer
        return ids

    def wrap(self, view: ModelView, trained: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Put PEFT's trainable rows around the maps that are not ``trained`` as a whole; returns the rows."""
        whole, at = {id(p) for p in trained}, list(self.ids.values())
        rows: list[nn.Parameter] = []
        first: dict[int, Any] = {}
        for module in (m for m in (_embedding(view), view.unembed) if id(m.weight) not in whole):
            if getattr(module, "bias", None) is not None:
                raise UserError(
                    f"tune.new_tokens: the unembedding of {type(view.model).__name__} has a bias, which PEFT's"
                    " trainable tokens leave out; choose tuner full"
                )
            parent, name = _place(view, module)
            tied = first.get(id(module.weight))
            wrapper = TrainableTokensWrapper(module, "default", at, tied)
            first.setdefault(id(module.weight), wrapper.token_adapter)
            setattr(parent, name, wrapper)
            self.wrapped.append((parent, name, wrapper))
            rows += [] if tied else wrapper.token_adapter.trainable_tokens_delta.parameters()
        return rows

    def where(self, view: ModelView) -> dict[str, list[int]]:
        """PEFT's ``trainable_token_indices``: the ids in each map with rows of its own, by its name."""
        names = {id(module): name for name, module in view.model.named_modules()}
        own = [wrapper for _, _, wrapper in self.wrapped if not wrapper.token_adapter.tied_adapter]
        return {names[id(wrapper)]: list(self.ids.values()) for wrapper in own}

    def rest(self) -> None:
        """Write the rows into the maps, which then run as they are."""
        for _, _, wrapper in self.wrapped:
            if not wrapper.token_adapter.merged:
                wrapper.token_adapter.merge()

    def unwrap(self) -> None:
        """Take the layers away; the maps are as they stand."""
        for parent, name, wrapper in self.wrapped:
            setattr(parent, name, wrapper.token_adapter.base_layer)
        self.wrapped = []

    def undo(self, view: ModelView) -> None:
        """The vocabulary and its rows as they were."""
        self.unwrap()
        if self.kept:
            for module, values in zip(_maps(view), self.kept, strict=True):
                with torch.no_grad():
                    module.weight[list(self.ids.values())] = values
        else:
            view.model.resize_token_embeddings(self.rows, mean_resizing=False)
        if self.before is not None:
            view.processor.tokenizer = self.before


def _embedding(view: ModelView) -> Any:
    return view.model.get_input_embeddings()


def _maps(view: ModelView) -> list[Any]:
    """The embedding, and the unembedding where it has weights of its own."""
    maps: list[Any] = [_embedding(view), view.unembed]
    return maps[:1] if maps[0].weight is maps[1].weight else maps


def _place(view: ModelView, module: nn.Module) -> tuple[nn.Module, str]:
    name = next(name for name, each in view.model.named_modules() if each is module)
    above, _, own = name.rpartition(".")
    return view.model.get_submodule(above), own

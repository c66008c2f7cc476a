"""A live, maybe steered, multimodal model as lm-eval's HFLM. Needs the extra `benchmarks` (lm-eval)."""

from __future__ import annotations

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from factory.data.prompt import Role
from factory.model.encode import Batch, pad
from factory.model.prefix import at_last, extend, prefill
from factory.model.view import ModelView

Request = tuple[tuple[str, str], list[int], list[int]]


class LiveModel(HFLM):
    """HFLM over a ``ModelView``, run inside ``with steer(...)`` or outside of it.

    The context is a prompt of question tokens. A continuation's tokens are the model's own answer: they are run after
    it on its cache, so that steering reads the last token of the context, never the answer that is being scored.
    """

    def __init__(self, view: ModelView, batch_size: int) -> None:
        super().__init__(
            pretrained=view.model,
            tokenizer=view.tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=_longest(view),
        )
        self.view = view

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        size = override_bs or self.batch_size
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        answers: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), size):
            some = order[start : start + size]
            for i, found in zip(some, self._score([requests[i] for i in some]), strict=True):
                answers[i] = found
                self.cache_hook.add_partial("loglikelihood", requests[i][0], found)
        return [answers[i] for i in range(len(requests))]

    @torch.no_grad()
    def _score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        conts = [cont for _, _, cont in requests]
        batch = self._prompts([ctx[-max(1, self.max_length - len(cont) + 1) :] for _, ctx, cont in requests])
        hidden, prefix = prefill(self.view, batch)
        states = at_last(hidden, batch.attention_mask)[:, None]
        longest = max(map(len, conts))
        if longest > 1:
            ids = pad([cont[:-1] for cont in conts], self.view.pad_id, "right").to(self.view.device)
            mask = pad([[1] * (len(cont) - 1) for cont in conts], 0, "right").to(self.view.device)
            after, _ = extend(self.view, prefix, ids, mask, mask * int(Role.ANSWER), generated=True)
            states = torch.cat([states, after], 1)
        found = []
        for row, cont in zip(states, conts, strict=True):
            logp = self.view.logits(row[: len(cont)]).log_softmax(-1)
            target = torch.tensor(cont, device=logp.device)
            found.append((float(logp.gather(-1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())))
        return found

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: object) -> Tensor:
        mask = kwargs["attention_mask"]
        assert isinstance(mask, Tensor), "lm-eval pads a batch of contexts, and hands on where"
        return super()._model_generate(self._batch(context, mask).input_ids, max_length, stop, **kwargs)

    def _prompts(self, contexts: list[list[int]]) -> Batch:
        mask = pad([[1] * len(ids) for ids in contexts], 0, "left")
        ids = pad(contexts, self.view.pad_id, "left")
        return self._batch(ids, mask).to(self.view.device, self.view.dtype)

    def _batch(self, ids: Tensor, mask: Tensor) -> Batch:
        """Text prompts [B, T] whose every token is the question's."""
        roles, family, model = mask * int(Role.QUESTION), self.view.family, self.view.model
        of_tokens = family.token_inputs(model, ids, roles)
        return Batch(ids, mask, roles, family.position_ids(model, ids, mask, of_tokens), {}, of_tokens)


def _longest(view: ModelView) -> int:
    return getattr(view.text_config, "max_position_embeddings", 2048)

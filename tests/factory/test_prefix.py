"""Prefill, fork, extend and greedy decoding against whole forwards of the model."""

from __future__ import annotations

import pytest
import torch

from factory.data.prompt import Prompt, Role, Segment
from factory.model.prefix import at_last, extend, greedy, last_index, prefill, split_last
from tests.contract.cases import close, traces
from tests.tiny import mixed_prompts, tiny_view


def whole_logits(view, prompt: Prompt) -> torch.Tensor:
    """Logits [T, vocabulary] of one prompt by the model's own forward."""
    batch = view.encode([prompt])
    with torch.no_grad():
        return view.model(**batch).logits[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_prefill_is_the_models_own_forward(side):
    view, prompts = tiny_view(), mixed_prompts()
    batch = view.encode(prompts, side)
    with torch.no_grad():
        hidden, prefix = prefill(view, batch)
    for i, prompt in enumerate(prompts):
        own = view.logits(hidden)[i][batch.attention_mask[i].bool()]
        assert close(own, whole_logits(view, prompt))
    assert prefix.rows == 4 and prefix.next_position.tolist() == batch.attention_mask.sum(-1).tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunks", [[1, 1, 1], [3], [2, 1]])
def test_extending_is_recomputing(side, chunks):
    """Three tokens after prompts of unlike lengths, some of them padding, in pieces."""
    view, prompts = tiny_view(), mixed_prompts()
    ids = torch.tensor([[5, 6, 7]] * 4)
    mask = torch.ones_like(ids)
    mask[1, 2 if chunks == [1, 1, 1] else 0] = 0
    batch, found = view.encode(prompts, side), []
    with torch.no_grad():
        _, prefix = prefill(view, batch)
        for piece, m in zip(ids.split(chunks, 1), mask.split(chunks, 1), strict=True):
            hidden, prefix = extend(view, prefix, piece, m, m * int(Role.QUESTION))
            found.append(view.logits(hidden))
    found = torch.cat(found, 1)
    for i, prompt in enumerate(prompts):
        alone = view.encode([prompt])
        more = ids[i][mask[i].bool()][None]
        with torch.no_grad():
            reference = view.model(
                input_ids=torch.cat([alone.input_ids, more], 1),
                attention_mask=torch.ones(1, alone.input_ids.shape[1] + more.shape[1], dtype=torch.long),
                **alone.images,
            ).logits[0, -more.shape[1] :]
        assert close(found[i][mask[i].bool()], reference)
    assert prefix.next_position.tolist() == (batch.attention_mask.sum(-1) + mask.sum(-1)).tolist()
    assert torch.equal(prefix.roles[:, -3:], mask * int(Role.QUESTION))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_alone_completes_the_rest(side):
    view, prompts = tiny_view(), mixed_prompts()
    batch = view.encode(prompts, side)
    rest, ids, roles = split_last(batch)
    assert (rest.attention_mask.sum(-1) == batch.attention_mask.sum(-1) - 1).all()
    assert (roles == Role.TEMPLATE).all() and ids.shape == (4, 1)
    with torch.no_grad():
        _, prefix = prefill(view, rest)
        hidden, _ = extend(view, prefix, ids, torch.ones_like(ids), roles)
        whole, _ = prefill(view, batch)
    assert close(hidden[:, -1], at_last(whole, batch.attention_mask))


def test_a_fork_can_be_extended_without_touching_the_prefix():
    view = tiny_view()
    batch = view.encode(mixed_prompts())
    one, rows = torch.ones(4, 1, dtype=torch.long), torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        _, prefix = prefill(view, batch)
        before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
        same, _ = extend(view, prefix.fork(), one * 5, one, one)
        picked, _ = extend(view, prefix.fork(rows), one * 5, one, one)
        again, _ = extend(view, prefix.fork(), one * 5, one, one)
    assert torch.equal(same, again) and close(picked, same[rows])
    kept = [(layer.keys, layer.values) for layer in prefix.cache.layers]
    assert all(torch.equal(a, b) for old, new in zip(before, kept, strict=True) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_is_generate(side):
    view, prompts = tiny_view(), mixed_prompts()
    batch = view.encode(prompts)
    with torch.no_grad():
        expected = view.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch.input_ids.shape[1] :]
        batch = view.encode(prompts, side)
        hidden, prefix = prefill(view, batch)
        found = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), 6)
    assert torch.equal(found, expected)


def test_what_follows_the_end_token_is_padding(monkeypatch):
    view, prompts = tiny_view(), mixed_prompts()
    batch = view.encode(prompts)

    def run() -> torch.Tensor:
        with torch.no_grad():
            hidden, prefix = prefill(view, batch)
            return greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), 5)

    free = run()
    end = int(free[0, 1])
    monkeypatch.setattr(type(view), "eos_ids", torch.tensor([end]))
    for row, plain in zip(run().tolist(), free.tolist(), strict=True):
        cut = plain.index(end) + 1 if end in plain else len(plain)
        assert row[:cut] == plain[:cut] and all(t == view.pad_id for t in row[cut:])
    monkeypatch.setattr(type(view), "eos_ids", free[:, 1].unique())
    assert run().shape[1] == 2 or (free[:, 0] != run()[:, 0]).any(), "nothing is generated once all have ended"


@pytest.mark.parametrize(
    "mask, expected",
    [([[0, 0, 1, 1]], [3]), ([[1, 1, 0, 0]], [1]), ([[1, 0, 1, 0], [0, 1, 0, 0]], [2, 1]), ([[1]], [0])],
)
def test_the_last_token_on_either_side(mask, expected):
    assert last_index(torch.tensor(mask)).tolist() == expected
    states = torch.arange(len(mask) * len(mask[0])).view(len(mask), len(mask[0]), 1)
    assert at_last(states, torch.tensor(mask))[:, 0].tolist() == [i * len(mask[0]) + e for i, e in enumerate(expected)]


def test_decoding_announces_prompt_and_answer_and_cleans_up():
    view, steps = tiny_view(), []
    batch = view.encode([mixed_prompts()[0].append(Segment(Role.INSTRUCTION, "please"))])
    before = traces(view)
    handle = view.core.register_forward_pre_hook(lambda *_: steps.append(view.step))
    with torch.no_grad():
        hidden, prefix = prefill(view, batch)
        greedy(view, prefix, view.logits(hidden[:, -1]), 3)
    handle.remove()
    assert [s.generated for s in steps] == [False, True, True]
    assert torch.equal(steps[0].roles, batch.roles) and steps[1].roles.tolist() == [[int(Role.ANSWER)]]
    assert traces(view) == before

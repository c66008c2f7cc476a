"""The learn-to-steer network's released POPE training against a plain loop over torch.nn modules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from factory.steer.regressor import RegressorParams, fit_g

N, D, HIDDEN, EPOCHS, WARMUP, BATCH, RATE = 23, 6, 4, 8, 3, 5, 3e-2


def plain_loop(h: torch.Tensor, v: torch.Tensor, answers: list[str], seed: int) -> dict[str, torch.Tensor]:
    """The released trainer's steps, written out; the draws are fit_g's: order, decoder, encoder, order of epochs."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(N, generator=rng)
    val, train = order[: int(N * 0.2)], order[int(N * 0.2) :]
    encoder, decoder = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D, bias=False)
    torch.rand(D, HIDDEN, generator=rng)  # the decoder's, replaced by singular vectors
    components = torch.linalg.svd(v[train] - v[train].mean(0), full_matrices=False).Vh[:HIDDEN]
    with torch.no_grad():
        decoder.weight.copy_(components.T)
        encoder.weight.copy_((torch.rand(HIDDEN, D, generator=rng) * 2 - 1) * D**-0.5)
        encoder.bias.copy_((torch.rand(HIDDEN, generator=rng) * 2 - 1) * D**-0.5)
    net = nn.Sequential(encoder, nn.Tanh(), decoder)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0)
    steps, step = math.ceil(len(train) / BATCH), 0
    best, least = None, math.inf
    for epoch in range(EPOCHS):
        shuffled = train[torch.randperm(len(train), generator=rng)]
        for start in range(0, len(train), BATCH):
            batch = shuffled[start : start + BATCH]
            warm, all_steps = WARMUP * steps, EPOCHS * steps
            share = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (all_steps - warm)))
            for group in optimizer.param_groups:
                group["lr"] = RATE * share
            each = per_sample(net(h[batch]), v[batch], 0.1 * min(1.0, epoch / 100))
            loss = torch.zeros(())
            for answer in ("yes", "no"):
                own = [each[i] for i, sample in enumerate(batch.tolist()) if answers[sample] == answer]
                loss = loss + (torch.stack(own).mean() if own else 0.0)
            optimizer.zero_grad()
            (loss / 2).backward()
            optimizer.step()
            step += 1
        with torch.no_grad():
            held = float(per_sample(net(h[val]), v[val], 0.05).mean())
        if held < least:
            least, best = held, [p.detach().clone() for p in (encoder.weight, encoder.bias, decoder.weight)]
    return dict(zip(("encoder.weight", "encoder.bias", "decoder.weight"), best, strict=True))


def per_sample(predicted: torch.Tensor, target: torch.Tensor, weight: float) -> torch.Tensor:
    error = predicted - target
    cosine = (predicted * target).sum(1) / (predicted.norm(dim=1) * target.norm(dim=1))
    return error.square().mean(1) + error.abs().mean(1) - weight * cosine


@pytest.mark.parametrize("seed", [0, 1])
def test_the_released_pope_training_is_that_of_a_plain_loop(seed):
    draw = torch.Generator().manual_seed(7)
    h, v = torch.randn(2, N, D, generator=draw)
    answers = ["yes" if i % 4 == 0 else "no" for i in range(N)]
    params = RegressorParams(
        hidden=HIDDEN,
        loss="l2s_pope",
        schedule="cosine",
        warmup=WARMUP,
        balance="task",
        learning_rate=RATE,
        epochs=EPOCHS,
        batch_size=BATCH,
    )
    ours, theirs = fit_g(h, v, params, seed, answers), plain_loop(h, v, answers, seed)
    for name, expected in theirs.items():
        assert torch.allclose(ours[name], expected, atol=1e-6), name
    for changed in ({"schedule": "constant"}, {"balance": "none"}, {"loss": "l2s_code"}):
        other = fit_g(h, v, params.model_copy(update=changed), seed, answers)
        assert not torch.allclose(other["encoder.weight"], theirs["encoder.weight"], atol=1e-4), changed


def test_balance_needs_the_task_of_each_state():
    h, v = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="task of each of 4"):
        fit_g(h, v, RegressorParams(balance="task"), 0, ["a"])

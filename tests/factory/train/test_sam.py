"""Sharpness-aware minimisation against the two-step update written out, for tuners and for the learn-to-steer
network.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from factory.corpus.collate import Collator
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.registry import lookup
from factory.run.pipeline import check_launch
from factory.steer.regressor import RegressorParams, fit_g
from factory.train.sam import ascended
from tests.factory.train.case import tuned, write_data
from tests.tiny import fresh_view

RHO, RATE = 0.3, 3e-3
LORA = {"type": "lora", "rank": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_the_ascent_has_length_rho_and_is_taken_back_to_the_bit():
    torch.manual_seed(0)
    w = [nn.Parameter(torch.randn(3, 4) * 1e3), nn.Parameter(torch.randn(5) * 1e-3), nn.Parameter(torch.ones(2))]
    before = [p.detach().clone() for p in w]
    (w[0].square().sum() + (3 * w[1]).sum()).backward()
    g = torch.cat([p.grad.flatten() for p in w[:2]])
    with ascended(w, 20.0):
        eps = torch.cat([(p.detach() - b).flatten() for p, b in zip(w[:2], before[:2], strict=True)])
        assert eps.norm().item() == pytest.approx(20.0, rel=1e-4)
        assert torch.allclose(eps, 20.0 * g / g.norm(), atol=1e-3)
        assert all(p.grad is None for p in w) and torch.equal(w[2], before[2]), "what has no gradient stays"
        w[1].sum().backward()
    assert all(torch.equal(p, b) for p, b in zip(w, before, strict=True))
    assert torch.equal(w[1].grad, torch.ones(5)), "the gradient that was taken there is kept"
    with pytest.raises(ZeroDivisionError), ascended(w, 1.0):
        raise ZeroDivisionError
    assert all(torch.equal(p, b) for p, b in zip(w, before, strict=True))


def test_no_gradient_moves_nothing():
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.zeros(3)
    with ascended([w], 1.0):
        assert torch.equal(w, torch.ones(3))


def by_hand(data, sam: bool) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """Two steps on whole batches: the gradient of one loss, eps, the gradient there, clipped, AdamW. Each step's loss
    and sharpness, and what was trained.
    """
    view, order = fresh_view(), Order(24, 4, 0)
    cls = lookup("tuner", "lora")
    torch.manual_seed(1)
    trained = cls(cls.Params(rank=2, dropout=0.0)).apply(view, ("connector",))
    view.model.train()
    source = ConversationFile(data, data.parent, data.parent / "index")
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    told = []

    def loss_of(batch: dict) -> torch.Tensor:
        logits = view.model(**{k: t for k, t in batch.items() if k not in ("labels", "roles")}).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)

    for step in range(2):
        batch = Collator(view, source, 200, None)([order[4 * step + i] for i in range(4)])
        here = loss_of(batch)
        g = torch.autograd.grad(here, list(trained.values()), allow_unused=True)
        g = [torch.zeros_like(p) if x is None else x for p, x in zip(trained.values(), g, strict=True)]
        norm = math.sqrt(sum(float(x.square().sum()) for x in g))
        for p, x in zip(trained.values(), g, strict=True):
            p.data += sam * RHO * x / norm
        optimizer.zero_grad()
        there = loss_of(batch)
        there.backward()
        for p, x in zip(trained.values(), g, strict=True):
            p.data -= sam * RHO * x / norm
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        told.append((here.item(), (there - here).item()))
    return told, trained


def test_a_tuner_s_step_is_the_two_step_update_however_the_step_is_cut(data, tmp_path):
    logs: list[dict] = []
    how = {"steps": 2, "schedule": "constant", "warmup": 0.0, "optimizer": "sam", "rho": RHO, "micro_batch": 2}
    losses, values = tuned(data, tmp_path, LORA, {}, log=logs, **how)
    told, trained = by_hand(data, sam=True)
    assert losses == pytest.approx([loss for loss, _ in told], rel=1e-4)
    assert [row["sharpness"] for row in logs] == pytest.approx([sharp for _, sharp in told], rel=1e-2, abs=1e-4)
    apart = lambda other: max(float((value - other[name].detach()).abs().max()) for name, value in values.items())
    assert apart(trained) < 2e-4
    assert apart(by_hand(data, sam=False)[1]) > 1e-3


def test_the_second_pass_drops_what_the_first_dropped(data, tmp_path):
    logs: list[dict] = []
    tuned(data, tmp_path, LORA | {"dropout": 0.5}, {}, log=logs, steps=1, optimizer="sam", rho=1e-7)
    assert abs(logs[0]["sharpness"]) < 1e-4, "at almost the same weights two passes differ by their dropout alone"


def test_sam_is_refused_where_its_second_gradient_would_be_none():
    text = (
        "{{name: r, model: {{zoo: tiny}}, tune: {{tuner: mores, optimizer: sam, data: {{path: x.json}}}}, launch: {}}}"
    )
    for launch, ranks in (("{zero: 2}", 1), ("{processes: 2}", 2)):
        with pytest.raises(UserError, match="tune.optimizer: sam takes a step's gradient twice"):
            check_launch(loads(text.format(launch)), ranks)
    check_launch(loads(text.format("{}")), 1)


def two_step_loop(h: torch.Tensor, v: torch.Tensor, params: RegressorParams) -> tuple[dict, float]:
    """fit_g with validation 0 and one batch an epoch, written out over torch.nn modules."""
    start = fit_g(h, v, params.model_copy(update={"learning_rate": 1e-30, "epochs": 1, "optimizer": "adam"}), 3)
    net = nn.Sequential(
        nn.Linear(h.shape[1], params.hidden), nn.Tanh(), nn.Linear(params.hidden, v.shape[1], bias=False)
    )
    own = dict(zip(start, (net[0].weight, net[0].bias, net[2].weight), strict=True))
    for name, p in own.items():
        p.data.copy_(start[name])
    optimizer = torch.optim.Adam(net.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)

    def move(sign: float, eps: list[torch.Tensor]) -> None:
        for p, e in zip(net.parameters(), eps, strict=True):
            p.data += sign * e

    for epoch in range(params.epochs + 1):
        g = torch.autograd.grad(F.mse_loss(net(h), v), list(net.parameters()))
        norm = torch.cat([x.flatten() for x in g]).norm()
        eps = [params.rho * x / norm for x in g]
        here = F.mse_loss(net(h), v).item()
        move(1, eps)
        there = F.mse_loss(net(h), v)
        if epoch == params.epochs:
            break
        optimizer.zero_grad()
        there.backward()
        move(-1, eps)
        optimizer.step()
    move(-1, eps)
    return {name: p.detach() for name, p in own.items()}, there.item() - here


def test_the_network_s_fit_is_the_two_step_update():
    h, v = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    params = RegressorParams(
        hidden=3,
        optimizer="sam",
        rho=RHO,
        weight_decay=0.01,
        learning_rate=1e-2,
        epochs=6,
        batch_size=12,
        validation=0.0,
        keep="last",
    )
    expected, sharp = two_step_loop(h, v, params)
    fitted = fit_g(h, v, params, 3)
    assert all(torch.allclose(fitted[name], value, atol=1e-5) for name, value in expected.items())
    assert fitted["sharpness"].item() == pytest.approx(sharp, rel=1e-3) and sharp > 0
    plain = fit_g(h, v, params.model_copy(update={"optimizer": "adam"}), 3)
    assert "sharpness" not in plain and not torch.allclose(plain["encoder.weight"], fitted["encoder.weight"], atol=1e-4)

"""What keys of a tuning do, each against a training that is written out, and against one without the key."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from factory.train.loop import Answers
from tests.factory.train.by_loop import RATE, apart, applied, batches, descend, mean_loss
from tests.factory.train.case import tuned, write_data
from tests.tiny import fresh_view

LORA = {"type": "lora", "rank": 2, "dropout": 0.0}
PLAIN = {"schedule": "constant", "warmup": 0.0}
STEPS = 4
CLOSE, OTHER = 3e-4, 1e-3  # values of AdamW's trajectories that are the same, and that are not


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def looped(data, tuner=LORA, beside=("connector",), steps: int = STEPS, **how) -> tuple[list[float], dict]:
    view, trained = applied(tuner, beside)
    return descend(view, trained, batches(view, data, steps), **how), trained


@pytest.fixture(scope="module")
def plainly(data):
    return looped(data)


SHAPES = {
    "constant": lambda t: 1.0,
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}


@pytest.mark.parametrize("schedule", SHAPES)
@pytest.mark.parametrize("warm", [0, 2])
def test_the_rate_rises_and_falls_as_the_schedule_says(data, tmp_path, plainly, schedule, warm):
    """Up in equal steps over the share ``warmup`` of the steps, then down over the rest; the first step is step 0."""
    shape = SHAPES[schedule]
    rates = [RATE * (s / warm if s < warm else shape((s - warm) / (STEPS - warm))) for s in range(STEPS)]
    losses, values = tuned(data, tmp_path, LORA, {}, schedule=schedule, warmup=warm / STEPS)
    expected, trained = looped(data, rates=rates)
    assert losses == pytest.approx(expected, rel=1e-4) and apart(values, trained) < CLOSE
    if schedule != "constant" or warm:
        assert apart(values, plainly[1]) > OTHER


def test_the_gradient_is_clipped_at_the_norm_that_is_asked_for(data, tmp_path):
    """AdamW takes no notice of a factor that all steps share: the norm lies between those of the steps."""
    _, values = tuned(data, tmp_path, LORA, {}, max_grad_norm=50.0, **PLAIN)
    assert apart(values, looped(data, clip=50.0)[1]) < CLOSE
    assert min(apart(values, looped(data, clip=norm)[1]) for norm in (1.0, 1e9)) > OTHER


def test_in_bfloat16_what_is_trained_stays_in_float32(data, tmp_path, plainly):
    losses, values = tuned(data, tmp_path, LORA, {}, bf16=True, **PLAIN)
    expected, trained = looped(data, bf16=True)
    assert losses == pytest.approx(expected, rel=1e-3) and losses != pytest.approx(plainly[0], rel=1e-4)
    assert {t.dtype for t in values.values()} == {torch.float32}
    assert apart(values, trained) < apart(values, plainly[1])


def test_8_bit_moments_are_those_of_bitsandbytes_own_optimiser(data, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    wide = LORA | {"rank": 128}  # smaller tensors stay in 32 bits
    _, values = tuned(data, tmp_path, wide, {}, optimizer="adamw_8bit", **PLAIN)
    assert apart(values, looped(data, wide, optimizer=bnb.optim.AdamW8bit)[1]) < CLOSE
    assert apart(values, looped(data, wide)[1]) > OTHER


@pytest.mark.parametrize(
    ("tuner", "beside", "parts"),
    [
        (LORA, (), set()),
        (LORA, ("connector",), {"connector"}),
        (LORA, ("vision_tower",), {"vision_tower"}),
        ({"type": "connector"}, ("connector", "vision_tower"), {"connector", "vision_tower"}),
        ({"type": "full"}, (), {"language model"}),
        ({"type": "full"}, ("connector",), {"language model", "connector"}),
    ],
)
def test_what_is_not_trained_keeps_its_bits(data, tmp_path, tuner, beside, parts):
    kept: list = []

    def objective(view):
        kept.append(view)
        return Answers(view)

    tuned(data, tmp_path, tuner, {}, objective=objective, beside=beside, steps=1, **PLAIN)
    [view], before = kept, dict(fresh_view().model.named_parameters())
    part_of = {id(p): name for name in ("connector", "vision_tower") for p in getattr(view, name).parameters()}
    moved: dict[str, set[bool]] = {}
    for name, p in view.model.named_parameters():
        if (base := before.get(name.replace("base_layer.", ""))) is not None:
            moved.setdefault(part_of.get(id(p), "language model"), set()).add(not torch.equal(p, base))
    assert {part for part, found in moved.items() if True in found} == parts
    assert all(moved[part] == {False} for part in moved.keys() - parts), "all others, to the bit"


def test_the_language_model_and_each_part_beside_it_learn_at_rates_of_their_own(data, tmp_path):
    rates = {"connector": 2e-2, "vision_tower": 1e-4}
    full, beside = {"type": "full"}, ("connector", "vision_tower")
    _, values = tuned(data, tmp_path, full, {}, learning_rates=rates, beside=beside, steps=2, **PLAIN)
    view, trained = applied(full, beside)
    owner = {id(p): part for part in beside for p in getattr(view, part).parameters()}
    groups = [{"params": [p], "lr": rates.get(owner.get(id(p), ""), RATE)} for p in trained.values()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for batch in batches(view, data, 2):
        optimizer.zero_grad()
        mean_loss(view, batch).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
    assert apart(values, trained) < CLOSE
    assert apart(values, looped(data, full, beside, 2)[1]) > OTHER


def weight_of(W: Tensor, A: Tensor, B: Tensor, m: Tensor | None, scale: float) -> Tensor:
    """W + s B A, or DoRA's m (W + s B A) / ||W + s B A||, whose norm is a constant to the gradient (section 4.3)."""
    V = W + scale * B @ A
    return V if m is None else m[:, None] * V / V.norm(dim=1, keepdim=True).detach()


class Equation(nn.Module):
    """A linear map by its weight, which is worked out anew in each pass."""

    def __init__(self, weight, bias) -> None:
        super().__init__()
        self.weight_now, self.bias_now = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight_now(), self.bias_now)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({}, 5 / 2),
        ({"variant": "rslora"}, 5 / math.sqrt(2)),
        ({"variant": "dora"}, 5 / 2),
        ({"start": "pissa"}, 5 / 2),
        ({"where": "vision_tower", "targets": ["query", "mlp_in"]}, 5 / 2),
        ({"where": "both", "layers": "deep", "targets": ["value"]}, 5 / 2),
    ],
    ids=str,
)
def test_lora_and_its_variants_learn_what_their_equations_do(data, tmp_path, options, scale):
    """The maps of a plain model are replaced by the papers' equations over matrices of our own, which begin as the
    tuner's do."""
    tuner = LORA | {"alpha": 5} | options
    losses, values = tuned(data, tmp_path, tuner, {}, beside=(), steps=3, **PLAIN)
    begun, named = applied(tuner, ())
    bases = {name: p.detach().clone() for name, p in begun.model.named_parameters() if "base_layer" in name}
    own = {name: nn.Parameter(p.detach().clone()) for name, p in named.items()}
    view = fresh_view()
    places = sorted({name.partition(".lora_")[0] for name in own})
    assert {"vision_tower" in place for place in places} == {
        {"vision_tower": True, "both": True}.get(options.get("where", ""), False),
        options.get("where") == "vision_tower",
    }
    blocks = {int(place.split(".layers.")[1].split(".")[0]) for place in places if "language_model" in place}
    assert blocks == {"vision_tower": set(), "both": {2}}.get(options.get("where", ""), {0, 1, 2})
    for place in places:
        at = lambda part, place=place: next((p for n, p in own.items() if n.startswith(f"{place}.lora_{part}")), None)
        assert (at("magnitude") is None) == (options.get("variant") != "dora")
        W, bias = bases[f"{place}.base_layer.weight"], bases.get(f"{place}.base_layer.bias")
        now = lambda W=W, at=at: weight_of(W, at("A"), at("B"), at("magnitude"), scale)
        inside, _, name = place.rpartition(".")
        before = view.model.get_submodule(place)
        assert torch.allclose(now(), before.weight, atol=1e-5), "it begins as the model it is put into"
        setattr(view.model.get_submodule(inside), name, Equation(now, bias))
    view.model.train()
    steps = batches(view, data, 3)
    assert losses == pytest.approx(descend(view, own, steps), rel=1e-4)
    assert apart(values, own) < CLOSE


def test_dropout_of_lora_drops_its_share_of_the_update_s_input_and_scales_the_rest(data, tmp_path):
    view, trained = applied(LORA | {"dropout": 0.25, "targets": ["query"]}, ())
    with torch.no_grad():
        for p in trained.values():
            p.fill_(1.0)
    layer = view.layers[0].self_attn.q_proj
    x = torch.eye(layer.in_features)  # each row alone is dropped or is not
    with torch.no_grad():
        update = torch.cat([(layer(x) - layer.base_layer(x))[:, 0] for _ in range(200)])
    full = 2 * 2 * torch.tensor(1.0)  # alpha / rank, over ranks of ones
    assert (update == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(update[update != 0], full / 0.75, rtol=1e-4)


def test_checkpoints_come_every_so_many_steps_and_after_the_last(data, tmp_path):
    tuned(data, tmp_path, LORA, {}, steps=5, save_every=2, keep_checkpoints=9)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (2, 4, 5)}


def test_recomputation_runs_the_blocks_again(data, tmp_path):
    """Its losses are tested elsewhere; here, that each block runs forward twice a step."""
    for asked in (False, True):
        calls: list[int] = []

        def objective(view, calls=calls):
            view.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
            return Answers(view)

        tuned(data, tmp_path / str(asked), LORA, {}, objective=objective, steps=1, gradient_checkpointing=asked)
        assert len(calls) == (2 if asked else 1)

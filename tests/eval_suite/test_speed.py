"""The performance benchmarks run at a minimal size and give positive, finite numbers; how fast they are is not
tested.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from eval_suite.speed import __main__ as everything
from eval_suite.speed import (
    anchor,
    collection,
    controllers,
    generation,
    lmar,
    orders,
    shapes,
    sweep,
    throughput,
    timing,
    tuning,
)
from factory.steer.runtime import Steering
from factory.zoo.cards import read_card
from tests.tiny import tiny_view

SIZES = [
    "--width",
    "32",
    "--layers",
    "2",
    "--heads",
    "4",
    "--kv-heads",
    "2",
    "--image-tokens",
    "16",
    "--models",
    "random",
]
MINIMAL = ["--batch", "2", "--repeats", "1"]


def check(result: timing.Result) -> None:
    numbers = [*result.seconds.values(), *(x for r in result.ratios for x in (r.value, r.low, r.high))]
    assert result.ratios
    assert all(math.isfinite(x) and x > 0 for x in numbers)
    assert {r.baseline for r in result.ratios} <= set(result.seconds)


def test_collection():
    result = collection.measure(tiny_view(), batch=2, draws=1, repeats=1)
    check(result)
    assert {"one forward", "collection", "states", "published"} == set(result.seconds)


def test_generation():
    check(generation.measure(tiny_view(), batch=2, tokens=2, repeats=1))


def test_generation_refuses_a_strength_zero_that_changes_a_bit(monkeypatch):
    apply = Steering.apply
    monkeypatch.setattr(Steering, "apply", lambda self, h, step, ahead=None: apply(self, h, step, ahead) * (1 + 1e-6))
    with pytest.raises(RuntimeError, match="not bit-equal"):
        generation.measure(tiny_view(), batch=2, tokens=2, repeats=1)


def test_generation_leaves_the_model_as_it_was():
    view = tiny_view()
    before = view.model.generation_config.eos_token_id
    generation.measure(view, batch=1, tokens=1, repeats=1)
    assert view.model.generation_config.eos_token_id == before


def test_sweep():
    check(sweep.measure(tiny_view(), batch=2, strengths=2, tokens=2, repeats=1))


def test_controllers_are_held_to_the_pass_that_they_steer():
    result = controllers.measure(tiny_view(), batch=2, repeats=1, doses=2)
    check(result)
    assert {r.baseline for r in result.ratios} == {"plain"} and set(result.seconds) == {
        "plain",
        *controllers.controllers([]),
    }


def test_anchor_refuses_branches_that_differ_from_whole_runs(monkeypatch):
    check(anchor.measure(tiny_view(), batch=2, repeats=1))
    monkeypatch.setattr(anchor, "silenced_anew", lambda view, asked: torch.full((2, view.depth, view.heads), 0.5))
    with pytest.raises(RuntimeError, match="head map"):
        anchor.measure(tiny_view(), batch=2, repeats=1)


def test_tuning_keeps_less_where_less_is_trained():
    view = tiny_view()
    before = {name: p.clone() for name, p in view.model.named_parameters()}
    result = tuning.measure(view, batch=2, repeats=1, tuners=("mores", "full"))
    check(result)
    kept = {r.what: r.value for r in result.ratios if "kept" in r.what}
    assert 1 <= kept["mores: kept for backward"] < kept["full: kept for backward"]
    assert all(torch.equal(p, before[name]) and not p.requires_grad for name, p in view.model.named_parameters())
    assert not any("peak" in r.baseline for r in result.ratios), "unknown on this device"


def test_tuning_tells_the_share_of_a_peak_that_is_given():
    result = tuning.measure(tiny_view(), batch=2, repeats=1, tuners=("full",), peak=2.0)
    share = next(r for r in result.ratios if r.what.startswith("full: operations"))
    w = torch.nn.Parameter(torch.ones(5, 7))
    assert tuning.operations(lambda: (torch.ones(3, 5) @ w).sum().backward()) == 2 * 2 * 3 * 5 * 7, (
        "the product, and its gradient to the weights"
    )
    assert share.value == pytest.approx(share.low) and 0 < share.value < 1


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        (collection, ["--no-published"]),
        (generation, ["--new", "2"]),
        (sweep, ["--strengths", "2"]),
        (controllers, ["--doses", "2"]),
        (lmar, []),
        (orders, []),
        (anchor, ["--no-anew"]),
        (tuning, ["--tuners", "mores"]),
    ],
)
def test_each_alone(module, extra, capsys):
    module.main([*SIZES, *MINIMAL, *extra])
    assert module.__name__.rpartition(".")[2] in capsys.readouterr().out


def test_all_in_one_table_and_file(tmp_path, capsys):
    everything.main([*SIZES, *MINIMAL, "--json", str(tmp_path / "figures.json")])
    said = capsys.readouterr().out
    saved = json.loads((tmp_path / "figures.json").read_text())
    assert [r["benchmark"] for r in saved["results"]] == [
        "mcr",
        "collection",
        "generation",
        "controllers",
        "sweep",
        "orders",
        "lmar",
        "anchor",
        "tuning",
        "throughput",
    ]
    assert all(r["benchmark"] in said for r in saved["results"])
    assert saved["command"] and saved["environment"]["libraries"]["torch"]


SMALL = {  # a card's true sizes take minutes on a CPU
    "llava-1.5-13b": {
        "text_config": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 1200},
        "vision_config": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "image_size": 28},
    },
    "qwen2.5-vl-7b": {
        "text_config": {
            "hidden_size": 48,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1200,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
        },
        "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48},
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_a_shape_is_measured_with_its_decoder_cut_short(name, monkeypatch, capsys):
    card = read_card(name)
    config = {**card.config, **{part: {**card.config[part], **sizes} for part, sizes in SMALL[name].items()}}
    monkeypatch.setattr(shapes, "read_card", lambda _: card.model_copy(update={"config": config}))
    monkeypatch.setattr(shapes, "PHOTO", 56 * 56)
    monkeypatch.setattr(throughput, "SIDE", {"cpu": 32})
    everything.main(
        [
            "--shape",
            name,
            "--layers",
            "1",
            "--dtype",
            "float32",
            *MINIMAL,
            "--only",
            "throughput",
            "mcr",
            "collection",
            "generation",
        ]
    )
    said = capsys.readouterr().out
    assert "matrix product" in said and "prompts, answer" in said and "one forward" in said


def test_operations_are_those_of_the_matrices():
    """One token more costs two operations for each weight of the blocks' matrices, beside its attention."""
    view = tiny_view()
    result = throughput.measure(view, batch=1, tokens=1, repeats=1, draws=1)
    check(result)
    weights = sum(m.weight.numel() for m in view.layers.modules() if isinstance(m, torch.nn.Linear))
    done = result.rates["operations, forward"] * result.seconds["one forward"]
    tokens = result.setting["tokens"]
    assert 2 * weights * tokens < done < 2 * (weights + sum(p.numel() for p in view.model.parameters())) * tokens * 2


def test_a_shape_at_its_true_size_needs_a_gpu(capsys):
    with pytest.raises(SystemExit) as ended:
        everything.main(["--shape", "llava-1.5-13b"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "26.70 GB in bfloat16" in said and "--device cuda" in said


def test_a_ratio_is_the_median_of_neighbouring_ratios():
    r = timing.ratio({"a": [2.0, 4.0, 40.0], "b": [1.0, 2.0, 4.0]}, "a", "b", 3.0)
    assert (r.value, str(r)) == (2.0, "a / b 2x")

"""Time by operations and bytes: what is counted of a block is what it does, and a plan computes without weights."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from eval_suite.speed.plan import Measured
from eval_suite.speed.timing import conflicts
from factory.cli import main
from factory.errors import UserError
from factory.model.facts import facts_of
from factory.model.load import load as load_model
from factory.model.prefix import at_last, extend, greedy, prefill
from factory.model.source import Wanted
from factory.recipe import load, loads
from factory.run.plan.blocks import Sizes
from factory.run.plan.computed import ByFormula, compute
from factory.run.plan.devices import DEVICES, Device
from factory.run.plan.estimate import estimate
from factory.run.plan.processor import Yardstick, processor
from factory.run.plan.standin import Computed, stand_in
from tests.tiny import fresh_view, saved_tiny, tiny_view


class Launched(TorchDispatchMode):
    """How many operations run."""

    times = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.times += 1
        return function(*args, **(kwargs or {}))


ANY = Device("any", {"float32": 1e6}, 1e6, 1e9, "a test", 1.0, 1.0, 0.0, waits=True)
COUNTS = replace(ANY, products={"float32": 1.0}, bandwidth=math.inf)  # a second is an operation
RECIPE = """\
name: small
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 3, dev: 1, test: 2}}}}
diagnostic: {{type: mcr, draws: 2}}
collect: {{batch_size: 24}}
steering: [none, instruction, static, {{type: l2s, net: {{epochs: 3}}}}]
evaluate: {{strengths: [0.5, 1], batch_size: 16, max_new_tokens: 4}}
report: {{plots: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def weightless(folder, tmp_path_factory):
    there = tmp_path_factory.mktemp("weightless") / "model"
    shutil.copytree(folder, there, ignore=shutil.ignore_patterns("*.safetensors"))
    return there


def recipe_of(folder, tmp_path, *overrides):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return load(path, overrides)


def test_a_block_s_operations_are_those_that_torch_counts():
    view = fresh_view()
    view.text_config._attn_implementation = "eager"
    sizes = Sizes.of(facts_of(view.model, view.family, torch.float32))
    batch = view.encode(conflicts(3))
    rows, tokens = batch.input_ids.shape
    with torch.no_grad(), FlopCounterMode(display=False) as whole:
        _, prefix = prefill(view, batch)
    with torch.no_grad(), FlopCounterMode(display=False) as one:
        token = torch.ones(rows, 1, dtype=torch.long)
        extend(view, prefix.fork(), token, token, token * 8, generated=True)
    blocks = whole.get_flop_counts()
    own = sum(sum(n.values()) for name, n in blocks.items() if name.split(".")[-2:-1] == ["layers"])
    assert sizes.prompts(COUNTS, rows, tokens) == pytest.approx(own, rel=0.02)
    after = sum(sum(n.values()) for name, n in one.get_flop_counts().items() if name.split(".")[-2:-1] == ["layers"])
    assert sizes.depth * sizes.block(COUNTS, rows, 1, tokens + 1) == pytest.approx(after, rel=0.02)


def test_seconds_are_those_of_the_slower_of_products_and_weights_then_of_values_and_calls():
    device = Device("d", {"float32": 10.0}, 5.0, 1e9, "a test", 0.5, 0.2, call=3.0)
    assert device.seconds(100, 7, 0, "float32") == max(100 / 5, 7 / 1)
    assert device.seconds(10, 70, 4, "float32") == 70 + 4
    assert device.seconds(1, 1, 0, "float32", calls=2) == 6
    assert replace(device, waits=True).seconds(10, 1, 0, "float32", calls=2) == 2 + 6
    with pytest.raises(UserError, match="no figure for int8"):
        device.seconds(1, 1, 1, "int8")


def test_the_clock_goes_by_what_the_device_takes_in_blocks_and_tower():
    view, slow = tiny_view(), replace(ANY, products={"float32": math.inf}, bandwidth=math.inf, call=100.0)
    clock = Computed(slow, Sizes.of(facts_of(view.model, view.family, torch.float32)))
    batch, before = view.encode(conflicts(2)), clock()
    with torch.no_grad(), clock.watching(view):
        _, prefix = prefill(view, batch)
        token = torch.ones(2, 1, dtype=torch.long)
        extend(view, prefix, token, token, token * 8, generated=True)
    assert clock.computed == 100.0 * (2 * view.depth + 1)
    assert clock() - before == pytest.approx(clock.computed, abs=5.0)
    prefill(view, batch)
    assert clock.computed == 100.0 * (2 * view.depth + 1)


def test_a_backward_pass_through_blocks_is_computed_too():
    view, slow = tiny_view(), replace(ANY, products={"float32": math.inf}, bandwidth=math.inf, call=100.0)
    clock, batch = Computed(slow, Sizes.of(facts_of(view.model, view.family, torch.float32))), view.encode(conflicts(1))
    embedded = view.model.get_input_embeddings()(batch.input_ids).detach().requires_grad_()
    with clock.watching(view, learns=0.5):
        view.decoder(inputs_embeds=embedded, attention_mask=batch.attention_mask).last_hidden_state.sum().backward()
    assert embedded.grad is not None
    assert clock.computed == pytest.approx(100.0 * view.depth * 2)
    sizes, given = clock.sizes, (COUNTS, 2, 3, 4.0)
    assert sizes.backward(*given, learns=0.5) == pytest.approx(2 * sizes.block(*given))


def test_a_block_s_backward_pass_launches_about_as_many_kernels_as_its_forward_pass():
    view = tiny_view()
    yardstick = Yardstick(Sizes.of(facts_of(view.model, view.family, torch.float32)), 2)
    yardstick.layer.requires_grad_(False)
    yardstick.states.requires_grad_(True)
    with Launched() as forward:
        out = yardstick.run(2, 5)
    with Launched() as backward:
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    assert backward.times == pytest.approx(forward.times, rel=0.2)


def test_the_processor_is_measured_and_the_others_are_assumed():
    view = tiny_view()
    here = processor(Sizes.of(facts_of(view.model, view.family, torch.float32)), 256)
    assert here.measured and 0 < here.product_share <= 1 and 0 < here.memory_share <= 1 and here.call > 0
    assert "measured here" in here.told("float32") and "assumed" in DEVICES["h100"].told("bfloat16")


def test_a_plan_computes_the_time_of_every_stage_without_weights(weightless, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(weightless, tmp_path)
    assert main(["plan", "small.yaml", "--device", "cpu"]) == 2
    said, error = capsys.readouterr()
    assert "model.safetensors" in error and "computed, not measured: cpu" in said and "random weights" in said
    found = estimate(recipe)
    computed = compute(recipe, found, "cpu", Wanted.of(recipe.model), waited=50.0)
    assert computed.whole and all(computed.time.of(s) > 0 for s in found.stages)
    assert computed.time.of(found.stages[0]) > 50
    assert main(["plan", "small.yaml", "--device", "h10"]) == 2
    assert "--device h10: no figures are known of it. Did you mean h100?" in capsys.readouterr().err


def test_of_a_model_that_is_nowhere_sizes_and_counts_alone_tell_the_time(tmp_path, capsys, monkeypatch):
    """Whatever bounds a device, twice of it halves the time where nothing else is in the way."""
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "amps_llava13b", "--device", "h100"]) == 2
    said = capsys.readouterr().out
    assert "computed, not measured: h100: 50% of 989 TFLOPS" in said and "from sizes and counts alone" in said
    recipe = load(Path(__file__).parents[2] / "recipes/amps_llava13b.yaml")
    found = estimate(recipe)
    sizes, free = Sizes.of(found.model), replace(DEVICES["h100"], call=0.0)
    test = next(s for s in found.stages if s.name == "test")

    def seconds(device):
        return ByFormula(device, sizes, recipe, {m.label: m for m in found.methods}, *found.tokens).of(test)

    twice = replace(free, products={"bfloat16": 2 * 989.4e12}, bandwidth=2 * 3.35e12)
    assert seconds(free) == pytest.approx(2 * seconds(twice))
    assert seconds(DEVICES["rtx4090"]) > seconds(DEVICES["a100"]) > seconds(DEVICES["h100"]) >= seconds(DEVICES["h200"])
    silent = replace(test, tokens=0)
    formula = ByFormula(free, sizes, recipe, {m.label: m for m in found.methods}, *found.tokens)
    products = 2 * found.tokens[0] * found.model.linear * silent.passes / (0.5 * 989.4e12)
    assert products < formula.of(silent) < 1.6 * products


def test_a_stand_in_has_the_sizes_and_not_the_weights(folder, weightless, tmp_path):
    model = Wanted.of(recipe_of(weightless, tmp_path).model)
    one, other, real = stand_in(model), stand_in(model), tiny_view()
    assert sum(p.numel() for p in one.model.parameters()) == sum(p.numel() for p in real.model.parameters())
    assert torch.equal(one.unembed.weight, other.unembed.weight)
    assert not torch.equal(one.unembed.weight, real.unembed.weight) and one.layer == 1
    with pytest.raises(UserError, match="parts"):
        stand_in(Wanted.of(recipe_of(folder, tmp_path, "model={zoo: smol}").model))


def test_a_stand_in_answers_as_long_as_its_card_says_and_else_as_long_as_it_may(weightless, tmp_path):
    view = stand_in(Wanted.of(recipe_of(weightless, tmp_path).model))
    batch = view.encode(conflicts(3))

    def answers(most):
        with torch.no_grad():
            hidden, prefix = prefill(view, batch)
            return greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), most)

    assert view.answer_tokens is None and answers(5).shape == (3, 5)
    for n in (2, 3):
        view.answer_tokens = n
        told = answers(5)
        assert told.shape == (3, n) and (told[:, -1] == view.end_ids[0]).all() and answers(1).shape == (3, 1)


@pytest.mark.parametrize("name", ["tiny", "tiny2"])
def test_a_card_s_answer_tokens_are_those_of_its_model_s_longest_answer(name):
    recipe = loads(f"{{name: asked, model: {{zoo: {name}}}, data: {{type: scenes, scoring: open_ended}}}}")
    view, benchmark = load_model(recipe.model), recipe.data.make()
    asked = [benchmark.prompt(s, benchmark.forms[0]) for s in benchmark.samples("dev")[::8]]
    batch = view.encode(asked)
    with torch.no_grad():
        hidden, prefix = prefill(view, batch)
        told = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), 12)
    assert told.shape[1] == stand_in(Wanted.of(recipe.model)).answer_tokens


@pytest.mark.slow
def test_computed_time_is_near_the_run_s(weightless, folder, tmp_path):
    """In processor time, which other programs touch little; the bound is wide for machines where they do."""
    told, run = recipe_of(weightless, tmp_path), recipe_of(folder, tmp_path)
    found = estimate(told)
    computed = compute(told, found, "cpu", Wanted.of(told.model))
    of = [s for s in found.stages if s.name not in ("check", "report")]
    took = Measured(run, None, time.process_time).seconds
    assert sum(map(computed.time.of, of)) == pytest.approx(sum(took[s.name] for s in of), rel=0.5)

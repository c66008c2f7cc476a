"""A tuning that goes on from an earlier one's values, from a folder of this project's or of PEFT's."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from factory.cli import main
from tests.tiny import saved_tiny

STILL = "tune.learning_rate=1e-12"  # a step that moves nothing


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A recipe, and the finished run of its first tuning."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "tune.yaml").write_text(
        f"name: first\nmodel: {{path: {saved_tiny(folder / 'model')}}}\ntune: {{tuner: {{type: lora, rank: 2}},"
        f" batch_size: 4, learning_rate: 0.01, warmup: 0, data: {{lessons: scenes, take: 8}}}}\n"
        f"run: {{root: {folder / 'runs'}}}\n"
    )
    assert main([str(folder / "tune.yaml")]) == 0
    return folder


def on(begun, initial, *words, name="second"):
    shutil.rmtree(begun / "runs" / name, ignore_errors=True)
    return main([str(begun / "tune.yaml"), f"name={name}", f"tune.initial={initial}", "tune.steps=1", *words])


def tuned(begun, name):
    return load_file(begun / "runs" / name / "tuned" / "tuner.safetensors")


@pytest.mark.parametrize("within", ["", "tuned"])
def test_it_begins_with_the_values_of_a_finished_run(begun, within):
    assert on(begun, begun / "runs" / "first" / within, STILL) == 0
    first, second = tuned(begun, "first"), tuned(begun, "second")
    assert first.keys() == second.keys() and any("multi_modal_projector" in name for name in first)
    assert all(torch.allclose(first[name], second[name], atol=1e-7) for name in first)
    assert any(first[name].abs().max() > 1e-3 for name in first if "lora_B" in name), (
        "the first run moved what was zero"
    )
    inputs = json.loads((begun / "runs" / "second" / "tune" / "inputs.json").read_text())
    assert "initial" in json.dumps(inputs)


def test_it_goes_on_training_from_there(begun):
    assert on(begun, begun / "runs" / "first", name="third") == 0
    first, third = tuned(begun, "first"), tuned(begun, "third")
    moved = {name: float((third[name] - first[name]).abs().max()) for name in first}
    assert 0 < max(moved.values()) < 0.05


@pytest.mark.parametrize("dora", [False, True])
def test_it_begins_with_an_adapter_that_peft_has_saved(begun, tmp_path, dora):
    """Written by PEFT alone, its connector among the modules to save."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(begun / "model")
    places = [
        name
        for name, module in model.named_modules()
        if "language_model" in name and isinstance(module, torch.nn.Linear)
    ]
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=places, modules_to_save=["multi_modal_projector"], use_dora=dora
    )
    theirs = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    theirs.save_pretrained(str(tmp_path))
    variant = "tune.tuner.variant=dora" if dora else "tune.tuner.variant=plain"
    assert on(begun, tmp_path, STILL, variant, name="peft") == 0
    saved, ours = load_file(tmp_path / "adapter_model.safetensors"), tuned(begun, "peft")
    assert len(saved) == len(ours)
    for name, values in ours.items():
        key = f"base_model.model.{name.replace('.default', '')}"
        assert torch.allclose(values, saved.get(key, saved.get(key.removesuffix(".weight"))), atol=1e-7), name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tune.tuner={type: lora, rank: 3}"], "was trained with rank 2, and here it is 3"),
        (["tune.tuner={type: lora, rank: 2, alpha: 9}"], "was trained with alpha None, and here it is 9"),
        (["tune.tuner=ia3"], "holds tuner 'lora', and tune.tuner is 'ia3'"),
        (["tune.beside=[]"], "is not trained here; add connector to tune.beside"),
        (["tune.initial=NOWHERE"], "tune.initial: NOWHERE holds no trained part; give a finished tuning run"),
        (["model={zoo: tiny}"], "made for another base model"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(begun, capsys, words, told):
    assert on(begun, begun / "runs" / "first", *words, name="refused") == 2
    said = capsys.readouterr().err
    assert told in said.splitlines()[-1] and "Traceback" not in said
    if "base model" not in told:  # which only its weights tell
        assert main(["plan", str(begun / "tune.yaml"), f"tune.initial={begun / 'runs' / 'first'}", *words]) == 2
        assert told in capsys.readouterr().err


def test_peft_methods_settings_are_compared(begun, tmp_path, capsys):
    assert main(["export", str(begun / "runs" / "first"), str(tmp_path / "adapter"), "adapter"]) == 0
    assert on(begun, tmp_path / "adapter", STILL, name="exported") == 0
    first, again = tuned(begun, "first"), tuned(begun, "exported")
    assert all(torch.allclose(first[name], again[name], atol=1e-7) for name in first)
    capsys.readouterr()
    assert on(begun, tmp_path / "adapter", "tune.tuner={type: lora, rank: 2, alpha: 8}", name="other") == 2
    assert "was trained with lora_alpha 4, and here it is 8" in capsys.readouterr().err
    assert on(begun, tmp_path / "adapter", "tune.tuner=mores", name="other") == 2
    assert "tuner 'mores' is not one of PEFT's" in capsys.readouterr().err

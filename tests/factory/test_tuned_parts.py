"""Trained parts are accounted for by their headers, before a weight of the model is read."""

from __future__ import annotations

import re

import pytest
import torch

from factory import files, tune
from factory.errors import UserError
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.registry import available, lookup
from tests.tiny import saved_tiny


@pytest.mark.parametrize("name", sorted(entry.name for entry in available("tuner")))
def test_a_part_that_lacks_a_tensor_or_holds_another_is_refused_by_name(name, tmp_path):
    model = saved_tiny(tmp_path / "model")
    view = load(ModelSpec(path=model))
    tuner = lookup("tuner", name)(lookup("tuner", name).Params())
    tuner.apply(view, ("connector",))
    folder = tune.save(tmp_path / "tuned", tuner, view)
    kept, manifest = files.read_safetensors(folder / "tuner.safetensors"), folder / "tuner_config.json"
    first = min(kept)
    weights = model / "model.safetensors"
    broken = bytearray(weights.read_bytes())
    broken[-64:] = b"\xff" * 64  # NaN: a model that is read all the same would fail its self-check
    weights.write_bytes(broken)
    for changed, said in (
        ({n: t for n, t in kept.items() if n != first}, f"{first} is missing"),
        ({**kept, first: torch.zeros(7, 7, 7)}, rf"{first} is \(7, 7, 7\), not \("),
        ({**kept, "stray": torch.zeros(1)}, "stray is unknown"),
    ):
        files.write_safetensors(folder / "tuner.safetensors", changed)
        files.write_json(manifest, {**files.read_json(manifest), "sha256": None})
        with pytest.raises(
            UserError, match=rf"tuner\.safetensors: tuner '{name}'.*{said}".replace(first, re.escape(first))
        ):
            load(ModelSpec(path=model, tuned=(str(folder),)))

"""Code that comes with a checkpoint is never run, and no question about it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from factory.errors import UserError
from factory.model.load import load
from factory.model.source import find
from factory.recipe.schema import ModelSpec
from tests.compose import encoder, llm
from tests.tiny import saved_tiny, tiny_tokenizer
from tests.tiny_families import family_view

OWN = "raise SystemExit('code of a checkpoint was run')\n"


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    def asked(*_: Any) -> str:
        raise AssertionError("a question was asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def naming_code(folder: Path) -> Path:
    """The folder with code of its own named in each of its files, as repositories on the hub have it."""
    (folder / "own.py").write_text(OWN)
    change(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"})
    for path in folder.glob("*processor_config.json"):
        change(path, auto_map={"AutoProcessor": "own.Processor", "AutoImageProcessor": "own.Pixels"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})
    return folder


def test_a_known_model_is_loaded_without_the_code_beside_it(tmp_path):
    assert load(ModelSpec(path=str(naming_code(saved_tiny(tmp_path))))).depth == 3


@pytest.mark.parametrize("name", ["qwen2_vl", "structural", "gemma3"])
def test_so_are_those_whose_processors_are_found_by_name(name, tmp_path):
    view = family_view(name)
    view.model.save_pretrained(tmp_path)
    view.processor.save_pretrained(tmp_path)
    assert load(ModelSpec(path=str(naming_code(tmp_path)))).depth == 3


def test_a_model_that_needs_its_own_code_is_refused_in_a_line(tmp_path):
    change(naming_code(saved_tiny(tmp_path)) / "config.json", model_type="internvl_chat")
    with pytest.raises(UserError, match="'internvl_chat' needs code that comes with it .auto_map.*never run") as error:
        find(ModelSpec(path=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_tokenizer_or_image_processor_of_its_own_is_refused_in_a_line(tmp_path):
    view = family_view("qwen2_vl")
    view.model.save_pretrained(tmp_path)
    view.processor.save_pretrained(tmp_path)
    change(naming_code(tmp_path) / "preprocessor_config.json", image_processor_type="OwnPixels")
    with pytest.raises(UserError, match="its processor cannot be loaded: .*custom code") as error:
        load(ModelSpec(path=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_part_that_needs_its_own_code_is_refused_in_a_line(tmp_path):
    AutoModelForCausalLM.from_config(LlamaConfig(**llm()["config"])).save_pretrained(tmp_path)
    tiny_tokenizer(400).save_pretrained(tmp_path)
    naming_code(tmp_path)
    node = {"vision_encoder": encoder(), "connector": "linear", "llm": {"type": "llama", "source": str(tmp_path)}}
    assert load(ModelSpec(compose=node)).depth == 3
    change(tmp_path / "config.json", model_type="own_llama")
    with pytest.raises(UserError, match="its configuration cannot be read: .*custom code") as error:
        find(ModelSpec(compose=node))
    assert "\n" not in str(error.value)

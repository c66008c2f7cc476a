"""Weights are accounted for by their headers: what is missing, unknown or misshapen is refused by name, in every way to
load.

The right names are the class's own state; what it ties, and what it keeps no value of, need not be there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CLIPConfig, CLIPModel, LlamaConfig

from factory.errors import UserError
from factory.model.load import lacking, load, sizes
from factory.model.source import Wanted, find
from factory.model.stored import Tensors, account, held, weight_files
from factory.recipe.schema import ModelSpec
from tests.compose import VIT, llm
from tests.tiny import saved_tiny, tiny_tokenizer
from tests.tiny_families import BUILDERS, family_view

Tensor = torch.Tensor
AT_ONCE = 3  # a refusal names as many


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    for path in whole.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The folder with other tensors in its weight file."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    path.unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    return folder


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name: t for name, t in tensors.items() if name not in names}


def refusal(spec: ModelSpec | Path) -> str:
    with pytest.raises(UserError) as error:
        find(spec if isinstance(spec, ModelSpec) else ModelSpec(path=str(spec)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_any_tensor_that_the_class_does_not_tie_is_missed_by_name(name):
    view = family_view(name)
    cls, config, state = type(view.model), view.model.config, view.model.state_dict()
    tied = {side for pair in view.model.all_tied_weights_keys.items() for side in pair}
    shapes = {key: tuple(t.shape) for key, t in state.items()}
    whole = Tensors(shapes, frozenset(), 0)
    account(cls, config, whole, "here")
    needed = [key for key in shapes if key not in tied]
    for at in range(0, len(needed), AT_ONCE):
        lost = needed[at : at + AT_ONCE]
        with pytest.raises(UserError) as error:
            account(cls, config, replace(whole, shapes={k: s for k, s in shapes.items() if k not in lost}), "here")
        assert f"{len(lost)} tensor" in str(error.value) and all(key in str(error.value) for key in lost)
    for key in tied:
        account(cls, config, replace(whole, shapes={k: s for k, s in shapes.items() if k != key}), "here")
    if tied:
        with pytest.raises(UserError, match="2 tensors are missing"):
            account(cls, config, replace(whole, shapes={k: s for k, s in shapes.items() if k not in tied}), "here")


Q, HEAD = "language_model.model.layers.1.self_attn.q_proj.weight", "language_model.model.embed_tokens.weight"
PROJECTOR = [f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")]
FOLDERS = {
    "a matrix": (without(Q), f"1 tensor is missing ({Q})"),
    "the embedding": (without(HEAD), f"2 tensors are missing (language_model.lm_head.weight, {HEAD})"),
    "a part": (without(*PROJECTOR), f"4 tensors are missing ({', '.join(PROJECTOR[:3])}, and 1 more)"),
    "one too many": (lambda ts: ts | {"model.adapter.A": torch.ones(2)}, "1 tensor is unknown to it (model.adapter.A)"),
    "another width": (
        lambda ts: ts | {Q: torch.ones(48, 40)},
        f"1 tensor has another shape ({Q}: [48, 40] in the file, [48, 48] by config.json)",
    ),
    "integers": (lambda ts: ts | {Q: ts[Q].to(torch.int8)}, f"1 tensor is stored as integers ({Q})"),
    "a prefix": (
        lambda ts: {f"module.{name}": t for name, t in ts.items()},
        "stand under the prefix 'module.', which it does not know",
    ),
    "two prefixes": (
        lambda ts: {f"_orig_mod.module.{name}": t for name, t in ts.items()},
        "stand under the prefix '_orig_mod.module.', which it does not know",
    ),
    "another model": (lambda ts: {"a.b": torch.ones(1)}, "more); 1 tensor is unknown to it (a.b)"),
}


@pytest.mark.parametrize("change, said", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_with_other_tensors_is_refused_by_name(folder, change, said):
    assert said in refusal(rewrite(folder, change)) and str(folder) in refusal(folder)


def test_what_a_class_does_not_keep_may_be_there(folder, whole):
    old = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "vision_tower.embeddings.position_ids": torch.arange(17)[None],
    }
    assert find(ModelSpec(path=str(rewrite(folder, lambda tensors: tensors | old)))).bytes
    tied = load_file(whole / "model.safetensors")[HEAD]
    assert find(
        ModelSpec(path=str(rewrite(folder, lambda tensors: tensors | {"language_model.lm_head.weight": tied.clone()})))
    ).bytes


@pytest.mark.parametrize("keys", [{"quantize": "4bit"}, {"device_map": "auto"}, {"dtype": "bfloat16"}], ids=str)
def test_it_is_refused_however_it_is_loaded(folder, keys):
    rewrite(folder, without(Q))
    with pytest.raises(UserError, match=f"1 tensor is missing .{Q}"):
        load(ModelSpec(path=str(folder), **keys))


def test_it_is_refused_before_ranks_cut_it(folder):
    rewrite(folder, without(Q))
    with pytest.raises(UserError, match=f"1 tensor is missing .{Q}"):
        load(ModelSpec(path=str(folder)), zero=3)


def test_it_is_refused_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--lab--model" / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--lab--model" / "refs").mkdir()
    (tmp_path / "models--lab--model" / "refs" / "main").write_text("1234")
    rewrite(saved_tiny(snapshot), without(Q))
    assert f"1 tensor is missing ({Q})" in refusal(ModelSpec(hub="lab/model"))


@pytest.fixture
def parts(tmp_path: Path) -> dict:
    """A composed model whose encoder is a part of a larger model, as CLIP's is on the hub."""
    CLIPModel(CLIPConfig(vision_config=VIT, text_config=VIT | {"vocab_size": 40})).save_pretrained(tmp_path / "clip")
    AutoModelForCausalLM.from_config(LlamaConfig(**llm()["config"])).save_pretrained(tmp_path / "llm")
    tiny_tokenizer(400).save_pretrained(tmp_path / "llm")
    return {
        "vision_encoder": {"type": "clip", "source": str(tmp_path / "clip")},
        "connector": "linear",
        "llm": {"type": "llama", "source": str(tmp_path / "llm")},
    }


def test_the_parts_of_a_composed_model_are_accounted_for(parts, tmp_path):
    assert load(ModelSpec(compose=parts)).depth == 3
    rewrite(tmp_path / "llm", without("lm_head.weight"))
    assert "llm: its weights are not those of LlamaForCausalLM: 1 tensor is missing (lm_head.weight)" in refusal(
        ModelSpec(compose=parts)
    )


def test_sizes_that_stand_in_for_a_part_serve_in_plans_alone(parts):
    parts["llm"] |= llm(num_hidden_layers=5)
    model = Wanted.of(ModelSpec(compose=parts))
    for _ in range(2):
        view = sizes(model)
        assert view.depth == 5 and not lacking(model)
        view.model.config.text_config.num_hidden_layers = 4  # a view's own
        assert find(model).config.text_config.num_hidden_layers == 3
    assert load(model).depth == 3


def test_a_part_of_a_larger_model_has_to_be_whole(parts, tmp_path):
    lost = "vision_model.encoder.layers.1.mlp.fc1.weight"
    rewrite(tmp_path / "clip", without(lost))
    assert f"not those of CLIPVisionModel: 1 tensor is missing ({lost})" in refusal(ModelSpec(compose=parts))


def test_a_part_in_pytorchs_own_files_is_accounted_for_too(parts, tmp_path):
    tensors = load_file(tmp_path / "llm" / "model.safetensors")
    (tmp_path / "llm" / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "llm" / "pytorch_model.bin")
    assert load(ModelSpec(compose=parts)).depth == 3
    torch.save(without("model.norm.weight")(tensors), tmp_path / "llm" / "pytorch_model.bin")
    assert "1 tensor is missing (model.norm.weight)" in refusal(ModelSpec(compose=parts))
    (tmp_path / "llm" / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no archive")
    assert "pytorch_model.bin: damaged or cut short" in refusal(ModelSpec(compose=parts))


def test_weights_that_are_packed_already_are_accounted_for_by_module(whole, tmp_path):
    """Of a matrix in 4 bits only its library knows the tensors; a matrix without any is missed."""
    packed = load(ModelSpec(path=str(whole), quantize="4bit"))
    packed.model.save_pretrained(tmp_path)
    packed.processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    again = load(ModelSpec(path=str(tmp_path)))
    assert again.model.is_quantized and isinstance(packed.model.config.quantization_config, BitsAndBytesConfig)
    rewrite(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(Q)})
    assert refusal(tmp_path).endswith(f"1 tensor is missing ({Q})")


def test_only_headers_are_read(folder, monkeypatch):
    """Nothing but a file's first bytes, its size and its configuration is opened to refuse it."""
    rewrite(folder, without(Q))
    monkeypatch.setattr("safetensors.safe_open", None)
    monkeypatch.setattr("torch.UntypedStorage.from_file", None)
    assert Q in refusal(folder)


def index(folder: Path, names: dict[str, str]) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def move(folder: Path, name: str, text: str | bytes) -> Path:
    """The folder with other content in a file."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4925\n"
DAMAGE = {
    "a pointer for weights": (
        lambda f: move(f, "model.safetensors", LFS),
        r"model\.safetensors: a Git LFS pointer.*git lfs pull",
    ),
    "a pointer for the tokenizer": (lambda f: move(f, "tokenizer.json", LFS), r"tokenizer\.json: a Git LFS pointer"),
    "a pointer for the configuration": (lambda f: move(f, "config.json", LFS), r"config\.json: .*a Git LFS pointer"),
    "no model_type": (lambda f: move(f, "config.json", "{}"), r"config\.json: names no model_type"),
    "a list for a configuration": (lambda f: move(f, "config.json", "[1]"), r"config\.json: names no model_type"),
    "a number for a part": (
        lambda f: move(f, "config.json", '{"model_type": "llava", "text_config": 3}'),
        r"config\.json",
    ),
    "a word for a size": (
        lambda f: move(f, "config.json", '{"model_type": "llava", "text_config": {"hidden_size": "wide"}}'),
        r"config\.json",
    ),
    "an unknown model": (
        lambda f: move(f, "config.json", '{"model_type": "nothing"}'),
        r"config\.json: cannot be read",
    ),
    "an index without a map": (lambda f: move(f, "model.safetensors.index.json", "{}"), r"index\.json: damaged"),
    "an index of numbers": (lambda f: index(f, {"a": 3}), r"index\.json: damaged"),
    "a list for an index": (lambda f: move(f, "model.safetensors.index.json", "[]"), r"index\.json: damaged"),
    "a shard too few": (lambda f: index(f, {"a": "model-1.safetensors"}), r"model-1\.safetensors is missing"),
    "weights twice": (lambda f: index(twice(f), {"a": "other.safetensors"}), "holds its weights twice"),
    "a list for a header": (
        lambda f: move(f, "model.safetensors", b"\x02" + b"\0" * 7 + b"[]"),
        r"model\.safetensors: damaged",
    ),
    "a header without places": (
        lambda f: move(f, "model.safetensors", b"\x0b" + b"\0" * 7 + b'{"a": null}'),
        r"model\.safetensors: damaged",
    ),
    "pickles alone": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "PyTorch files"),
    "an adapter beside": (lambda f: move(f, "adapter_config.json", "{}"), "holds a PEFT adapter"),
    "a tokenizer of numbers": (lambda f: move(f, "tokenizer.json", "[3]"), "its processor cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "a processor of numbers": (lambda f: move(f, "processor_config.json", "[3]"), "its processor cannot be loaded"),
}


def twice(folder: Path) -> Path:
    (folder / "other.safetensors").symlink_to((folder / "model.safetensors").resolve())
    return folder


@pytest.mark.parametrize("damage, said", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_told_in_a_line(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said) as error:
        load(ModelSpec(path=str(folder)))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_shards_are_one_set_of_tensors(whole, tmp_path):
    view = load(ModelSpec(path=str(whole)))
    view.model.save_pretrained(tmp_path, max_shard_size="60KB")
    files = weight_files(tmp_path)
    assert len(files) > 3 and held(files).shapes == held(weight_files(whole)).shapes
    assert find(ModelSpec(path=str(tmp_path))).bytes == sum(path.stat().st_size for path in files)
    files[1].unlink()
    assert f"{files[1].name} is missing" in refusal(tmp_path)

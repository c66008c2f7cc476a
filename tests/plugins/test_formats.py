"""Steering vectors in other tools' files: read back by the layout's own rule, and by the tools that are at hand."""

from __future__ import annotations

import json
import struct
import warnings
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from factory.cli import main
from factory.errors import UserError
from factory.registry import available, lookup
from factory.steer import Steering, artefact, steer
from factory.steer.base import Context
from factory.steer.where import Where
from tests.tiny import conflict_prompts, saved_tiny, shown, tiny_view
from tests.tiny_families import BUILDERS, family_view

READ = ("gguf", "svec", "beft")
STRENGTH = 0.7


def made(name):
    cls = lookup("format", name)
    return cls(cls.Params())


def vector(width=48, seed=0):
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def static(layer=1, strength=STRENGTH, width=48, **where):
    cls = lookup("steering", "static")
    return Steering(cls(cls.Params()), {"v": vector(width)}, Where(layer=layer, **where), strength)


def hooked(model, layers, added, batch):
    """Logits of a plain forward with ``added`` {block: vector} at the blocks' outputs."""
    handles = [
        layers[block].register_forward_hook(lambda module, args, output, v=v: output + v) for block, v in added.items()
    ]
    with torch.no_grad():
        logits = model(**batch).logits
    for handle in handles:
        handle.remove()
    return logits[batch["attention_mask"].bool()]


def gguf_by_numpy(path):
    """Keys and tensors of a GGUF file of version 3, by the layout's own description."""
    data, at = path.read_bytes(), 0

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at].decode()

    assert data[:4] == b"GGUF"
    at = 4
    version, tensors, keys = take("I"), take("Q"), take("Q")
    assert version == 3
    found = {}
    for _ in range(keys):
        key, kind = text(), take("I")
        found[key] = text() if kind == 8 else take({4: "I", 6: "f", 10: "Q", 12: "d"}[kind])
    infos = []
    for _ in range(tensors):
        name, dims = text(), [take("Q") for _ in range(take("I"))]
        infos.append((name, dims, take("I"), take("Q")))
    align = found.get("general.alignment", 32)
    start = -(-at // align) * align
    assert all(kind == 0 for _, _, kind, _ in infos), "float32 is type 0"
    return found, {
        name: np.frombuffer(data, "<f4", int(np.prod(dims)), start + offset) for name, dims, _, offset in infos
    }


def test_a_gguf_file_steers_by_llama_cpps_rule(tmp_path):
    """direction.N is added to the output of the 0-based block N, times the scale, at all positions."""
    view = tiny_view()
    line = made("gguf").write(tmp_path / "v.gguf", [static()], view)
    keys, tensors = gguf_by_numpy(tmp_path / "v.gguf")
    assert keys["general.architecture"] == "controlvector" and keys["controlvector.layer_count"] == 1
    assert keys["controlvector.model_hint"] == "llama", "of a LLaVA it is the language model's"
    assert list(tensors) == ["direction.1"] and tensors["direction.1"].tobytes() == vector().numpy().tobytes()
    batch = view.encode(conflict_prompts(2))
    scale = float(line.rpartition(":")[2])
    expected = hooked(view.model, view.layers, {1: scale * torch.tensor(tensors["direction.1"])}, batch)
    off_by_one = hooked(view.model, view.layers, {0: scale * torch.tensor(tensors["direction.1"])}, batch)
    with torch.no_grad(), steer(view, static()):
        ours = view.model(**batch).logits[batch.attention_mask.bool()]
    assert torch.allclose(ours, expected, atol=1e-5) and not torch.allclose(ours, off_by_one, atol=1e-2)


@pytest.mark.parametrize("name", READ)
def test_what_was_written_is_read_to_the_bit(name, tmp_path):
    view = tiny_view()
    made(name).write(tmp_path / "v", [static()], view)
    [back] = made(name).read(tmp_path / "v", view)
    times = {"gguf": STRENGTH, "svec": 1.0, "beft": 1.0}[name]
    kept = STRENGTH * vector() if name == "beft" else vector()
    assert back.layer == 1 and back.strength == times and torch.equal(back.state["v"], kept)


def test_peft_alone_steers_by_the_adapter(tmp_path):
    view = tiny_view()
    made("beft").write(tmp_path / "v", [static()], view)
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad(), steer(view, static()):
        ours = view.model(**batch).logits[batch.attention_mask.bool()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT tells that a map without a bias cannot be merged
        peft = PeftModel.from_pretrained(deepcopy(view.model), str(tmp_path / "v"))
    with torch.no_grad():
        theirs = peft(**batch).logits[batch.attention_mask.bool()]
        with peft.disable_adapter():
            plain = peft(**batch).logits[batch.attention_mask.bool()]
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-2)


def test_a_baked_checkpoint_steers_in_plain_transformers(tmp_path):
    view = tiny_view()
    made("baked").write(tmp_path / "baked", [static()], view)
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad(), steer(view, static()):
        ours = view.model(**batch).logits[batch.attention_mask.bool()]
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "baked").eval()
    with torch.no_grad():
        theirs = plain(**batch).logits[batch.attention_mask.bool()]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert view.model.config.text_config.mlp_bias is False, "the model at hand is left as it was"
    with pytest.raises(UserError, match="holds something already"):
        made("baked").write(tmp_path / "baked", [static()], view)


def copied(model):
    """Built anew and given the weights: what a forward pass leaves beside them cannot be copied in each family."""
    other = type(model)(deepcopy(model.config)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_a_bias_carries_the_vector_or_is_refused_by_name(family, tmp_path):
    """Where a norm stands between a block's MLP and the residual stream no bias can; everywhere else PEFT's does."""
    view = family_view(family)
    steering = static(width=view.width)
    if family in ("gemma2", "gemma3", "gemma3_text", "glm4v", "glm46v"):
        with pytest.raises(UserError, match=r"block 1 .*(post_feedforward_layernorm|post_mlp_layernorm)"):
            made("beft").write(tmp_path / "v", [steering], view)
        return
    if family == "gpt2":  # of maps that PEFT's adapters do not know
        with pytest.raises(UserError, match=r"transformer\.h\.1\.mlp\.c_proj of GPT2LMHeadModel is a Conv1D; `baked`"):
            made("beft").write(tmp_path / "v", [steering], view)
        return
    made("beft").write(tmp_path / "v", [steering], view)
    batch = view.encode(shown(view, conflict_prompts(1)))
    with torch.no_grad(), steer(view, steering):
        ours = view.model(**batch).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = PeftModel.from_pretrained(copied(view.model), str(tmp_path / "v"))
    with torch.no_grad():
        assert torch.allclose(ours, peft(**batch).logits, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt"])
def test_a_text_model_is_baked_and_carried_as_a_control_vector(family, tmp_path):
    """Plain transformers and llama.cpp's rule, where its configuration has a place for the bias; else it is refused."""
    view = family_view(family)
    steering, batch = static(width=view.width), view.encode(shown(view, conflict_prompts(1)))
    with torch.no_grad(), steer(view, steering):
        ours = view.model(**batch).logits
    made("gguf").write(tmp_path / "v.gguf", [steering], view)
    fields, tensors = gguf_by_numpy(tmp_path / "v.gguf")
    assert fields["controlvector.model_hint"] == family and list(tensors) == ["direction.1"]
    if family == "qwen2":
        with pytest.raises(UserError, match="no switch for them; `beft` carries"):
            made("baked").write(tmp_path / "baked", [steering], view)
        return
    made("baked").write(tmp_path / "baked", [steering], view)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    with torch.no_grad():
        assert torch.allclose(ours, plain(**batch).logits, atol=1e-4)


def test_easysteers_specification_names_its_vector(tmp_path):
    made("easysteer").write(tmp_path / "v.json", [static()], tiny_view())
    [spec] = json.loads((tmp_path / "v.json").read_text())["vectors"]
    assert spec["source"] == "v.gguf" and spec["scale"] == STRENGTH and spec["layers"] == [1]
    assert spec["apply"] == {"prompt": "all", "generation": "all"} and spec["normalize"] is False
    assert list(gguf_by_numpy(tmp_path / "v.gguf")[1]) == ["direction.1"]


@pytest.mark.parametrize(
    "entry", [e for e in available("format") if e.name in (*READ, "baked", "lm_eval")], ids=lambda e: e.name
)
def test_what_no_file_can_say_is_refused(entry, tmp_path):
    class Reads(lookup("steering", "static")):
        name = "reads"

        def delta(self, h, state, ctx):
            return h

    view, form = tiny_view(), made(entry.name)
    for steering, told in [
        (static(role="image"), "--positions all"),
        (static(generated=False), "--positions all"),
        (Steering(Reads(Reads.Params()), {}, Where(layer=1), 1.0), "--mean"),
    ]:
        with pytest.raises(UserError, match=told):
            form.write(tmp_path / "v", [steering], view)
    assert not (tmp_path / "v").exists()


def test_llama_cpp_has_no_block_0(tmp_path):
    with pytest.raises(UserError, match="block 0"):
        made("gguf").write(tmp_path / "v.gguf", [static(layer=0)], tiny_view())


@pytest.mark.parametrize("name", ["gguf", "svec"])
def test_another_width_and_another_model_are_refused_with_both(name, tmp_path):
    other = family_view("qwen2_vl")
    made(name).write(tmp_path / "v", [static(width=other.width)], other)
    with pytest.raises(UserError, match=r"'qwen2_vl_text'.*'llama'"):
        made(name).read(tmp_path / "v", tiny_view())
    made(name).write(tmp_path / "w", [static()], view := tiny_view())
    wider = SimpleNamespace(width=64, depth=view.depth, text_config=view.text_config, model=view.model)
    with pytest.raises(UserError, match=r"\[48\].*64"):
        made(name).read(tmp_path / "w", wider)


RECIPE = """
name: short
model: {{path: {model}, layer: 1}}
data: {{type: scenes, per_task: {{train: 2, dev: 2, test: 1}}}}
steering: [{{type: l2s, net: {{epochs: 2}}}}, static]
evaluate: {{controls: [], directions: [vision], strengths: [1], max_new_tokens: 2, batch_size: 16}}
report: {{plots: false}}
run: {{root: {root}}}
"""


def test_the_commands_go_both_ways_and_tell_what_a_mean_costs(tmp_path, capsys):
    model = saved_tiny(tmp_path / "recipes" / "model")
    (tmp_path / "recipes" / "short.yaml").write_text(RECIPE.format(model="model", root="runs"))
    with pytest.MonkeyPatch.context() as patch:  # its paths are told from a folder that is not this one
        patch.chdir(tmp_path)
        assert main(["recipes/short.yaml", "--limit", "2"]) == 0
    kept, out = tmp_path / "runs" / "short-limit2" / "artefacts", tmp_path / "v.gguf"
    capsys.readouterr()
    assert main(["export", str(kept / "l2s-vision"), str(out), "gguf"]) == 2
    assert "--mean" in capsys.readouterr().err and not out.exists()
    assert main(["export", str(kept / "l2s-vision"), str(out), "gguf", "--mean", "--positions", "all"]) == 0
    told = capsys.readouterr().out
    assert told.count("dev samples") == 2 and "as written: follows" in told and "--control-vector-scaled" in told
    assert main(["import", str(out), str(tmp_path / "back"), "gguf", "--model", str(model)]) == 0
    view = tiny_view()
    back = artefact.load(tmp_path / "back" / "block-1", view)
    own = artefact.load(kept / "l2s-vision", view)
    chunks = sorted((kept.parent / "collect" / "chunks").glob("train-*.safetensors"))
    states = torch.cat([load_file(chunk)["base"] for chunk in chunks])
    assert torch.allclose(back.state["v"], own.steerer.delta(states, own.state, Context(1)).mean(0), atol=1e-6)
    assert main(["export", str(tmp_path / "back" / "block-1"), str(tmp_path / "w.svec"), "svec"]) == 2
    assert "--model" in capsys.readouterr().err
    back = [str(out), str(tmp_path / "again"), "gguf", "--model"]
    assert main(["import", *back, "some/model"]) == 2
    assert "some/model: its weights are not on this machine" in capsys.readouterr().err
    assert main(["import", *back, "tinny"]) == 2
    assert "no card of the zoo, no folder and no hub id OWNER/NAME. Did you mean tiny" in capsys.readouterr().err

"""lm-eval's vector files, read and written."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from factory.errors import UserError
from factory.registry import lookup
from factory.steer import Steering, steer
from factory.steer.where import Where
from tests.tiny import conflict_prompts, tiny_view

LM_EVAL = lookup("format", "lm_eval")(lookup("format", "lm_eval").Params())
read, write = LM_EVAL.read, LM_EVAL.write


def vector(seed=0):
    return torch.randn(48, generator=torch.Generator().manual_seed(seed))


def static(strength=2.0, **where):
    cls = lookup("steering", "static")
    return Steering(cls(cls.Params()), {"v": vector()}, Where(layer=1, **where), strength)


def logits(steerings):
    view = tiny_view()
    with torch.no_grad(), steer(view, steerings):
        return view.model(**view.encode(conflict_prompts(2))).logits


FILE = {
    "add": {
        "steering_vector": vector(),
        "steering_coefficient": 2.0,
        "action": "add",
        "bias": None,
        "head_index": None,
    },
    "clamp": {
        "steering_vector": vector(),
        "steering_coefficient": 3.0,
        "action": "clamp",
        "bias": vector(1),
        "head_index": None,
    },
}


@pytest.mark.parametrize("action", ["add", "clamp"])
def test_a_file_steers_as_its_formula_says(action, tmp_path):
    name, info = "language_model.layers.1", FILE[action]
    torch.save({name: info}, tmp_path / "v.pt")
    view, v = tiny_view(), info["steering_vector"]

    def by_hand(module, args, output):
        if action == "add":
            return output + 2.0 * v
        u = v / v.norm()
        acts = output - info["bias"]
        return acts + u * (3.0 - (acts * u).sum(-1, keepdim=True)) + info["bias"]

    batch = view.encode(conflict_prompts(2))
    handle = view.layers[1].register_forward_hook(by_hand)
    with torch.no_grad():
        expected = view.model(**batch).logits
    handle.remove()
    mask = batch.attention_mask.bool()
    assert torch.allclose(logits(read(tmp_path / "v.pt", view))[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("action", ["add", "clamp"])
def test_what_was_read_is_written_again(action, tmp_path):
    torch.save({"language_model.layers.1": FILE[action]}, tmp_path / "v.pt")
    steerings = read(tmp_path / "v.pt", tiny_view())
    write(tmp_path / "w.pt", steerings, tiny_view())
    assert torch.equal(logits(read(tmp_path / "w.pt", tiny_view())), logits(steerings))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_lm_eval_itself_understands_the_file(tmp_path):
    from lm_eval.models.hf_steered import SteeredModel
    from lm_eval.models.hf_steered import steer as their_steer

    view = tiny_view()
    write(tmp_path / "v.pt", [static()], view)
    theirs = SteeredModel(view.model, str(tmp_path / "v.pt"), device="cpu", tokenizer=view.tokenizer)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), their_steer(view.model, theirs.hook_to_steer):
        expected = view.model(input_ids=ids).logits
    batch = view.encode(conflict_prompts(1))
    mask = batch.attention_mask.bool()
    with torch.no_grad(), their_steer(view.model, theirs.hook_to_steer):
        pictured = view.model(**batch).logits
    assert not torch.equal(expected, view.model(input_ids=ids).logits)
    with torch.no_grad(), steer(view, static()):
        assert torch.allclose(view.model(**view.encode(conflict_prompts(1))).logits[mask], pictured[mask], atol=1e-4)


@pytest.mark.parametrize(
    ("steering", "told"),
    [
        (static(role="image"), "all positions"),
        (static(strength=torch.ones(2)), "no single number"),
        (Steering(static().steerer, {"v": vector()}, Where(layers=(0, 1)), 2.0), "several blocks"),
    ],
)
def test_what_a_file_cannot_say_is_refused(steering, told, tmp_path):
    with pytest.raises(UserError, match=told):
        write(tmp_path / "v.pt", [steering], tiny_view())


def test_a_method_that_reads_its_input_is_refused(tmp_path):
    class Reads(lookup("steering", "static")):
        name = "reads"

        def delta(self, h, state, ctx):
            return h

    with pytest.raises(UserError, match="every input its own way"):
        write(tmp_path / "v.pt", [Steering(Reads(Reads.Params()), {}, Where(layer=1), 1.0)], tiny_view())


@pytest.mark.parametrize(
    "content",
    [{"layers.99": FILE["add"]}, {"language_model.layers.1": {**FILE["add"], "head_index": 1}}, [1, 2], {"x": 3}],
)
def test_a_file_that_means_nothing_here_is_told(content, tmp_path):
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(UserError, match=r"v\.pt"):
        read(tmp_path / "v.pt", tiny_view())


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_no_code_is_unpickled(tmp_path, capsys):
    torch.save({"language_model.layers.1": {**FILE["add"], "bias": Evil()}}, tmp_path / "v.pt")
    with pytest.raises(UserError, match="not a steering vector file"):
        read(tmp_path / "v.pt", tiny_view())
    assert "run" not in capsys.readouterr().out

"""Tuned models and parts for those who do not have this project: plain transformers and PEFT load them, and agree."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
import transformers
from peft import PeftModel

from factory.cli import main
from factory.errors import UserError
from factory.registry import available, lookup
from tests.compose import composed, encoder, llm
from tests.tiny import conflict_prompts, saved_tiny, tiny_view

TUNERS = {"lora": {"rank": 4}, "ia3": {}, "oft": {"blocks": 4}, "full": {}, "connector": {}}


def made(name):
    cls = lookup("format", name)
    return cls(cls.Params())


def tuned(view, name, params, beside=("connector",)):
    """``view`` with a tuner whose parameters were moved, as training would."""
    cls = lookup("tuner", name)
    tuner = cls(cls.Params(**params))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuner.apply(view, beside).values():
            parameter += 0.05 * torch.randn_like(parameter)
    view.model.eval().requires_grad_(False)
    view.parts.append(tuner)
    if tuner.in_model:
        tuner.settle(view)
    return view


def fresh(tmp_path):
    from factory.model.load import load
    from factory.recipe.schema import ModelSpec

    return load(ModelSpec(path=saved_tiny(tmp_path / "base")))


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


@pytest.mark.parametrize("name", TUNERS)
def test_a_merged_model_answers_alike_in_plain_transformers(name, tmp_path):
    view = tuned(fresh(tmp_path), name, TUNERS[name])
    view.model.double()  # so that what is left of a difference is none of rounding
    batch = {k: t.double() if t.is_floating_point() else t for k, t in view.encode(conflict_prompts(2)).items()}
    ours = logits(view.model, batch)
    assert not torch.allclose(
        ours, logits(tiny_view().model.float(), view.encode(conflict_prompts(2))).double(), atol=1e-3
    ), "training moved it"
    made("model").write(tmp_path / "merged", view)
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert plain.dtype == torch.float64
    assert not any("lora" in key or "ia3" in key or "oft" in key for key in plain.state_dict())
    assert torch.allclose(logits(plain, batch), ours, atol=1e-5)
    answers = [m.generate(**batch, max_new_tokens=5, do_sample=False) for m in (plain, view.model)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", ["lora", "ia3", "oft"])
@pytest.mark.parametrize("beside", [("connector",), ()])
def test_peft_loads_a_trained_part_and_its_connector(name, beside, tmp_path):
    view = tuned(fresh(tmp_path), name, TUNERS[name], beside)
    batch = view.encode(conflict_prompts(2))
    made("adapter").write(tmp_path / "adapter", view)
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(theirs, batch), logits(view.model, batch), atol=1e-5)


VARIANTS = [
    {"variant": "rslora"},
    {"variant": "dora"},
    {"start": "pissa"},
    {"variant": "dora", "start": "pissa"},
    {"where": "both"},
    {"where": "vision_tower", "targets": ["query", "mlp_out"]},
]


@pytest.mark.parametrize("params", VARIANTS, ids=str)
def test_each_variant_of_lora_travels_merged_and_as_an_adapter(params, tmp_path):
    """PEFT decomposes the base anew for PiSSA, and finds what it found: plain PEFT and transformers answer alike."""
    view = tuned(fresh(tmp_path), "lora", {"rank": 4, **params})
    batch = view.encode(conflict_prompts(2))
    ours = logits(view.model, batch)
    made("adapter").write(tmp_path / "adapter", view)
    plain = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert torch.allclose(logits(theirs, batch), ours, atol=1e-4)
    view.model.double()  # so that what is left of a difference is none of rounding
    batch = {k: t.double() if t.is_floating_point() else t for k, t in batch.items()}
    ours = logits(view.model, batch)
    made("model").write(tmp_path / "merged", view)
    merged = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(merged, batch), ours, atol=1e-6)
    base = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "base").double().eval()
    assert not torch.allclose(ours, logits(base, batch), atol=1e-2), "training moved it"


@pytest.mark.parametrize("name", sorted({e.name for e in available("tuner")} - set(TUNERS)))
def test_what_no_plain_model_has_is_refused_by_name(name, tmp_path):
    view = tuned(fresh(tmp_path), name, {})
    with pytest.raises(UserError, match=f"tuner '{name}' adds layers"):
        made("model").write(tmp_path / "merged", view)
    with pytest.raises(UserError, match=f"PEFT's methods, and the model has '{name}'"):
        made("adapter").write(tmp_path / "adapter", view)
    assert not (tmp_path / "merged").exists() and not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_a_composed_model_that_is_a_llava_is_written_as_one(vision, tmp_path):
    view = tuned(composed(encoder(vision)), "lora", {"rank": 2})
    batch = view.encode(conflict_prompts(2))
    ours = logits(view.model, batch)
    made("model").write(tmp_path / "merged", view)
    code = (
        "import sys, torch, transformers\n"
        f"model = transformers.LlavaForConditionalGeneration.from_pretrained({str(tmp_path / 'merged')!r}).eval()\n"
        f"batch = torch.load({str(tmp_path / 'batch.pt')!r}, weights_only=True)\n"
        f"torch.save(model(**batch).logits.detach(), {str(tmp_path / 'logits.pt')!r})\n"
        "assert not any(name.split('.')[0] in ('factory', 'plugins') for name in sys.modules)\n"
    )
    torch.save({key: batch[key] for key in batch}, tmp_path / "batch.pt")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)
    theirs = torch.load(tmp_path / "logits.pt")[batch.attention_mask.bool()]
    assert torch.allclose(theirs, ours, atol=1e-4)
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "merged")
    assert again.image_token_id == view.model.config.image_token_id


@pytest.mark.parametrize(
    ("vision", "connector", "text", "told"),
    [
        ("dinov2", "mlp2x_gelu", "llama", "dinov2"),
        ("clip", "linear", "llama", "linear"),
        ("clip", "mlp2x_gelu", "phi", "bias"),
    ],
)
def test_a_composed_model_that_is_none_is_refused_by_its_part(vision, connector, text, told, tmp_path):
    view = composed(encoder(vision), connector, llm(text))
    with pytest.raises(UserError, match=told):
        made("model").write(tmp_path / "merged", view)


def test_the_command_merges_a_run(tmp_path, capsys):
    model = saved_tiny(tmp_path / "model")
    (tmp_path / "tune.yaml").write_text(
        f"name: short\nmodel: {{path: {model}}}\ntune: {{tuner: {{type: lora, rank: 2}}, batch_size: 4,"
        f" data: {{lessons: scenes, take: 4}}}}\nrun: {{root: {tmp_path / 'runs'}}}\n"
    )
    assert main([str(tmp_path / "tune.yaml")]) == 0
    run = tmp_path / "runs" / "short"
    assert main(["export", str(run), str(tmp_path / "merged"), "model"]) == 0
    assert main(["export", str(run), str(tmp_path / "adapter"), "adapter"]) == 0
    assert "PeftModel.from_pretrained" in capsys.readouterr().out
    assert main(["export", str(run), str(tmp_path / "merged"), "model"]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "merged"), str(tmp_path / "x"), "model", "--model", str(model)]) == 2

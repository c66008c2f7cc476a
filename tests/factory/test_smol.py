"""The shipped model of real parts: what can be known without its parts, and what it can do where they have been
fetched.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eval_suite.conflict import build_prompt
from eval_suite.scenes.exam import clean
from eval_suite.scorers.conflict import judge
from factory import files
from factory.cli import main
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.load import lacking, load, outline, to_fetch
from factory.model.source import find, known, spelt_out
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.plan.estimate import find_facts
from factory.run.tuners.exam import answerer
from factory.steer import Steering, Where, steer
from factory.zoo.cards import read_card, read_part, shipped
from factory.zoo.packages import is_fetched

SMOL, FOLDER = ModelSpec(zoo="smol"), shipped("smol")


def test_the_card_spells_out_parts_and_what_was_trained():
    spec = spelt_out(SMOL)
    assert (spec.compose.llm.type, spec.compose.vision_encoder.params.zoo, spec.tuned) == (
        "smollm2",
        "efficientnet-lite0",
        (str(FOLDER),),
    )
    assert spelt_out(ModelSpec(zoo="smol", tuned=("mine",))).tuned == (str(FOLDER), "mine")
    assert spelt_out(spec) == spec and spelt_out(ModelSpec(zoo="tiny")) == ModelSpec(zoo="tiny")


def test_sizes_and_card_are_known_with_nothing_fetched():
    config, card = known(SMOL)
    assert config.get_text_config().num_hidden_layers == 30 and card == read_card("smol") and find(SMOL).card == card
    model, _, lacking = find_facts(SMOL)
    assert not lacking and 138e6 < model.parameters < 141e6 and model.image_tokens == config.image_seq_length == 8


def test_without_its_parts_it_is_asked_for_by_name_and_a_plan_fetches_nothing(capsys):
    for ask in (lambda: load(SMOL, fetch=False), lambda: outline(SMOL)):
        with pytest.raises(UserError, match="not fetched yet .* Get it with `steering-factory fetch"):
            ask()
    assert main(["plan", "recipes/amps_smol.yaml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "missing: part efficientnet-lite0: not fetched yet" in said
        and "a run does so by itself" in said
        and "memory: about" in said
    )


TEXT = ModelSpec(zoo="smollm2")


def test_a_text_model_of_the_index_is_planned_with_nothing_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("STEERING_FACTORY_CACHE", str(tmp_path))
    (told,) = to_fetch(TEXT)
    assert lacking(TEXT) == [told] and "93 MB" in told and "a run does so by itself" in told
    facts, card, missing = find_facts(TEXT)
    assert not missing and card == read_card("smollm2") and facts.parameters == card.parameters
    assert card.config == read_part(card.part).config
    for ask in (lambda: load(TEXT, fetch=False), lambda: outline(TEXT)):
        with pytest.raises(UserError, match="smollm2-135m-instruct: not fetched yet"):
            ask()


def test_a_gguf_language_model_reads_is_steered_and_travels(users_cache, tmp_path):
    """Four-bit weights from the package index: a sensible answer, a vector between two questions that turns one's
    answer into the other's, and llama.cpp's file of it.
    """
    if not is_fetched(read_part("smollm2-135m-instruct")):
        pytest.skip("smollm2-135m-instruct is not fetched")
    view, layer, seen = load(TEXT), 24, []
    ask = lambda land: Prompt((Segment(Role.QUESTION, f"What is the capital of {land}? Answer in one word."),))
    for land in ("Germany", "France"):
        handle = view.layers[layer].register_forward_hook(lambda module, args, output: seen.append(output[0, -1]))
        with torch.no_grad():
            view.model(**view.encode([ask(land)]))
        handle.remove()
    batch, static = view.encode([ask("France")]), lookup("steering", "static")
    steering = Steering(static(static.Params()), {"v": seen[0] - seen[1]}, Where(layer=layer), 1.0)

    def answer(strength):
        with steer(view, replace(steering, strength=strength)):
            told = view.model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch.input_ids.shape[1] :]
        return view.tokenizer.decode(told, skip_special_tokens=True)

    assert "Paris" in answer(0.0) and "Berlin" in answer(1.0)
    cls = lookup("format", "gguf")
    cls(cls.Params()).write(tmp_path / "v.gguf", [steering], view)
    (back,) = cls(cls.Params()).read(tmp_path / "v.gguf", view)
    assert torch.allclose(back.state["v"] * back.strength, steering.state["v"], rtol=1e-6)


def test_what_is_shipped_is_small_and_safe():
    manifest = files.read_json(FOLDER / "tuner_config.json")
    assert (manifest["type"], manifest["beside"]) == ("lora", ["connector"])
    assert (FOLDER / "tuner.safetensors").stat().st_size <= 12e6
    assert sum(t.numel() for t in files.read_safetensors(FOLDER / "tuner.safetensors").values()) == sum(
        manifest["parameters"].values()
    )
    exam, page = files.read_json(FOLDER / "exam.json"), (FOLDER / "README.md").read_text()
    for name in ("image_only", "text_only", "obeys_vision", "obeys_text", "prefers_vision"):
        assert f"{100 * exam[f'{name} (open)']['all']:.1f}" in page, "the page shows the examination's numbers"


@pytest.mark.slow
def test_it_reads_pictures_and_texts(users_cache):
    for part in ("efficientnet-lite0", "smollm2-135m-instruct"):
        if not is_fetched(read_part(part)):
            pytest.skip(f"part {part} is not fetched (steering-factory fetch smol)")
    view = load(SMOL)
    answer = answerer(
        view, lookup("benchmark", "scenes")(lookup("benchmark", "scenes").Params(scoring="open_ended")), 16
    )
    samples = [
        s
        for task in ("object_recognition", "sport_recognition", "sentiment_understanding")
        for s in clean(task, 8, 3, scale=5)
    ]
    for image, context, verdict in ((True, False, "vision"), (False, True, "text")):
        texts = answer([build_prompt(s, "open", image=image, context=context) for s in samples])
        right = [
            judge("open", text, s.answer_vision, s.answer_text) == verdict
            for text, s in zip(texts, samples, strict=True)
        ]
        assert sum(right) >= 0.75 * len(right), verdict
    assert view.dtype == torch.float32

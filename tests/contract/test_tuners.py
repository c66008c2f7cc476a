"""The contract of tuners, on every registered one."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from factory import tune
from factory.data.prompt import Role, Segment
from factory.errors import UserError
from factory.model.load import fingerprint
from factory.model.prefix import at_last
from factory.registry import lookup
from factory.train.scratch.lessons import LessonCollator
from tests.contract import cases
from tests.tiny import conflict_prompts, mixed_prompts, no_image

SMALLER = {"lora": {"rank": 4}, "adapter": {"bottleneck": 4}, "oft": {"blocks": 4}}


def made(name: str, **options):
    cls = lookup("tuner", name)
    return cls(cls.Params(**{**SMALLER.get(name, {}), **options}))


def parts(name, beside=()):
    """What is trained beside a tuner: at least the connector for one that has nothing of its own."""
    return beside or (("connector",) if name == "connector" else ())


def logits(view, prompts, side="left"):
    batch = view.encode(prompts, side)
    with torch.no_grad():
        return at_last(view.model(**batch, position_ids=batch.position_ids).logits, batch.attention_mask)


def lessons(view, images=True):
    prompts = [p.append(Segment(Role.ANSWER, "red")) for p in conflict_prompts(3)]
    batch = LessonCollator(view)(prompts if images else [no_image(p) for p in prompts])
    return {key: value for key, value in batch.items() if key != "text_labels"}


def learn(view, trained, steps=3, **options):
    """A few steps of AdamW on three answers."""
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-2)
    batch = lessons(view)
    view.model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        view.model(**batch, **options).loss.backward()
        optimiser.step()
    view.model.eval()


def gradients(view, trained, batch):
    view.model.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    view.model(**batch, use_cache=False).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in trained.items()}


def test_there_are_the_tuners_of_the_paper():
    assert {"full", "lora", "oft", "ia3", "adapter", "mores"} <= cases.classes("tuner").keys()


def test_it_names_learning_rates(tuner_name):
    cls = lookup("tuner", tuner_name)
    assert cls.learning_rate in cls.sweep and len(cls.sweep) >= 3
    assert all(rate > 0 for rate in cls.sweep) and list(cls.sweep) == sorted(cls.sweep)


def test_it_starts_as_the_base_model(tuner_name):
    view = cases.fresh_view()
    before = logits(view, mixed_prompts())
    made(tuner_name).apply(view)
    assert cases.close(logits(view, mixed_prompts()), before)


@pytest.mark.parametrize("training", [False, True])
def test_what_it_adds_is_in_the_models_mode(tuner_name, training):
    view = cases.fresh_view()
    view.model.train(training)
    made(tuner_name).apply(view)
    assert {module.training for module in view.model.modules()} == {training}, "its dropout would be on in evaluation"


@pytest.mark.parametrize("beside", [(), ("connector",)])
def test_what_it_trains_is_what_it_says(tuner_name, beside):
    view, beside = cases.fresh_view(), parts(tuner_name, beside)
    towers = {id(p) for p in view.vision_tower.parameters()}
    tuner = made(tuner_name)
    trained = tuner.apply(view, beside)
    assert {name for name, p in view.model.named_parameters() if p.requires_grad} == set(trained)
    assert not towers & {id(p) for p in trained.values()}, "it leaks into the vision tower"
    connector = sum(p.numel() for p in view.connector.parameters()) if beside else 0
    assert tuner.counts() == {"tuner": sum(p.numel() for p in trained.values()) - connector, "beside": connector}
    before = {name: p.detach().clone() for name, p in view.model.named_parameters()}
    learn(view, trained)
    changed = {name for name, p in view.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= set(trained)
    # what steers image tokens after the last block changes no answer: no later token reads them
    unread = {name for name in trained if f"layers.{view.depth - 1}.mores_image" in name}
    assert set(trained) - changed <= unread, "all that is trained learns"


def test_removing_it_restores_the_model_bit_for_bit(tuner_name):
    view = cases.fresh_view()
    expected, before = logits(view, conflict_prompts(3)), cases.traces(view)
    tuner = made(tuner_name)
    learn(view, tuner.apply(view, ("connector",), restorable=True))
    assert not torch.equal(logits(view, conflict_prompts(3)), expected)
    tuner.remove(view)
    view.model.zero_grad(set_to_none=True)
    assert torch.equal(logits(view, conflict_prompts(3)), expected)
    assert cases.traces(view) == before


def test_weights_trained_in_place_are_not_forgotten_in_silence(tuner_name):
    view = cases.fresh_view()
    tuner = made(tuner_name)
    tuner.apply(view, ("connector",))
    with pytest.raises(RuntimeError, match="in place"):
        tuner.remove(view)
    with pytest.raises(RuntimeError, match="applied already"):
        tuner.apply(view)


def test_it_is_saved_and_found_again(tuner_name, tmp_path):
    view = cases.fresh_view()
    base, tuner = fingerprint(view), made(tuner_name)
    learn(view, tuner.apply(view, ("connector",)))
    expected = logits(view, mixed_prompts())
    tune.save(tmp_path / "tuned", tuner, view, {"task": "scenes"})
    assert {path.name for path in (tmp_path / "tuned").iterdir()} == {
        "tuner_config.json",
        "tuner.safetensors",
        "README.md",
    }
    other = cases.fresh_view()
    assert fingerprint(other) == base
    again = tune.load(tmp_path / "tuned", other)
    assert again.name == tuner_name and again.params == tuner.params
    assert torch.equal(logits(other, mixed_prompts()), expected)
    assert not any(p.requires_grad for p in other.model.parameters())
    again.remove(other)
    assert fingerprint(other) == base
    with pytest.raises(UserError, match="another base model"):
        tune.load(tmp_path / "tuned", cases.fresh_view(seed=3))
    with pytest.raises(UserError, match="not a tuner's folder"):
        tune.load(tmp_path, other)


def test_generation_with_a_cache_is_generation_without(tuner_name):
    view = cases.fresh_view()
    learn(view, made(tuner_name).apply(view, parts(tuner_name)))
    prompts = conflict_prompts(3)
    batch = view.encode(prompts)
    cached = view.model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch.input_ids.shape[1] :]
    beams = view.model.generate(**batch, max_new_tokens=3, do_sample=False, num_beams=2)
    for i, prompt in enumerate(prompts):
        ids, inputs = view.encode([prompt]).input_ids, dict(view.encode([prompt]))
        for token in cached[i]:
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                best = view.model(**inputs).logits[0, -1].argmax()
            assert best == token
            ids = torch.cat([ids, token[None, None]], 1)
            if token in view.eos_ids:
                break
    assert beams.shape[0] == 3


def test_what_else_is_in_the_batch_does_not_matter(tuner_name):
    view = cases.fresh_view()
    learn(view, made(tuner_name).apply(view, parts(tuner_name)))
    prompts = mixed_prompts()
    together = logits(view, prompts)
    assert cases.close(logits(view, prompts, "right"), together, 1e-4)
    assert cases.close(torch.cat([logits(view, [p]) for p in prompts]), together, 1e-4)


@pytest.mark.parametrize("beside", [(), ("connector",)])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointing(tuner_name, reentrant, beside):
    view = cases.fresh_view()
    trained = made(tuner_name).apply(view, parts(tuner_name, beside))
    learn(view, trained)
    batch = lessons(view)
    view.model.train()
    expected = gradients(view, trained, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        view.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        found = gradients(view, trained, batch)
    assert all(g is not None and math.isfinite(g.sum()) for g in expected.values())
    assert any(g.abs().max() > 0 for g in expected.values())
    for name, g in expected.items():
        assert found[name] is not None and cases.close(found[name], g), name


def test_a_batch_without_an_image_still_reaches_every_parameter(tuner_name):
    view = cases.fresh_view()
    trained = made(tuner_name).apply(view)
    if not trained:
        assert not any(p.requires_grad for p in view.model.parameters()), "what it trains is not told"
        return
    view.model.train()
    found = gradients(view, trained, lessons(view, images=False))
    assert all(g is not None for g in found.values()), "ranks would wait for each other"


def test_a_batch_may_carry_roles(tuner_name):
    view = cases.fresh_view()
    learn(view, made(tuner_name).apply(view, parts(tuner_name)))
    batch = view.encode(mixed_prompts())
    with torch.no_grad():
        expected = view.model(**batch).logits
        inputs = {k: v.tolist() if k == "input_ids" else v for k, v in batch.items()}
        inputs["input_ids"] = torch.tensor(inputs["input_ids"])
        roles = batch.roles
        del batch
        assert torch.equal(view.model(**inputs, roles=roles).logits, expected)
        assert torch.equal(view.model(**inputs).logits, expected), "image tokens are found without them"


def test_a_model_in_half_precision_is_tuned_in_whole(tuner_name):
    view = cases.fresh_view(dtype=torch.bfloat16)
    before = logits(view, conflict_prompts(2))
    trained = made(tuner_name).apply(view, ("connector",))
    assert torch.allclose(logits(view, conflict_prompts(2)), before, atol=0.1, rtol=0.1)
    for name, p in trained.items():
        if "multi_modal_projector" not in name:
            p.data = p.data.float()  # as a training run keeps what it trains
    if not lookup("tuner", tuner_name).in_place:
        found = gradients(view, trained, lessons(view))
        assert all(
            g is not None and g.dtype == trained[name].dtype and math.isfinite(g.float().sum())
            for name, g in found.items()
        )

"""The contract of model families: what ModelView, the KV cache, steering and diagnostics build on, for each of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.cache_utils import Cache

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.checks import self_check
from factory.model.encode import Encoded, images_first
from factory.model.facts import facts_of, sizes_of
from factory.model.load import fingerprint, load
from factory.model.prefix import at_last, extend, greedy, last_index, prefill
from factory.model.view import ModelView
from factory.recipe.schema import ModelSpec
from factory.registry import available, lookup
from factory.steer import steer
from factory.steer.ahead import Ahead, last_alone, spoken
from factory.steer.collect import Plan, asked, collect
from factory.steer.sweep import run_cell, run_trunk
from factory.steer.where import Where
from tests.contract.cases import Case, answers, close, logits, recompute, same_weights, steering
from tests.plugins.test_mcr import run as mcr
from tests.plugins.test_mcr import written_out
from tests.tiny import mixed_prompts, shown, tiny_view
from tests.tiny_families import BUILDERS, SEEING, family_view

NAMES, PICTURED = sorted(BUILDERS), sorted(SEEING)
IN_COLUMNS = [name for name in PICTURED if not lookup("family", name).columnless]
WINDOWED = {"gemma2", "gemma3", "gemma3_text"}  # their sliding windows count hidden tokens
LOOKING, READING = Case("dose"), Case("l2s", (("predict_from", "per_token"),))
SIZES = ((48, 48), (72, 30), (30, 72), (40, 56))


def prompts_of(view: ModelView) -> list[Prompt]:
    """Prompts with one image, with the text first (where the template lets it stand there), with two images and with
    none; images of several sizes. Of a model that reads text alone, their words.
    """
    found, sizes = [], iter(SIZES * 2)
    first = images_first(view.writing)
    for prompt in shown(view, mixed_prompts()):
        prompt = prompt.images_first() if first else prompt
        segments = [replace(s, image=s.image.resize(next(sizes))) if s.image else s for s in prompt.segments]
        found.append(Prompt(tuple(segments)))
    return found


@pytest.fixture(params=NAMES)
def view(request) -> ModelView:
    return family_view(request.param)


def test_every_family_is_held_to_the_contract():
    assert {entry.name for entry in available("family")} - {"llava"} == set(NAMES)


def test_a_saved_model_loads_and_checks_itself(view, tmp_path):
    old = Version(transformers.__version__) < Version("5.18") and not transformers.utils.is_torchvision_available()
    if old and view.family.name in ("idefics3", "smolvlm"):
        pytest.skip("transformers 5.17 reads its pictures with torchvision alone")
    view.model.save_pretrained(tmp_path)
    view.processor.save_pretrained(tmp_path)
    loaded, prompts = load(ModelSpec(path=str(tmp_path), device="cpu")), prompts_of(view)
    assert type(loaded.family) is type(view.family) and fingerprint(loaded) == fingerprint(view)
    assert loaded.encode(prompts).input_ids.tolist() == view.encode(prompts).input_ids.tolist()
    assert same_weights(loaded, view) and close(logits(loaded, prompts), logits(view, prompts))


@pytest.mark.parametrize("view", sorted({*NAMES} - WINDOWED), indirect=True)
def test_a_prompt_whose_context_is_hidden_is_the_prompt_without_it(view):
    """The look ahead that leaves a modality out gives what the shorter prompt gives, positions included."""
    assert not isinstance(view.family.attention_mask(view.decoder, torch.ones(1, 1), 1), dict)
    for prompt in (prompts_of(view)[i] for i in (0, 3)):  # the context stands before a text
        trunk = run_trunk(view, view.encode([prompt], "left"), 1)
        ahead = Ahead(view, 1, trunk.call, trunk.batch.attention_mask, trunk.batch.roles)
        hidden = ahead.hiding(spoken(trunk.batch.roles, torch.tensor(int(Role.CONTEXT))), trunk.states)
        assert close(hidden, logits(view, [prompt.without(Role.CONTEXT)])) and not close(
            hidden, logits(view, [prompt]), 1e-3
        )


@pytest.mark.parametrize("view", sorted({*NAMES} - WINDOWED), indirect=True)
def test_a_last_token_that_runs_alone_gives_what_the_whole_prompt_gives(view):
    """From the block on, from the embedding with the prompt seen whole, and with the context unseen by it alone."""
    prompts = prompts_of(view)
    for side in ("left", "right"):
        trunk = run_trunk(view, view.encode(prompts, side), 1)
        mask, roles = trunk.batch.attention_mask, trunk.batch.roles
        ahead = Ahead(view, 1, trunk.call, mask, roles, cache=trunk.prefix.cache)
        last = torch.nn.functional.one_hot(last_index(mask), mask.shape[1]).bool()[..., None]
        moved = torch.where(last, trunk.states + 1, trunk.states)
        if not view.whole_prompts:
            assert close(ahead.above_last(at_last(moved, mask)[None])[0], ahead.above(moved))
            both = ahead.above_last(torch.stack([at_last(moved, mask), trunk.last.to(moved)]))
            assert close(both[0], ahead.above(moved)) and close(both[1], ahead.above(trunk.states))
            seen, unseen = ahead.ignoring(torch.stack([roles < 0, roles == Role.CONTEXT]), moved)
            assert close(seen, logits(view, prompts, side=side))
            assert close(unseen, ahead.ignoring((roles == Role.CONTEXT)[None], moved)[0])
            assert not close(unseen, seen, 1e-3)
        assert last_alone(view, Where(layer=1, take="last:1")) == (not view.whole_prompts)


def test_its_sizes_are_known_without_weights(view):
    found = sizes_of(view.model.config, view.family, view.dtype)
    assert (
        found == facts_of(view.model, view.family, view.dtype)
        and found.linear
        and found.parameters == sum(p.numel() for p in view.model.parameters())
    )


def test_an_mlp_that_the_configuration_calls_otherwise_is_measured(monkeypatch):
    view = tiny_view()
    text = vars(view.model.config.get_text_config()).copy()
    text["ffn_dim"] = text.pop("intermediate_size")  # as OPT's
    monkeypatch.setattr(type(view.model.config), "get_text_config", lambda _: SimpleNamespace(**text))
    assert facts_of(view.model, view.family, view.dtype).mlp == text["ffn_dim"]


def test_its_parts_add_up_each_parameter_in_one_of_them(view):
    """The plan's line, against a plain sum over what lies under each part's path."""
    named, inside = dict(view.model.named_parameters()), {}
    for name, module in view.model.named_modules():
        for part in ("connector", "vision_tower", "decoder") if view.sees else ("decoder",):
            if module is getattr(view, part):
                inside.setdefault(part, f"{name}.")
    under = lambda part: {name for name in named if part in inside and name.startswith(inside[part])}
    connector = sum(named[name].numel() for name in under("connector"))
    tower = sum(named[name].numel() for name in under("vision_tower") - under("connector"))
    head = 0 if view.unembed.weight is view.model.get_input_embeddings().weight else view.unembed.weight.numel()
    counted = facts_of(view.model, view.family, view.dtype).parts
    assert (counted.get("connector", 0), counted.get("vision", 0)) == (connector, tower)
    assert counted["decoder"] == sum(p.numel() for name, p in named.items() if name.startswith(inside["decoder"]))
    assert counted.get("unembedding", 0) in (head, sum(p.numel() for p in view.unembed.parameters()))
    assert sum(counted.values()) == sum(p.numel() for p in named.values()) and min(counted.values()) > 0


def test_roles_mark_the_image_tokens_and_the_words(view):
    prompts = prompts_of(view)
    batch = view.encode(prompts)
    assert torch.equal(batch.input_ids == view.image_token_id, batch.mask(Role.IMAGE))
    assert (batch.mask(Role.IMAGE).sum(-1) > 0).tolist() == [bool(prompt.images) for prompt in prompts]
    for row, prompt in zip(range(4), prompts, strict=True):
        for role in {s.role for s in prompt.segments} - {Role.IMAGE}:
            words = view.tokenizer.decode(batch.input_ids[row, batch.mask(role)[row]])
            assert words.split() == " ".join(s.text for s in prompt.segments if s.role == role).split()


WITH_PROCESSOR = [
    name for name in PICTURED if lookup("family", name).processor_class and name != "steering_factory_composed"
]  # ours counts otherwise


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_inputs_are_those_of_the_models_own_processor(name):
    view = family_view(name)
    for prompt in prompts_of(view)[:3]:
        batch = view.encode([prompt])
        if view.processor.chat_template:
            text = view.tokenizer.apply_chat_template(
                prompt.messages(),
                chat_template=view.processor.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        else:  # PaliGemma's processor is given the words and places the beginning token itself
            text = "".join("<image>" if c["type"] == "image" else c["text"] for c in prompt.messages()[0]["content"])
        begins = bool(view.tokenizer.bos_token) and view.tokenizer.bos_token in text
        theirs = view.processor(images=[prompt.images], text=[text], add_special_tokens=not begins, return_tensors="pt")
        for key in batch:
            assert torch.equal(theirs[key].to(batch[key].dtype), batch[key]), key


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_prefill_is_the_model_alone(view, side):
    """The model itself, left to find positions and masks for one prompt without padding."""
    prompts = prompts_of(view)
    together = logits(view, prompts, side=side)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            alone = view.model(**view.encode([prompt])).logits[0, -1].float()
        assert close(together[i], alone, 1e-4)


def kept(view: ModelView, cache: Cache) -> list[torch.Tensor]:
    """A copy of all that a cache holds: of blocks that keep a running state, that and what its convolution reads."""
    attending = [layer for i, layer in enumerate(cache.layers) if i not in view.running]
    states = [t for layer in attending for t in (layer.keys, layer.values)]
    for i in view.running:
        states += [*cache.layers[i].conv_states.values(), *cache.layers[i].recurrent_states.values()]
    return [t.clone() for t in states]


def continued(view: ModelView, prompts: list[Prompt], n: int) -> list[Encoded]:
    """Prompts with ``n`` answer tokens each."""
    encoded = view.tokens(prompts, view.images_of(prompts)[1])
    words = view.tokenizer("the red box is in the image of a blue ball", add_special_tokens=False).input_ids[:n]
    return [Encoded(e.ids + words, e.roles + [int(Role.ANSWER)] * n, "") for e in encoded]


@pytest.mark.parametrize("side", ["left", "right"])
def test_extending_a_fork_is_recomputing(view, side):
    prompts = prompts_of(view)
    whole = continued(view, prompts, 7)
    images = view.images_of(prompts)[0]
    held = 7 if view.family.bidirectional_prompt else 12  # of a causal model also the end of the prompt
    heads = [Encoded(e.ids[:-held], e.roles[:-held], "") for e in whole]
    rows = torch.tensor([3, 0, 2, 1, 2])

    def part(first: int, end: int) -> tuple[torch.Tensor, ...]:
        rest = [Encoded(e.ids[-held:], e.roles[-held:], "") for e in whole]
        ids = torch.tensor([e.ids[first:end] for e in rest])[rows]
        return ids, torch.ones_like(ids), torch.tensor([e.roles[first:end] for e in rest])[rows]

    with torch.no_grad():
        _, prefix = prefill(view, view.collate(heads, images, side))
        fork = prefix.fork(rows)
        if view.running and side == "right":
            with pytest.raises(UserError, match="keeps a running state, in which padding between tokens would count"):
                extend(view, fork, *part(0, 4))
            return
        before = kept(view, prefix.cache)
        first, fork = extend(view, fork, *part(0, 4))
        second, _ = extend(view, fork, *part(4, held))
        found = view.logits(torch.cat([first, second], 1))
        for i, row in enumerate(rows.tolist()):
            own, texts = view.images_of([prompts[row]])
            alone = view.collate([whole[row]], own)
            assert bool(texts[0]) == bool(prompts[row].images)
            reference = view.model(**alone).logits[0, -held:].float()
            assert close(found[i], reference, 1e-4)
    assert all(torch.equal(*pair) for pair in zip(kept(view, prefix.cache), before, strict=True))


def test_greedy_answers_are_those_of_generate(view):
    batch = view.encode(prompts_of(view))
    with torch.no_grad():
        hidden, prefix = prefill(view, batch)
        ours = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), 6)
        theirs = view.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("chosen", [LOOKING, READING], ids=str)
def test_steering_is_its_definition(view, chosen):
    """Strength 0 bit for bit; each row its own strength; cached decoding is recomputing; a sweep's cell is the plain
    run.
    """
    prompts, layer = prompts_of(view), 1
    batch = view.encode(prompts)
    with torch.no_grad():
        plain = view.model(**batch).logits
        with steer(view, steering(chosen, layer, 0.0)):
            assert torch.equal(view.model(**batch).logits, plain)
        with steer(view, steering(chosen, layer)):
            out = view.model.generate(
                **batch,
                do_sample=False,
                min_new_tokens=3,
                max_new_tokens=3,
                output_logits=True,
                return_dict_in_generate=True,
            )
    for i, prompt in enumerate(prompts):
        reference = recompute(view, prompt, out.sequences[i, -3:], [steering(chosen, layer)])
        assert close(torch.stack([step[i] for step in out.logits]), reference, 1e-4)
    side = "left" if view.running else "right"
    trunk = run_trunk(view, view.encode(prompts, side), layer)
    cell = run_cell(view, trunk, steering(chosen, layer), 3).tolist()
    assert cell == answers(view, prompts, steering(chosen, layer), side, 3)
    assert torch.equal(trunk.final, prefill(view, trunk.batch)[0])
    strengths = torch.tensor([0.0, 1.0, -2.0, 3.0])
    together = logits(view, prompts, steering(chosen, layer, strengths))
    assert torch.equal(together[0], logits(view, prompts)[0])
    assert close(together[2:3], logits(view, prompts[2:3], steering(chosen, layer, -2.0)), 1e-4)


@pytest.mark.parametrize("layer", [0, 2])
def test_looking_ahead_at_the_first_and_the_last_block(view, layer):
    prompt = prompts_of(view)[0]
    answer = torch.tensor(answers(view, [prompt], steering(LOOKING, layer), n=1)[0])
    found = logits(view, [prompt], steering(LOOKING, layer))
    assert close(found, recompute(view, prompt, answer, [steering(LOOKING, layer)]), 1e-4)


@pytest.mark.parametrize("name", IN_COLUMNS)
def test_mcr_is_algorithm_1_written_out(name):
    view = family_view(name, torch.float64)
    prompts = prompts_of(view)[:3]
    found = mcr(view, prompts, side="right")
    for key, prompt in zip("abc", prompts, strict=True):
        for metric, value in written_out(view, prompt, key).items():
            assert found[key][metric] == pytest.approx(value, rel=2e-3), (key, metric)


PRECISIONS = [(torch.float32, "left", 5e-3), (torch.bfloat16, "left", 0.1), (torch.bfloat16, "right", 0.1)]


@pytest.mark.parametrize(("dtype", "side", "within"), PRECISIONS, ids=str)
@pytest.mark.parametrize("name", IN_COLUMNS)
def test_mcr_is_algorithm_1_in_the_precision_of_the_weights(name, dtype, side, within):
    view = family_view(name, dtype)
    prompts = prompts_of(view)[:2]
    found = mcr(view, prompts, side=side)
    for key, prompt in zip("ab", prompts, strict=True):
        assert found[key]["R_V"] == pytest.approx(written_out(view, prompt, key)["R_V"], abs=within)


@pytest.mark.parametrize("name", IN_COLUMNS)
def test_mcr_in_other_precisions_is_near(name):
    prompts = prompts_of(family_view(name))[:2]
    exact = mcr(family_view(name, torch.float64), prompts)
    single, half = mcr(family_view(name), prompts), mcr(family_view(name, torch.bfloat16), prompts)
    for key in exact:
        assert single[key]["R_V"] == pytest.approx(exact[key]["R_V"], abs=2e-3)
        assert half[key]["R_V"] == pytest.approx(exact[key]["R_V"], abs=0.15)


def test_collected_states_are_those_of_whole_prompts(view):
    prompts, plan = prompts_of(view), Plan(layer=1)
    states, _ = collect(view, prompts, plan, None, "abcd")
    for ask in ("base", "vision", "text"):
        trunk = run_trunk(view, view.encode([asked(p, ask, plan.style) for p in prompts]), 1)
        assert close(states[ask], trunk.last, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_near(name):
    exact, half = family_view(name), family_view(name, torch.bfloat16)
    self_check(half)
    prompts = prompts_of(exact)
    for side, near in (("left", 0.97), ("right", 0.97)):  # padding and the release of torch decide which kernel rounds
        a, b = (
            logits(exact, prompts, steering(READING, 1, 0.5), side),
            logits(half, prompts, steering(READING, 1, 0.5), side),
        )
        assert torch.nn.functional.cosine_similarity(a, b).min() > near


def test_an_answer_that_was_given_is_read(view):
    prompt = prompts_of(view)[0]
    shown = prompt.append(Segment(Role.ANSWER, "red"))
    batch = view.encode([Prompt((*shown.segments, *prompt.segments)), prompt], "right")
    assert view.tokenizer.decode(batch.input_ids[0, batch.mask(Role.ANSWER)[0]]).split() == ["red"]
    assert torch.isfinite(prefill(view, batch)[0][batch.attention_mask.bool()]).all()

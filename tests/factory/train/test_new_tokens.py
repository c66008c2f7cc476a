"""Words that a tuning adds to a model's vocabulary: their rows are learnt as in a plain loop, and go wherever the model
goes.
"""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoTokenizer

from factory import files, tune
from factory.corpus.collate import Collator
from factory.corpus.order import Order
from factory.corpus.source import ConversationFile
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.formats import ModelFormat
from factory.model.load import load
from factory.model.view import ModelView
from factory.recipe import loads
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from tests.tiny import fresh_view, saved_tiny
from tests.tiny_families import own_family_view

WORDS = ("<zig>", "<zag>")
STEPS, RATE = 3, 1e-2


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    rows = [{"query": f"Say <zig> {i}", "response": f"<zag> {i} <zig>"} for i in range(8)]
    files.write_jsonl(root / "data.jsonl", rows)
    saved_tiny(root / "model")
    return root


def recipe(root, name: str, **changes):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / name)},
        "report": {"plots": False},
        "tune": {
            "tuner": {"type": "connector"},
            "beside": [],
            "new_tokens": list(WORDS),
            "data": {"path": str(root / "data.jsonl"), "max_tokens": 200, "group_by_length": False},
            "batch_size": 4,
            "steps": STEPS,
            "schedule": "constant",
            "warmup": 0.0,
            "learning_rate": RATE,
            "max_grad_norm": 1e9,
            **changes,
        },
    }
    return loads(json.dumps(spec), path=root / f"{name}.yaml")


def own_view() -> ModelView:
    """The tiny model with a tokenizer of its own."""
    view = fresh_view()
    view.processor = deepcopy(view.processor)
    return view


def extended() -> tuple[ModelView, list[int]]:
    """The tiny model with two more words by hand, their rows at the mean of the others."""
    view = own_view()
    view.tokenizer.add_tokens(list(WORDS))
    ids = view.tokenizer.convert_tokens_to_ids(list(WORDS))
    before = view.model.get_input_embeddings().weight.shape[0]
    if max(ids) >= before:
        view.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    for module in (view.model.get_input_embeddings(), view.unembed):
        with torch.no_grad():
            module.weight[ids] = module.weight[: min(ids)].mean(0)
    return view, ids


def test_the_rows_of_new_words_are_learnt_as_in_a_plain_loop(project):
    run(recipe(project, "plain"))
    found = [row["loss"] for row in files.read_jsonl(project / "plain" / "r" / "tune" / "log.jsonl")]
    view, ids = extended()
    source = ConversationFile(project / "data.jsonl", project, project / "index")
    order, collator = Order(len(source), 4, 0), Collator(view, source, 200, None)
    maps = {id(m.weight): m.weight for m in (view.model.get_input_embeddings(), view.unembed)}
    for weight in maps.values():
        chosen = torch.zeros(len(weight), 1)
        chosen[ids] = 1
        weight.requires_grad_(True).register_hook(lambda grad, chosen=chosen: grad * chosen)
    optimizer, losses = torch.optim.AdamW(maps.values(), lr=RATE, weight_decay=0.0), []
    start = view.model.get_input_embeddings().weight[ids].detach().clone()
    for step in range(STEPS):
        batch = collator([order[place] for place in range(4 * step, 4 * step + 4)])
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = view.model(**{k: t for k, t in batch.items() if k != "roles"}).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, labels, ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found == pytest.approx(losses, rel=1e-4)
    trained = files.read_safetensors(project / "plain" / "r" / "tuned" / "tuner.safetensors")
    [rows] = [t for name, t in trained.items() if "lm_head" not in name]
    assert torch.allclose(rows, view.model.get_input_embeddings().weight[ids], atol=1e-4)
    assert (rows - start).abs().max() > RATE, "they have moved"
    again = load(ModelSpec(path=str(project / "model"), tuned=(str(project / "plain" / "r"),)))
    asked = [Prompt((Segment(Role.QUESTION, "Say <zig> 1"),))]
    assert torch.allclose(logits_of(again, asked), logits_of(view, asked), atol=1e-4)


def logits_of(view: ModelView, prompts: list[Prompt]) -> torch.Tensor:
    with torch.no_grad():
        return view.model(**view.encode(prompts)).logits


ASKED = [Prompt((Segment(Role.QUESTION, "Say <zig> again"),))]
PLAIN = [Prompt((Segment(Role.QUESTION, "Say it again"),))]


@pytest.mark.parametrize("family", ["llava", "gemma3"])  # with a tied unembedding, and with one of its own
@pytest.mark.parametrize("tuner", [{"type": "lora", "rank": 2}, {"type": "mores"}, {"type": "full"}])
def test_they_are_saved_read_again_and_taken_out(family, tuner, tmp_path):
    made = lambda: own_view() if family == "llava" else own_family_view(family)
    view, other = made(), made()
    size, before = len(other.tokenizer), logits_of(other, PLAIN)
    node = dict(tuner)
    cls = lookup("tuner", node.pop("type"))
    method = cls(cls.Params(**node) if cls.Params else None)
    method.apply(view, (), words=dict.fromkeys(WORDS))
    with torch.no_grad():
        for p in method.trainable.values():
            p.add_(0.01 * torch.randn_like(p))
    expected = logits_of(view, ASKED)
    assert len(method.rows) == {"full": 0}.get(tuner["type"], 1 + (family == "gemma3"))
    tune.save(tmp_path / "tuned", method, view)
    again = tune.load(tmp_path / "tuned", other)
    assert len(other.tokenizer) == size + len(WORDS)
    assert torch.allclose(logits_of(other, ASKED), expected, atol=1e-5)
    again.remove(other)
    assert len(other.tokenizer) == size and torch.equal(logits_of(other, PLAIN), before)


def exported(name: str, view: ModelView, folder) -> str:
    cls: type[ModelFormat] = lookup("format", name)
    return cls(cls.Params() if cls.Params else None).write(folder, view)


def test_they_are_in_an_exported_adapter_and_a_merged_model(project, tmp_path):
    run(recipe(project, "lora", tuner={"type": "lora", "rank": 2}, beside=["connector"]))
    spec = ModelSpec(path=str(project / "model"), tuned=(str(project / "lora" / "r"),))
    view = load(spec)
    expected, ids = logits_of(view, ASKED), view.encode(ASKED)
    said = exported("adapter", view, tmp_path / "adapter")
    rows = int(said.partition("(")[2].partition(")")[0])
    base = type(fresh_view().model).from_pretrained(project / "model")
    base.resize_token_embeddings(rows, mean_resizing=False)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.allclose(adapted(**ids).logits, expected, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").convert_tokens_to_ids("<zig>") in ids["input_ids"]
    exported("model", view, tmp_path / "model")
    merged = load(ModelSpec(path=str(tmp_path / "model")))
    assert torch.allclose(logits_of(merged, ASKED), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"new_tokens": ["the word"]}, "tune.new_tokens"),
        ({"new_tokens": ["<zig>", "<zig>"]}, "tune.new_tokens"),
        ({"new_tokens": ["<image>"]}, "'<image>' is a token of the model already"),
    ],
)
def test_what_cannot_be_a_new_token_is_refused_in_one_line(project, changes, why):
    for do in (plan, run):
        with pytest.raises(UserError, match=why) as told:
            do(recipe(project, "refused", **changes))
        assert "\n" not in str(told.value).strip() or "refused.yaml" in str(told.value)

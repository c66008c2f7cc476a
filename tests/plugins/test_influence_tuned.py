"""Influence on a tuner's trained part: its losses, margin and derivatives against the tuned model run one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from factory.data.prompt import Role
from factory.diagnose import Known
from factory.errors import UserError
from factory.recipe import loads
from factory.registry import lookup
from plugins.diagnostics.influence import Influences
from plugins.diagnostics.influence.learners import slope
from plugins.diagnostics.influence.tuned import Lessons, Tuned, untuned
from tests.anchor import scenes_bench
from tests.tiny import tiny_view

TUNER = {"type": "mores", "rank": 1, "layers": "every:2"}
LEARNING = {"steps": 150, "learning_rate": 3e-2, "weight_decay": 0.1}


def made(**params: Any) -> tuple[Any, Influences]:
    """A bench of few prompts on a model of two blocks, and the diagnostic of a tuner on it, acquainted with it."""
    bench, _ = scenes_bench(tiny_view(layers=2))
    cls = lookup("diagnostic", "influence")
    told = {"what": "tuner", "tuner": TUNER, "learning": LEARNING, "planted": 0.0, "removed": 0.0, "exact": 0, **params}
    diagnostic = cls(cls.Params.model_validate(told))
    few = {split: list(bench.benchmark.samples(split))[:n] for split, n in (("train", 6), ("dev", 2))}
    diagnostic.acquaint(Known(few, lambda *_: pytest.fail("no states are needed"), 0))
    return bench, diagnostic


def tuned(bench: Any, diagnostic: Influences) -> Tuned:
    assert diagnostic.part and diagnostic.known
    lessons, dev = (Lessons(bench, diagnostic.known.samples[split], "vision") for split in ("train", "dev"))
    return Tuned(diagnostic.part, bench.view, lessons, dev, diagnostic.params)


def slowly(bench: Any, sample: Any, side: str) -> Tensor:
    """log p of each answer token of one prompt, by the model as it stands."""
    batch = bench.view.encode([bench.benchmark.example(sample, "open", side)])
    log_p = bench.view.model(**batch).logits[0].double().log_softmax(-1)
    said = (batch.roles[0] == Role.ANSWER).nonzero()[:, 0].tolist()
    return torch.stack([log_p[t - 1, batch.input_ids[0, t]] for t in said])


LORA = {"type": "lora", "rank": 1, "targets": ["value"]}


@pytest.mark.parametrize("tuner", [TUNER, LORA, LORA | {"layers": "deep"}])
def test_losses_and_margin_are_those_of_the_tuned_model_one_by_one(tuner):
    bench, diagnostic = made(tuner=tuner, batch=4)
    part = diagnostic.part
    assert part is not None
    before = slowly(bench, diagnostic.known.samples["dev"][0], "vision")
    with part.put(bench.view):
        learner = tuned(bench, diagnostic)
        w = 0.1 * torch.randn(part.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        opposite = torch.tensor([True] + [False] * 5)
        losses = learner.trained(w, opposite).losses(w, torch.arange(6)).detach()
        score, own = float(learner.score(w).detach()), part.tuner.trainable
        plain, gradient = learner.trained(w, None), slope(learner, w)
        moved = plain.curved(w, gradient)
        step = 1e-2 * gradient / gradient.norm()
        differed = (plain.gradient(w + step) - plain.gradient(w - step)) / (2 * step.norm()) * gradient.norm()
        part.tuner.fill(part.theta(w))
        lessons = zip(diagnostic.known.samples["train"], opposite.tolist(), strict=True)
        truth = [-slowly(bench, s, "text" if other else "vision").mean() for s, other in lessons]
        dev = diagnostic.known.samples["dev"]
        margin = torch.stack([slowly(bench, s, "vision").sum() - slowly(bench, s, "text").sum() for s in dev]).mean()
        margin.backward()
        assert torch.allclose(losses, torch.stack(truth).detach(), atol=1e-4)
        assert score == pytest.approx(float(margin), abs=1e-4)
        each = (torch.zeros_like(p) if p.grad is None else p.grad for p in own.values())
        backward = torch.cat([grad.flatten() for grad in each])
        assert torch.allclose(gradient, backward.double(), atol=1e-3 * float(gradient.norm()))
        assert float((moved - differed).norm()) < 0.05 * float(moved.norm())
    assert torch.equal(slowly(bench, dev[0], "vision"), before), "the model is left as it was"


@pytest.mark.parametrize(
    ("tuner", "below"), [(TUNER, -1), (LORA | {"layers": "deep"}, 0), ("connector", None), ({"type": "pgm"}, -1)]
)
def test_what_no_training_changes_is_run_once(tuner, below):
    bench, diagnostic = made(tuner=tuner)
    part = diagnostic.part
    assert part is not None
    with part.put(bench.view):
        assert untuned(bench.view, part.tuner) == below


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ("{type: influence, what: tuner}", "`what: tuner` and `tuner:` go together"),
        ("{type: influence, tuner: lora}", "`what: tuner` and `tuner:` go together"),
        ("{type: influence, what: tuner, tuner: lora, dattri: [cg]}", "dattri takes no tuner"),
    ],
)
def test_what_it_cannot_tell_of_a_tuner_is_refused_when_the_recipe_is_read(node, message):
    text = f"{{name: r, model: {{zoo: tiny}}, data: scenes, steering: [none], diagnostics: [{node}]}}"
    with pytest.raises(UserError, match=message):
        loads(text)

"""What looks inside a conflict between two texts, on models that read text alone and on one that sees, against whole
runs of its prompts one by one.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from eval_suite.benchmarks.scene_texts import SceneTexts
from factory.bench import Bench
from factory.data.prompt import Role
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.instructed import InstructedParams, ask_and_look, ask_instructed, instructed
from factory.instruments.resume import answers, held_back, severed
from factory.model.view import ModelView
from factory.registry import lookup
from plugins.diagnostics.attribution import attributions
from plugins.diagnostics.knockout import PATHWAYS, effects, pathways_between
from plugins.diagnostics.logit_lens import beliefs
from plugins.diagnostics.relative_uncertainty import first_tokens
from tests.anchor import role_sets, slow_forward
from tests.plugins.test_answer_knockout import slow_answer
from tests.plugins.test_knockout import slow_nssd
from tests.plugins.test_readouts import Slow
from tests.tiny import tiny_view
from tests.tiny_families import family_view

CUTS = (("compliant->instruction", "context_a->context_b"), ("competing->generated", "context_b->question"))


def told(name: str, **params) -> tuple[Bench, list]:
    view: ModelView = tiny_view() if name == "tiny" else family_view(name)
    sizes = {"scoring": "open_ended", "per_task": {"train": 1, "dev": 1, "test": 1}, **params}
    benchmark = SceneTexts(SceneTexts.Params.model_validate(sizes))
    return Bench(view, benchmark, 1, 3), list(benchmark.samples("test"))


def one_of_each(bench: Bench, samples: list) -> list:
    """Two prompts of different samples, one toward either text."""
    params = InstructedParams(directions=("memo", "email"))
    items, _ = instructed(bench, samples, params, Dictionary(bench.view.tokenizer, DictionaryParams()))
    assert (items[0].direction, items[-1].direction) == ("memo", "email")
    return [items[0], items[-1]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "tiny"])
def test_lens_attribution_and_cuts_equal_whole_runs(name):
    bench, samples = told(name)
    view, k, items = bench.view, 3, one_of_each(bench, samples)
    asked, anchor = ask_and_look(bench, items)
    lens, parts = beliefs(view, asked, anchor, k), attributions(view, asked, anchor, k)
    cut = effects(view, asked, [path for each in CUTS for path in each], 1)
    worst = dict.fromkeys((path for each in CUTS for path in each), 0.0)
    for i, item in enumerate(items):
        slow, batch = Slow(view, item, k, "max"), view.encode([item.prompt])
        sets = role_sets(batch, item.direction)
        assert sets["context_a"] and sets["context_b"] and not sets["image"]
        before = view.logits(slow_forward(view, batch, lambda *_: False)[-1])
        for layer in range(view.depth):
            h, mid, after = slow.before[layer], slow.before[layer] + slow.a[layer], slow.after[layer]
            (c0, x0), (c1, x1), (c2, x2) = (slow.f(states, slow.instruction) for states in (h, mid, after))
            near = lambda x: pytest.approx(x, abs=1e-4)
            assert (float(lens["f_comply"][layer, i]), float(lens["f_compete"][layer, i])) == (near(c2), near(x2))
            assert float(parts["attention_margin"][layer, i]) == near(c1 - x1 - c0 + x0)
            assert float(parts["mlp_comply"][layer, i]) == near(c2 - c1)
            for path in CUTS[i]:
                source, target = (sets[role] for role in path.split("->"))
                severs = lambda at, q, key, layer=layer, s=source, t=target: at == layer and q in t and key in s
                states = slow_forward(view, batch, severs)[-1]
                expected = slow_nssd(before, view.logits(states), *answers_of(item), "before_after")
                assert float(cut.by_pathway[path][0][i, layer]) == pytest.approx(expected, abs=1e-5)
                assert bool(cut.there[path][i])
                worst[path] = max(worst[path], abs(expected))
    assert min(worst.values()) > 1e-7, "every cut does something"


def answers_of(item) -> tuple[list[int], list[int]]:
    return item.answers.comply, item.answers.compete


def test_answers_under_a_cut_are_those_of_whole_runs():
    bench, samples = told("llama")
    items, layers = one_of_each(bench, samples), range(3)
    asked = ask_instructed(bench, items)
    found = {}
    for path in ("compliant->generated", "competing->instruction"):
        rest = held_back(bench.view, asked.stem, [path.split("->")[1]], asked.directions, asked.sources)
        with severed(bench.view, rest, path, layers):
            found[path] = answers(bench.view, rest, 2)
        assert found[path] == [slow_answer(bench.view, item, path, layers, 2) for item in items]
    cls = lookup("diagnostic", "answer_knockout")
    params = {"pathways": list(found), "layers": [0, 2], "directions": ["memo", "email"]}
    rows = cls(cls.Params.model_validate(params)).on_samples(Bench(bench.view, bench.benchmark, 1, 2), samples[:2])
    assert {(r["direction"], r["pathway"]) for r in rows if r["metric"] == "follows"} == {
        (d, path) for d in ("memo", "email") for path in found
    }


def test_the_papers_pathways_stand_between_the_two_texts():
    assert PATHWAYS[-1] == "image->context"
    bench, samples = told("llama")
    cls = lookup("diagnostic", "knockout")
    params = cls.Params.model_validate({"directions": ["memo", "email"], "window": 1})
    diagnostic = cls(params).between(bench.benchmark.sources)
    rows = diagnostic.on_samples(bench, samples[:2])
    assert {r["pathway"] for r in rows} - {None} == set(pathways_between(bench.benchmark.sources))
    summary = diagnostic.summary([{**r, "split": "test", "outcome": "follow"} for r in rows])
    said = " ".join(f.text for f in summary.findings)
    assert "context_a → context_b" in said and "memo:" in said and "email:" in said
    assert not any(word in said for word in ("image", "vision", "modalit"))
    assert not cls.needs_pictures(params) and cls.needs_pictures(cls.Params(pathways=("cues->image",)))


@pytest.mark.parametrize("name", ["gpt2", "tiny"])
def test_relative_uncertainty_is_that_of_either_text_alone(name):
    bench, samples = told(name)
    view, b, samples = bench.view, bench.benchmark, samples[:2]
    cls = lookup("diagnostic", "relative_uncertainty")
    diagnostic = cls(cls.Params(draws=20)).between(b.sources)
    rows = diagnostic.on_samples(bench, samples)
    found = {(r["sample"], r["metric"], r["layer"]): r["value"] for r in rows}
    for sample in samples:
        H, get = {}, lambda metric, layer=None, s=sample: found[s.id, metric, layer]
        for setting, gone in (("a", Role.CONTEXT), ("b", Role.CONTEXT_A), ("both", Role.SYSTEM)):
            with torch.no_grad():
                batch = view.encode([b.prompt(sample, "open").without(gone)])
                out = view.model(**batch, output_hidden_states=True)
            p = out.logits[0, -1].double().softmax(-1)
            H[setting] = -sum(float(x) * math.log(float(x)) for x in p if x > 0)
        assert get("H_a") == pytest.approx(H["a"], abs=1e-4) and get("H_b") == pytest.approx(H["b"], abs=1e-4)
        assert get("dH_rel") == pytest.approx(2 * (H["b"] - H["a"]) / (H["a"] + H["b"]), abs=1e-4)
        assert get("confidence") == pytest.approx(float(p.max()), abs=1e-5)
        memo, email = (first_tokens(view, b.example(sample, "open", side)) for side in ("memo", "email"))
        said = []
        for layer in range(view.depth):
            h = out.hidden_states[layer + 1][0, -1]
            z = view.unembed(h if layer == view.depth - 1 else view.norm(h))
            margin = max(float(z[i]) for i in email) - max(float(z[i]) for i in memo)
            assert get("logit_difference", layer) == pytest.approx(margin, abs=1e-3)
            said += [side for side, ids in (("memo", memo), ("email", email)) if int(z.argmax()) in ids]
        assert get("oscillations") == sum(a != c for a, c in pairwise(said))
    assert "H_v" not in {r["metric"] for r in rows}


def test_the_story_of_two_texts_bears_their_names():
    cls = lookup("diagnostic", "relative_uncertainty")
    diagnostic = cls(cls.Params(draws=50)).between(SceneTexts.sources_of(SceneTexts.Params()))
    rows = []
    for i in range(120):
        x = (i - 60) / 40
        values = {
            "H_a": 1 - x / 4,
            "H_b": 1 + x / 4,
            "dH_rel": x,
            "known": 1.0,
            "second": float(x + (i % 5) / 10 < 0.4),
        }
        values |= {"confidence": 0.5, "oscillations": 1.0 * (i % 2)}
        rows += [{"sample": str(i), "form": "open", "metric": k, "layer": None, "value": v} for k, v in values.items()]
        rows += [
            {"sample": str(i), "form": "open", "metric": "logit_difference", "layer": layer, "value": -x}
            for layer in range(2)
        ]
    summary = diagnostic.summary(rows)
    said = " ".join([*(f.text for f in summary.findings), *(f.caption for f in summary.figures)])
    assert "leans to email" in said and "P(email) falls as the email grows" in said and "either text alone" in said
    assert not any(word in said for word in ("image", "vision", "modalit"))
    [dH, _] = summary.predictors
    assert (dH.toward(0.5, "email"), dH.toward(0.5, "memo")) == (0.5, -0.5)

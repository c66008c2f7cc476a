"""Logit lens, attributions and head margins against slow, obvious implementations; the head map against one run per
head.
"""

from __future__ import annotations

import copy

import pytest
import torch

from factory.data.prompt import Role
from factory.instruments.instructed import ask_and_look
from factory.instruments.silence import silenced
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.registry import lookup
from plugins.diagnostics.attribution import attributions
from plugins.diagnostics.heads import head_margins, knockout_map
from plugins.diagnostics.knockout import effects
from plugins.diagnostics.logit_lens import beliefs
from tests.anchor import mixed_items, role_sets, scenes_bench, slow_forward
from tests.contract.cases import random_states
from tests.plugins.test_knockout import slow_nssd
from tests.tiny import tiny_view
from tests.tiny_families import family_view


class Slow:
    """One prompt run whole and alone, every token's residual stream kept, every read-out over the whole vocabulary."""

    def __init__(self, view, item, k: int, pool: str) -> None:
        self.view, self.item, self.k, self.pool = view, item, k, pool
        batch = view.encode([item.prompt])
        self.instruction = [i for i, r in enumerate(batch.roles[0].tolist()) if r == Role.INSTRUCTION]
        self.before, self.a, self.x, self.after = [], [], [], []
        handles = []
        for i, block in enumerate(view.layers):
            handles += [
                block.register_forward_pre_hook(lambda m, args: self.before.append(args[0][0].clone())),
                view.attention(i).register_forward_hook(lambda m, args, out: self.a.append(out[0][0].clone())),
                view.o_proj(i).register_forward_pre_hook(lambda m, args: self.x.append(args[0][0].clone())),
                block.register_forward_hook(lambda m, args, out: self.after.append(out[0].clone())),
            ]
        with torch.no_grad():
            view.core(**batch, position_ids=batch.position_ids, use_cache=False)
        for handle in handles:
            handle.remove()

    def f(self, h, tokens, k: int | None = None) -> tuple[float, float]:
        logits = self.view.unembed(self.view.norm(h)).double()
        out = []
        for entries in (self.item.answers.comply, self.item.answers.compete):
            z = []
            for t in tokens:
                values = [float(logits[t, e]) for e in entries]
                z.append(max(values) if self.pool == "max" else sum(values) / len(values))
            best = sorted(z, reverse=True)[: k or self.k]
            out.append(sum(best) / len(best))
        return out[0], out[1]

    def margin(self, h) -> float:
        comply, compete = self.f(h, self.instruction)
        return comply - compete

    def head(self, layer: int, n: int):
        width = self.view.head_dim
        alone = torch.zeros_like(self.x[layer])
        alone[:, n * width : (n + 1) * width] = self.x[layer][:, n * width : (n + 1) * width]
        with torch.no_grad():
            return self.view.o_proj(layer)(alone)


def in_double(view: ModelView) -> ModelView:
    """The same model in float64: there two ways of one computation agree to the last digits, and a real difference
    shows.
    """
    return ModelView(copy.deepcopy(view.model).double(), view.processor, view.family)


FAMILIES = ("qwen2_5_vl", "internvl", "llava_next")
READ = [  # which model, k, how forms are pooled
    *((lambda h=h: tiny_view(heads=4, kv_heads=h), k, pool) for h, k, pool in ((2, 3, "max"), (4, 100, "mean"))),
    *((lambda name=name: family_view(name), 3, "max") for name in FAMILIES),
]


@pytest.mark.parametrize(("make", "k", "pool"), READ, ids=["gqa", "mha", *FAMILIES])
@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-5), (True, 1e-11)], ids=["float32", "float64"])
def test_every_readout_equals_the_slow_one(make, k, pool, double, tolerance):
    """Prompts of different lengths, of several images and orders; a prompt in the slow way runs alone."""
    view = in_double(make()) if double else make()
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:3]
    asked, anchor = ask_and_look(bench, items)
    lens, parts, margins = (
        beliefs(view, asked, anchor, k, pool),
        attributions(view, asked, anchor, k, pool),
        head_margins(view, asked, anchor, k, pool),
    )
    near = lambda x: pytest.approx(x, abs=tolerance)
    for i, item in enumerate(items):
        slow = Slow(view, item, k, pool)
        for layer in range(view.depth):
            before, mid, after = slow.before[layer], slow.before[layer] + slow.a[layer], slow.after[layer]
            (c0, x0), (c1, x1), (c2, x2) = (slow.f(h, slow.instruction) for h in (before, mid, after))
            assert (float(lens["f_comply"][layer, i]), float(lens["f_compete"][layer, i])) == (near(c2), near(x2))
            c_last, x_last = slow.f(after, [len(after) - 1], 1)
            assert bool(lens["synchronised"][layer, i]) == ((c2 > x2) == (c_last > x_last))
            wanted = {"attention_comply": c1 - c0, "attention_compete": x1 - x0, "attention_margin": c1 - x1 - c0 + x0}
            wanted |= {"mlp_comply": c2 - c1, "mlp_compete": x2 - x1, "mlp_margin": c2 - x2 - c1 + x1}
            for name, value in wanted.items():
                assert float(parts[name][layer, i]) == near(value), name
            for n in range(view.heads):
                assert float(margins[i, layer, n]) == near(
                    slow.margin(before + slow.head(layer, n)) - slow.margin(before)
                )


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_head_map_equals_one_whole_run_per_head(kv_heads):
    view = tiny_view(kv_heads=kv_heads)
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:3]
    asked, _ = ask_and_look(bench, items)
    states, values = silenced(view, asked.stem), knockout_map(view, asked)
    for i, item in enumerate(items):
        batch = view.encode([item.prompt])
        last = batch.input_ids.shape[1] - 1
        before = view.logits(slow_forward(view, batch, lambda *_: False)[-1])
        for layer in range(view.depth):
            for head in range(view.heads):
                state = slow_forward(view, batch, lambda *_: False, {(layer, head, last)})[-1]
                assert torch.allclose(states[i, layer, head], state, atol=1e-5 * float(state.abs().max()))
                expected = slow_nssd(
                    before, view.logits(state), item.answers.comply, item.answers.compete, "before_after"
                )
                assert float(values[i, layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert float(values.abs().max()) > 1e-3


def test_the_head_map_costs_less_than_a_second_prefill():
    view = tiny_view()
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:2]
    worked = []
    handles = [block.register_forward_hook(lambda m, args, out: worked.append(out.shape[1])) for block in view.layers]
    try:
        stem = ask_and_look(bench, items)[0].stem
        worked.clear()
        silenced(view, stem)
    finally:
        for handle in handles:
            handle.remove()
    assert sum(worked) <= view.depth * stem.batch.input_ids.shape[1]
    assert sum(worked) == view.depth + view.heads * view.depth * (view.depth + 1) // 2


@pytest.mark.parametrize("name", ["logit_lens", "attribution", "heads"])
def test_rows_cover_layers_and_directions_and_make_a_summary(name):
    bench, samples = scenes_bench()
    cls = lookup("diagnostic", name)
    rows = cls(cls.Params()).on_samples(bench, samples)
    assert {r["direction"] for r in rows} == {"vision", "text"} and {r["layer"] for r in rows} == {0, 1, 2}
    assert len({(r["sample"], r["form"], r["direction"], r["metric"], r["layer"], r["head"]) for r in rows}) == len(
        rows
    )
    for outcome in ("follow", "compete", "other"):
        summary = cls(cls.Params()).summary([{**r, "outcome": outcome, "split": "test"} for r in rows])
        assert summary.record() and bool(summary.figures) == (
            outcome == "follow" or (outcome == "compete" and name != "heads")
        )


def test_blocks_that_rescale_what_they_add_are_refused():
    from factory.errors import UserError

    view = tiny_view.__wrapped__()
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:1]
    handle = view.layers[1].register_forward_hook(lambda m, args, out: out * 1.5)
    try:
        with pytest.raises(UserError, match="residual stream"):
            ask_and_look(bench, items)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_cuts_and_silence_of_other_families_equal_whole_runs(name):
    view = family_view(name)
    bench, samples = scenes_bench(view)
    items = mixed_items(bench, samples)[:3]
    asked, _ = ask_and_look(bench, items)
    states = silenced(view, asked.stem)
    pathways = ("compliant->instruction", "image->context", "cues->generated")
    cut = effects(view, asked, pathways, 1).by_pathway
    for i, item in enumerate(items):
        batch = view.encode([item.prompt])
        last, sets = batch.input_ids.shape[1] - 1, role_sets(batch, item.direction)
        before = view.logits(slow_forward(view, batch, lambda *_: False)[-1])
        for layer in range(view.depth):
            state = slow_forward(view, batch, lambda *_: False, {(layer, 1, last)})[-1]
            assert torch.allclose(states[i, layer, 1], state, atol=1e-5 * float(state.abs().max()))
            source, target = (sets[name] for name in pathways[i].split("->"))
            after = view.logits(
                slow_forward(
                    view, batch, lambda at, q, k, layer=layer, s=source, t=target: at == layer and q in t and k in s
                )[-1]
            )
            assert float(cut[pathways[i]][0][i, layer]) == pytest.approx(
                slow_nssd(before, after, item.answers.comply, item.answers.compete, "before_after"), abs=1e-5
            )


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("knockout", {}),
        ("logit_lens", {"directions": ("text",)}),
        ("heads", {}),
        ("answer_knockout", {}),
        ("intervention", {}),
        ("intervention", {"alone": False}),
        ("captions", {}),
    ],
)
def test_the_plan_counts_the_whole_prompts_that_are_run(name, params, monkeypatch):
    run = []
    monkeypatch.setattr(
        "factory.instruments.branch.prefill", lambda view, batch: run.append(batch.size) or prefill(view, batch)
    )
    bench, samples = scenes_bench()
    cls = lookup("diagnostic", name)
    diagnostic = cls(cls.Params(**params))
    diagnostic.learn(random_states().found)
    diagnostic.on_samples(bench, samples)
    assert sum(run) == diagnostic.whole_prompts([s.id for s in samples])

"""A decoder as a graph: the parts add up to the model, on every family; an exchanged edge is what a slow loop gives."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from factory.errors import UserError
from factory.instruments.circuit.edits import GROUPS
from factory.instruments.circuit.graph import Graph
from factory.instruments.circuit.machine import Machine
from factory.model.attention import attention
from factory.registry import lookup
from tests.contract import cases
from tests.slow_circuit import slow_run
from tests.tiny import conflict_prompts, fresh_view, shown, tiny_view
from tests.tiny_families import BUILDERS, family_view

IN_COLUMNS = [name for name in BUILDERS if not lookup("family", name).columnless]
VIEWS = {"tiny": tiny_view, **{name: (lambda name=name: family_view(name)) for name in IN_COLUMNS}}
CAPPED = ("gemma2",)  # its attention cannot be replaced by one that looks at what it is given


def batch_of(view, n=3, seed=0):
    return view.encode(shown(view, conflict_prompts(n, seed=seed)))


def margins(view, hidden):
    z = view.logits(hidden)
    return z[..., 5] - z[..., 7]


@pytest.mark.parametrize("name", VIEWS)
def test_margins_through_the_graph_are_the_models_own(name):
    view = VIEWS[name]()
    batch = batch_of(view)
    with torch.no_grad():
        own = view.model(**batch, position_ids=batch.position_ids).logits[:, -1].float()
        ours = margins(view, Machine(view, batch).summed(batch))
    assert torch.allclose(own[:, 5] - own[:, 7], ours, atol=1e-5 * max(1.0, float(own.abs().max())), rtol=0)


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in CAPPED])
def test_each_receiver_is_the_head_that_its_name_says(name):
    """Only the named head's queries, keys or values change when what it reads does: grouped heads and fused maps."""
    view = VIEWS[name]()
    batch = batch_of(view, 1)
    machine, given = Machine(view, batch), {}
    trace, layer = machine.trace(batch), 1

    def attend(module, q, k, v, mask, **options):
        given.setdefault(module.layer_idx, []).append((q, k, v))
        return sdpa_attention_forward(module, q, k, v, mask, **options)

    wanted = [v for v, r in enumerate(machine.graph.receivers) if r.layer == layer and r.kind in "qkv"]
    absent = torch.zeros(len(wanted), *machine.graph.allowed.shape, dtype=torch.bool)
    for row, v in enumerate(wanted):
        absent[row, v] = machine.graph.allowed[v]
    with attention(view, attend):
        for row in [torch.zeros_like(absent[:1]), *absent[:, None]]:
            machine.exchanged(trace, replace(trace, values=-trace.values), row, start=0)
    plain, *changed = given[layer]
    for v, parts in zip(wanted, changed, strict=True):
        receiver = machine.graph.receivers[v]
        moved = {
            (part, n)
            for part, a, b in zip("qkv", plain, parts, strict=True)
            for n in range(a.shape[1])
            if not torch.allclose(a[:, n], b[:, n], atol=1e-5 * float(a.abs().max()))
        }
        assert moved == {(receiver.kind, receiver.index)}


def test_exchanged_edges_are_those_of_a_slow_loop():
    view, rng = tiny_view(), Random(0)
    prompts = conflict_prompts(1), conflict_prompts(1)
    batches = [view.encode(p) for p in prompts]
    machine = Machine(view, batches[0])
    clean = machine.trace(batches[0])
    embeds = clean.call["inputs_embeds"][0]
    swapped = embeds.roll(1, 0) * 0.7  # any other run of the same length
    hidden, added = slow_run(view, embeds)
    assert torch.allclose(hidden, clean.hidden[0], atol=1e-4)
    names = [s.name for s in machine.graph.senders]
    assert torch.allclose(torch.stack([added[n] for n in names]), clean.values[:, 0], atol=1e-3)
    other = slow_run(view, swapped)[1]
    values = torch.stack([other[n] for n in names])[:, None]
    edges, gates = machine.graph.edges, clean.gates
    groups = gates[:, 0].int().argmax(0).tolist()
    for by_group in (False, True):
        for count in (1, 5, 60, 185):
            chosen = rng.sample(edges, count)
            absent = torch.zeros(1, *machine.graph.allowed.shape, len(GROUPS), dtype=torch.bool)
            cut: dict[str, set] = {}
            for v, u in chosen:
                which = rng.sample(range(len(GROUPS)), 2) if by_group else range(len(GROUPS))
                absent[0, v, u, list(which)] = True
                told = cut.setdefault(machine.graph.receivers[v].name, set())
                told |= {(names[u], t) for t, g in enumerate(groups) if g in which}
            slow = slow_run(view, embeds, cut, other)[0]
            ours = machine.exchanged(
                clean, replace(clean, values=values), *((absent, gates) if by_group else (absent[..., 0],))
            )
            assert torch.allclose(ours[0, 0], slow, atol=1e-4 * max(1.0, float(slow.abs().max())))


def test_rows_are_what_each_row_is_alone_and_from_any_block_on():
    view = family_view("qwen3_vl")  # positions of three axes, and features added between blocks
    batch = batch_of(view)
    machine = Machine(view, batch)
    clean = machine.trace(batch)
    other = replace(clean, values=clean.values.roll(1, 1))
    rng = torch.Generator().manual_seed(0)
    last = [v for v, r in enumerate(machine.graph.receivers) if r.layer >= 1]
    absent = torch.zeros(4, *machine.graph.allowed.shape, dtype=torch.bool)
    absent[:, last] = (torch.rand(4, len(last), absent.shape[-1], generator=rng) < 0.3) & machine.graph.allowed[last]
    together = machine.exchanged(clean, other, absent)
    alone = torch.cat([machine.exchanged(clean, other, row[None], start=0) for row in absent])
    assert machine.first_changed(absent) == 1 and machine.graph.added == (1, 2)
    assert torch.allclose(together, alone, atol=1e-4) and not torch.allclose(together[0], together[1], atol=1e-3)


def test_with_every_edge_exchanged_the_other_run_answers():
    view = tiny_view()
    a, b = (view.encode([p]) for p in (conflict_prompts(1)[0], conflict_prompts(1)[0]))
    b.images["pixel_values"] = b.images["pixel_values"].flip(-1)
    machine = Machine(view, a)
    clean, other = machine.trace(a), machine.trace(b)
    assert not torch.allclose(clean.hidden, other.hidden, atol=1e-2)
    every = machine.exchanged(clean, other, machine.graph.allowed[None])
    assert torch.allclose(every[0], other.hidden, atol=1e-4)
    none = machine.exchanged(clean, other, torch.zeros_like(machine.graph.allowed)[None])
    assert torch.equal(none[0], clean.hidden)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "gemma", "phi"])
def test_attributions_are_derivatives(name):
    """Against the central difference of the margin as an edge is exchanged by a small part."""
    view = tiny_view(dtype=torch.float64) if name == "tiny" else family_view(name, torch.float64)
    batch = batch_of(view, 2)
    machine = Machine(view, batch)
    clean = machine.trace(batch)
    other = replace(clean, values=clean.values.roll(1, 1) * 0.5)
    direction = torch.randn(view.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    margin = lambda hidden: hidden @ direction
    scores = machine.attributed(clean, other, margin, clean.gates)
    whole = machine.attributed(clean, other, margin)[..., 0]
    assert torch.allclose(scores.sum(-1), whole, atol=1e-9) and scores.shape[-1] == len(GROUPS)
    step, near = (1e-5, 1e-5) if name == "gpt2" else (2e-3, 2e-2)  # RMS norms of transformers are of float32 throughout
    for v, u in Random(1).sample(machine.graph.edges, 12):
        part = torch.zeros(2, *machine.graph.allowed.shape, dtype=torch.float64)
        part[0, v, u], part[1, v, u] = step, -step
        up, down = margin(machine.exchanged(clean, other, part)).mean(-1)
        assert float(whole[v, u]) == pytest.approx(float(up - down) / (2 * step), rel=near, abs=near / 10)
    assert not whole[~machine.graph.allowed].any()


def test_gradients_are_taken_between_the_runs():
    """At share 0 the inputs are the other run's: what is attributed is its gradient."""
    view = tiny_view(dtype=torch.float64)
    a, b = batch_of(view, 1), batch_of(view, 1)
    b.images["pixel_values"] = b.images["pixel_values"].flip(-1)
    machine = Machine(view, a)
    clean, other = machine.trace(a), machine.trace(b)
    margin = lambda hidden: hidden[..., 0] ** 2
    there = machine.attributed(clean, other, margin, share=0.0)
    back = machine.attributed(other, clean, margin)
    assert torch.allclose(there, -back, atol=1e-9)


def test_nothing_is_left_on_the_model_and_no_gradient_is_kept():
    view = fresh_view()
    batch = batch_of(view, 1)
    cases.logits(view, conflict_prompts(1))
    before = cases.traces(view)
    machine = Machine(view, batch)
    clean = machine.trace(batch)
    machine.attributed(clean, clean, lambda hidden: hidden.sum(-1))
    machine.exchanged(clean, clean, machine.graph.allowed[None])
    assert cases.traces(view) == before
    assert all(p.grad is None for p in view.model.parameters())


def test_edges_have_names_and_lie_on_paths():
    graph = Graph(2, 2, 1)
    assert len(graph.edges) == 1 * 4 + 3 + 4 * 4 + 6 + 7
    assert graph.name(graph.edge("a0.h1->a1.k0")) == "a0.h1->a1.k0"
    with pytest.raises(KeyError):
        graph.edge("a1.h0->a0.q0")
    kept = torch.zeros_like(graph.allowed)
    for name in ("input->a0.v0", "a0.h1->m1", "m1->logits", "input->m0", "a1.h0->logits"):
        kept[graph.edge(name)] = True
    found = [graph.name(e) for e in graph.edges if graph.connected(kept)[e]]
    assert found == ["input->a0.v0", "a0.h1->m1", "m1->logits"]


def test_one_norm_over_all_heads_lets_each_move_the_others():
    plain, coupled = (Graph(1, 4, 2, coupled=given) for given in ((), (True,)))
    named = lambda graph, v: [graph.senders[u].name for u in graph.moves(v)]
    q1, k0, mlp, logits = 1, 4, 8, 9
    assert named(plain, q1) == ["a0.h1"] and named(plain, k0) == ["a0.h0", "a0.h1"]
    assert named(coupled, q1) == named(coupled, k0) == ["a0.h0", "a0.h1", "a0.h2", "a0.h3"]
    assert named(coupled, mlp) == ["m0"] and not coupled.moves(logits)


def test_parallel_blocks_have_no_edge_from_their_heads_to_their_mlp():
    graph = Machine(view := family_view("phi"), batch_of(view)).graph
    names = {graph.name(e) for e in graph.edges}
    assert "a1.h0->m1" not in names and "a0.h0->m1" in names and "a1.h0->logits" in names


def test_blocks_are_told_apart_where_the_stream_is_far_larger_than_what_is_added():
    view = fresh_view()
    with torch.no_grad():
        view.model.get_input_embeddings().weight.mul_(300)
    view.model.to(torch.bfloat16)
    assert Machine(view, batch_of(view)).graph.parallel == (False, False, False)


def test_a_model_on_several_devices_is_refused_by_name():
    view = fresh_view()
    view.layers[1]._hf_hook = SimpleNamespace(execution_device="meta")
    with pytest.raises(UserError, match="LlamaModel is spread over devices"):
        Machine(view, batch_of(view))


def test_blocks_that_add_otherwise_are_refused_by_name():
    view = fresh_view()
    block = view.layers[1]
    plain = block.forward
    block.forward = lambda *args, **kwargs: plain(*args, **kwargs) * 1.5
    with pytest.raises(UserError, match="LlamaDecoderLayer: its output is not its input plus"):
        Machine(view, batch_of(view))


def test_queries_that_come_of_unknown_modules_are_refused_by_name():
    view = fresh_view()
    attn = view.layers[0].self_attn
    attn.q_proj = nn.Sequential(nn.Linear(48, 8, bias=False), nn.Linear(8, 48, bias=False))
    with pytest.raises(UserError, match="queries, keys and values come of modules that are not known"):
        Machine(view, batch_of(view))

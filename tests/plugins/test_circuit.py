"""Circuits: a hand-set one is found, decisions are those of a plain loop, precisions are those of slow references."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from eval_suite.report.findings import write_tables
from factory.data.prompt import Role
from factory.diagnose import ALL
from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.registry import lookup
from plugins.diagnostics.circuit.curve import area, at_random, faithfulness, top
from plugins.diagnostics.circuit.ground import Lower, ground, in_precision, means
from plugins.diagnostics.circuit.pairs import twins
from plugins.diagnostics.circuit.precision import Lowered, e4m3, lowered, nearest, trying
from plugins.diagnostics.circuit.search import Rule, acdc, eap, eap_ig, exact
from tests.anchor import scenes_bench
from tests.contract import cases
from tests.slow_circuit import slow_run
from tests.tiny import fresh_view, tiny_view
from tests.tiny_families import family_view

CIRCUIT = lookup("diagnostic", "circuit")
PLANTED = {"input->a0.v0", "a0.h1->a1.v1", "a1.h2->logits"}


def pairs_of(view, how="picture", n=4):
    bench, samples = scenes_bench(view)
    found, _ = twins(bench, samples, samples, how, Dictionary(view.tokenizer, DictionaryParams()))
    return found[:n]


@pytest.fixture(scope="module")
def made():
    """Of two blocks, so that a loop over all edges, a forward each, is short."""
    view = tiny_view(layers=2)
    return ground(view, pairs_of(view, n=2), "picture")


@torch.no_grad()
def planted_view():
    """The picture reaches the answer by one way alone: block 0's head 1 moves it into the dimensions A, block 1's head
    2 from A into B, and the answers' words read B. Dimension 0 is large everywhere, so that norms change nothing.
    """
    view = fresh_view()
    rng = torch.Generator().manual_seed(1)
    D, A, B = view.head_dim, slice(12, 24), slice(24, 36)
    for block in view.layers:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    words = view.model.get_input_embeddings().weight
    words[:, A] = 0
    words[:, B] = torch.randn(words[:, B].shape, generator=rng)
    words[:, 0] = 100
    last = [m for m in view.connector.modules() if isinstance(m, nn.Linear)][-1]
    last.weight[0], last.bias[0] = 0, 100
    for free in (A, B):
        last.weight[free], last.bias[free] = 0, 0
    first, second = view.layers[0].self_attn, view.layers[1].self_attn
    first.v_proj.weight[:D, 36:] = 3 * torch.randn(D, 12, generator=rng)
    first.o_proj.weight[A, D : 2 * D] = torch.eye(D) * 5
    second.v_proj.weight[D : 2 * D, A] = torch.eye(D) * 20
    second.o_proj.weight[B, 2 * D : 3 * D] = torch.eye(D) * 20
    return view


def names(graph, kept):
    return {graph.name((v, u)) for v, u in kept.nonzero().tolist()}


def test_a_hand_set_circuit_is_found_exactly():
    view = planted_view()
    g = ground(view, pairs_of(view, n=6), "picture")
    graph = g.machine.graph
    scores = exact(g, 16)[..., 0]
    assert names(graph, scores.abs() > 0.05) == PLANTED
    assert all(float(scores[graph.edge(name)]) == pytest.approx(1, abs=0.05) for name in PLANTED)
    assert names(graph, top(graph, eap_ig(g, 5).sum(-1).abs(), 3)) == PLANTED
    assert names(graph, top(graph, eap(g).sum(-1), 3)) == PLANTED
    for rows in (1, 16):
        found = acdc(g, Rule(0.1), rows)
        assert names(graph, found.kept) == PLANTED
        assert (found.count.spared > len(graph.edges) / 2) == (rows > 1)
    held = ground(view, pairs_of(view, n=8)[6:], "picture", g.machine)
    kept = acdc(g, Rule(0.1), 16).kept
    alone, without = faithfulness(held, [kept, graph.allowed & ~kept], 4)
    assert alone == pytest.approx(1, abs=0.1) and without == pytest.approx(0, abs=0.1)
    roles = eap_ig(g, 5)
    assert int(roles[graph.edge("input->a0.v0")].abs().argmax()) == 0, "read at the picture's tokens"


def plain_acdc(g, tau, absolute, order):
    """ACDC as its authors' loop, every forward whole and of one row."""
    graph, log = g.machine.graph, []
    absent = torch.zeros_like(graph.allowed)
    m = float(g.shares(absent[None], None, 0))
    for v in range(len(graph.receivers) - 1, -1, -1):
        senders = [u for u in range(len(graph.senders)) if graph.allowed[v, u]]
        for u in reversed(senders) if order == "reverse" else senders:
            absent[v, u] = True
            after = float(g.shares(absent[None], None, 0))
            gone = (abs(after - m) if absolute else m - after) < tau
            log.append(((v, u), after, m, gone))
            if gone:
                m = after
            else:
                absent[v, u] = False
    return log, graph.allowed & ~absent


@pytest.mark.parametrize("absolute, order, tau", [(True, "reverse", 0.05), (False, "normal", 0.02)])
def test_decisions_are_those_of_the_loop_however_many_rows_are_guessed(made, absolute, order, tau):
    rule = Rule(tau, absolute)
    log, kept = plain_acdc(made, tau, absolute, order)
    alone = acdc(made, rule, 1, order=order, whole_forwards=True)
    assert alone.log == log and torch.equal(alone.kept, kept), "the same bits at one row"
    assert 0 < int(kept.sum()) < len(log)
    for rows, guess in ((4, None), (16, eap(made).sum(-1).abs() < tau), (5, ~kept)):
        found = acdc(made, rule, rows, guess, order)
        assert torch.equal(found.kept, kept)
        assert [(edge, gone) for edge, _, _, gone in found.log] == [(edge, gone) for edge, _, _, gone in log]
        right = rows == 5  # every guess was right
        assert found.count.rows < len(log) + (2 * len(log) if not right else 30) and (found.count.again == 0) == right
        assert found.count.blocks < alone.count.blocks or not right


def test_exact_scores_are_those_of_one_edge_at_a_time(made):
    graph, whole = made.machine.graph, made.whole()
    scores, by_role = exact(made, 16)[..., 0], exact(made, 16, by_role=True)
    for v, u in graph.edges[::17]:
        absent = torch.zeros_like(graph.allowed)
        absent[v, u] = True
        assert float(scores[v, u]) == pytest.approx(whole - float(made.shares(absent[None], None, 0)), abs=1e-4)
        part = torch.zeros(1, *graph.allowed.shape, by_role.shape[-1], dtype=torch.bool)
        part[0, v, u, 0] = True
        assert float(by_role[v, u, 0]) == pytest.approx(whole - float(made.shares(part, made.clean.gates, 0)), abs=1e-4)


def test_the_margin_and_the_gap_are_those_of_the_two_prompts_run_whole(made):
    view = made.view
    gaps = []
    for i, twin in enumerate(pairs_of(view, n=2)):
        m = []
        for prompt in (twin.clean, twin.corrupted):
            batch = view.encode([prompt])
            with torch.no_grad():
                z = view.model(**batch, position_ids=batch.position_ids).logits[0, -1]
            m.append(float(z[list(twin.answers.comply)].max() - z[list(twin.answers.compete)].max()))
        assert float(made.margin(made.clean.hidden)[i]) == pytest.approx(m[0], abs=1e-3)
        gaps.append(m[0] - m[1])
    assert made.gap == pytest.approx(sum(gaps) / 2, abs=1e-3)


def test_pictures_and_contexts_are_exchanged_for_the_agreeing_ones():
    bench, samples = scenes_bench()
    words = Dictionary(bench.view.tokenizer, DictionaryParams())
    for twin in twins(bench, samples, samples, "picture", words)[0]:
        same = [a == b for a, b in zip(twin.clean.segments, twin.corrupted.segments, strict=True)]
        assert [s.role for s, alike in zip(twin.clean.segments, same, strict=True) if not alike] == [Role.IMAGE]
    other = replace(samples[0], id="x", answer_vision=samples[0].answer_text, answer_text="nothing")
    bare = copy.copy(bench.benchmark)
    bare.picture_with = lambda sample, answer: None
    told = twins(replace(bench, benchmark=bare), samples[:2], [*samples, other], "picture", words)
    assert [t.sample.id for t in told[0]] == [samples[0].id]
    assert told[0][0].corrupted.images[0].tobytes() == samples[0].load_image().tobytes(), "of the sample that stands in"
    assert told[1][0][2] == "no picture shows the text's answer"
    sample = replace(samples[0], context=f"It is {samples[0].answer_text}, truly.")
    found, without = twins(bench, [sample], [], "context", words)
    if found:
        assert f"It is {sample.answer_vision}, truly." in "".join(s.text for s in found[0].corrupted.segments)
    else:
        assert without[0][2] == "the two runs have other tokens"
    assert twins(bench, [replace(samples[0], context="?")], [], "context", words)[1][0][2] == (
        "its context does not name its answer"
    )


def test_zero_and_mean_are_exchanged_without_another_prompt():
    found = pairs_of(tiny_view(), "mean", 3)
    g = ground(tiny_view(), found, "mean")
    gate, values = g.clean.gates[0], g.clean.values
    u = 5
    expected = values[u][gate].mean(0)
    assert torch.allclose(means(g.clean)[u][gate][3], expected) and all(t.corrupted is None for t in found)
    zero = ground(tiny_view(), found, "zero")
    assert not zero.other.values.any() and zero.gap != g.gap


def test_e4m3_is_the_nearest_that_it_holds():
    held = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    held = held[held.isfinite()]
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-3], [1.0], [1e4]])
    ours = e4m3(x, -1)
    for row, low in zip(x, ours, strict=True):
        scale = float(row.abs().max()) / 448
        nearest_of = (row[:, None] / scale - held).abs().amin(-1) * scale
        assert torch.allclose((low - row).abs(), nearest_of, rtol=1e-4, atol=1e-6 * float(row.abs().max()))
    assert torch.equal(e4m3(torch.zeros(2, 3), -1), torch.zeros(2, 3)) and ours.isfinite().all()


def test_rounding_to_nearest_by_hand():
    w = torch.tensor([[0.7, -0.26, 0.04]])
    assert torch.allclose(nearest(w, 4, 1), torch.tensor([[0.7, -0.3, 0.0]]))  # steps of 0.1
    assert torch.allclose(nearest(w, 8, 1), (w / (0.7 / 127)).round() * (0.7 / 127))


def test_rtn_is_a_model_with_rounded_weights():
    view, low = fresh_view(), lowered(tiny_view(), "rtn4")
    D = view.head_dim
    by_hand = lambda w: (w / (w.abs().max() / 7)).round().clamp(-7, 7) * (w.abs().max() / 7)
    with torch.no_grad():
        for block in view.layers:
            attn = block.self_attn
            for m in (attn.q_proj, attn.k_proj, attn.v_proj):
                for h in range(len(m.weight) // D):
                    m.weight[h * D : (h + 1) * D] = by_hand(m.weight[h * D : (h + 1) * D])
            for h in range(view.heads):
                attn.o_proj.weight[:, h * D : (h + 1) * D] = by_hand(attn.o_proj.weight[:, h * D : (h + 1) * D])
            for m in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                for i in range(len(m.weight)):
                    m.weight[i] = by_hand(m.weight[i])
    found = pairs_of(tiny_view(), n=2)
    g = ground(tiny_view(), found, "picture")
    lower = in_precision(g, found, "picture", low)
    expected = ground(view, found, "picture").clean.hidden
    assert torch.allclose(lower.clean.hidden, expected, atol=1e-4)
    assert not torch.allclose(lower.clean.hidden, g.clean.hidden, atol=1e-2)


def test_pahq_keeps_the_head_that_is_tried_and_lowers_all_others():
    view = tiny_view()
    found = pairs_of(view, n=1)
    g = ground(view, found, "picture")
    graph, group = g.machine.graph, view.heads // view.kv_heads
    low = Lowered(view, "pahq")
    v = graph.edge("input->a1.k1")[0]
    kept = {(1, 2), (1, 3)}
    assert trying(low, graph, v).kept == kept and trying(low, graph, graph.edge("input->a1.q2")[0]).kept == {(1, 2)}
    assert trying(low, graph, graph.edge("input->m1")[0]).kept == frozenset()

    def maps(part, i, n, x, W):
        own = {h // group if part in "kv" else h for layer, h in kept if layer == i}
        return x @ W.T if n in own else e4m3(x, -1) @ e4m3(W, (0, 1)).T

    def mlp(i, x):
        m, low = view.layers[i].mlp, torch.bfloat16
        half = lambda x, m: (x.to(low) @ m.weight.to(low).T).float()
        return half(nn.functional.silu(half(x, m.gate_proj)) * half(x, m.up_proj), m.down_proj)

    lower = in_precision(g, found, "picture", trying(low, graph, v))
    for run, embeds in ((lower.clean, g.clean), (lower.other, g.other)):
        slow, added = slow_run(view, embeds.call["inputs_embeds"][0], maps=maps, mlp=mlp)
        assert torch.allclose(run.hidden[0], slow, atol=2e-2 * float(slow.abs().max()))
        assert torch.allclose(run.values[2, 0], added["a0.h1"], atol=1e-4 * float(added["a0.h1"].abs().max()))
    assert not torch.allclose(lower.clean.hidden, g.clean.hidden, atol=5e-2)


class Whole(Lowered):
    """PAHQ's way of computing with nothing lowered."""

    def around(self, kept):
        return self

    def _own(self, block, part, heads):
        return torch.ones(len(heads), dtype=torch.bool)

    def mlp(self, block):
        return nullcontext()


def test_in_full_precision_pahq_decides_as_acdc(made):
    low = Whole(made.view, "pahq")
    lower = Lower(made.clean, made.other, low)
    ours = acdc(made, Rule(0.05), 8, trying=lambda v: lower)
    plain = acdc(made, Rule(0.05), 1)
    assert torch.equal(ours.kept, plain.kept)
    assert max(abs(a[1] - b[1]) for a, b in zip(ours.log, plain.log, strict=True)) < 1e-3


def test_what_rounds_lets_gradients_through(made):
    lower = in_precision(made, pairs_of(tiny_view(), n=2), "picture", Lowered(made.view, "pahq"))
    scores = eap(made, lower).sum(-1)
    assert scores.abs().max() > 0.01 and scores.isfinite().all()


def test_curves_and_areas_by_hand(made):
    graph = made.machine.graph
    scores = torch.arange(graph.allowed.numel(), dtype=torch.float64).view(graph.allowed.shape)
    assert names(graph, top(graph, -scores, 2)) == {graph.name(e) for e in graph.edges[:2]}
    assert int(at_random(graph, 9, "a").sum()) == 9 and not (at_random(graph, 9, "a") & ~graph.allowed).any()
    assert area([0.5, 1.0], [1.0, 1.0], 0.0) == pytest.approx(0.25 + 0.5)
    assert faithfulness(made, [graph.allowed, torch.zeros_like(graph.allowed)], 2) == pytest.approx([1, 0], abs=1e-4)


@pytest.fixture(scope="module")
def whole_run():
    bench, samples = scenes_bench()
    params = CIRCUIT.Params(
        items=2, held_out=2, precision=("full", "pahq"), taus=(0.05, 0.2), loop=True, draws=2, timed=True
    )
    rows = CIRCUIT(params).on_samples(bench, samples)
    return params, [{**r, "split": "train"} for r in rows]


def test_the_summary_leads_with_a_plain_sentence_and_has_a_file(whole_run):
    params, rows = whole_run
    told = CIRCUIT(params).summary(rows)
    kept = [r for r in rows if r["metric"] == "circuit" and r["role"] == "all"]
    assert told.leads and told.findings[0].text.startswith(
        f"With the picture exchanged for one that agrees with the text, {len(kept)} of 190 edges carry the difference:"
    )
    assert next(f for f in told.findings if "decides every edge alike" in f.text).values["decides_alike"]
    content = json.loads(json.dumps(told.documents[0].content))
    assert {f"{e['from']}->{e['to']}" for e in content["edges"]} == {r["edge"] for r in kept}
    assert told.documents[0].name == "circuit" and content["edges_in_all"] == 190
    methods = next(t for t in told.tables if t.name == "circuit_methods")
    assert {(r[0], r[1]) for r in methods.rows} >= {("exact", "full"), ("acdc", "pahq"), ("acdc_loop", "full")}


def test_rows_of_heads_are_sums_over_the_circuits_edges(whole_run):
    _, rows = whole_run
    edges = {r["edge"]: abs(r["value"]) for r in rows if r["metric"] == "circuit" and r["role"] == "all"}
    heads = {(r["layer"], r["head"]): r["value"] for r in rows if r["metric"] == "circuit_head"}
    for (layer, head), value in heads.items():
        ends = (f"->a{layer}.q{head}", f"->a{layer}.k{head // 2}", f"->a{layer}.v{head // 2}")
        own = sum(x for e, x in edges.items() if e.endswith(ends) or e.startswith(f"a{layer}.h{head}->"))
        assert value == pytest.approx(own)
    assert {r["sample"] for r in rows if r["metric"] == "circuit_head"} == {ALL}


def test_the_circuits_heads_steer_and_random_ones_are_its_control(whole_run):
    heads, found = lookup("steering", "heads"), [{**r, "direction": "vision"} for r in whole_run[1]]
    states = replace(cases.random_states(), found=found)
    value = {(r["layer"], r["head"]): r["value"] for r in found if r["metric"] == "circuit_head"}
    best = sorted(value, key=value.__getitem__)[-2:]
    made = lambda **more: heads(heads.Params(by="circuit", top=2, coefficient=2, **more))
    state = made().fit(states)["coefficient"]
    assert {tuple(at) for at in (state == 2).nonzero().tolist()} == set(best)
    random = made(heads="random").fit(states)["coefficient"]
    assert int((random == 2).sum()) == 2 and not ((random == 2) & (state == 2)).any()
    with pytest.raises(UserError, match="needs the circuit of each direction"):
        made().fit(replace(states, direction="text"))
    assert made().unfit(None, ["heads"]) and made().unfit(None, ["circuit"]) is None


def test_the_file_is_written_beside_the_tables(whole_run, tmp_path):
    params, rows = whole_run
    write_tables([CIRCUIT(params).summary(rows).under("mine")], tmp_path)
    assert json.loads((tmp_path / "mine-circuit.json").read_text())["schema"] == 1
    assert (tmp_path / "mine-circuit_methods.csv").is_file()


def test_a_tau_that_is_not_tried_and_an_exchange_that_moves_nothing_are_refused(made):
    bench, samples = scenes_bench()
    with pytest.raises(UserError, match=r"circuit: tau 0.3 is none of taus \[0.05\]"):
        CIRCUIT(CIRCUIT.Params(tau=0.3, items=1)).on_samples(bench, samples)
    same = [replace(t, corrupted=t.clean) for t in pairs_of(tiny_view(), n=2)]
    with pytest.raises(UserError, match="with 'picture' exchanged the margin stays what it is"):
        ground(tiny_view(), same, "picture")


def test_what_nothing_is_left_of_reads_zero_and_no_rounding():
    """Norms make rounding as large as any query: shares were wrong by 5e-4 of themselves so."""
    rows, alone = (
        ground(view, pairs_of(view, n=2), "zero")
        for view in (family_view("llava_onevision", dtype) for dtype in (torch.float32, torch.float64))
    )
    allowed = rows.machine.graph.allowed
    masks = (torch.rand(16, *allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.5) & allowed
    masks[:8, len(allowed) // 2] = allowed[len(allowed) // 2]
    one_by_one = [float(alone.shares(mask[None], None, 0)) for mask in masks]
    assert rows.shares(masks, None, 0).tolist() == pytest.approx(one_by_one, rel=1e-4)


def test_decisions_by_rows_are_the_loops_where_queries_have_norms():
    view = family_view("gemma3")
    made = ground(view, pairs_of(view, n=2), "zero")
    loop, rows = acdc(made, Rule(0.05), 1, whole_forwards=True), acdc(made, Rule(0.05), 16)
    assert torch.equal(loop.kept, rows.kept) and 0 < int(rows.kept.sum()) < len(rows.log)

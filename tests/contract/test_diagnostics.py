"""The contract of diagnostics, on every registered one."""

from __future__ import annotations

import math

import pytest
import torch

from factory.diagnose import ALL, Diagnostic, hold_back
from factory.model.prefix import prefill
from factory.registry import lookup
from tests.anchor import scenes_bench
from tests.contract import cases
from tests.tiny import conflict_prompts, mixed_prompts, no_image, tiny_view

COLUMNS = {"sample": str, "metric": str, "layer": (int, type(None)), "head": (int, type(None)), "value": float}


def measure(view, name: str, prompts, keys=None, side: str = "left") -> list[dict]:
    cls = lookup("diagnostic", name)
    keys = keys or [p.digest for p in prompts]
    return cls(cls.Params()).measure(view, view.encode(prompts, side), keys)


def by_place(rows: list[dict]) -> dict[tuple, float]:
    return {(r["sample"], r["metric"], r["layer"], r["head"]): r["value"] for r in rows}


def agree(a: dict[tuple, float], b: dict[tuple, float], tolerance: float = 1e-3) -> bool:
    """The same places, and values within ``tolerance`` of each other (relative; NaN equals NaN)."""
    alike = (
        math.isnan(x) and math.isnan(b[k]) or math.isclose(x, b[k], rel_tol=tolerance, abs_tol=1e-6)
        for k, x in a.items()
    )
    return a.keys() == b.keys() and all(alike)


def test_there_are_diagnostics_to_hold_to_the_contract():
    assert "mcr" in cases.classes("diagnostic")


def test_rows_are_tidy(view, diagnostic_name):
    prompts = mixed_prompts()
    keys = [f"prompt {i}" for i in range(len(prompts))]
    rows = measure(view, diagnostic_name, prompts, keys)
    assert issubclass(lookup("diagnostic", diagnostic_name), Diagnostic)
    for row in rows:
        assert row.keys() == COLUMNS.keys()
        assert all(isinstance(row[column], types) for column, types in COLUMNS.items())
        assert row["layer"] is None or 0 <= row["layer"] < view.depth
        assert row["head"] is None or 0 <= row["head"] < view.heads
    assert len(by_place(rows)) == len(rows), "one number for each sample, metric, layer and head"
    places = [{place[1:] for place in by_place(rows) if place[0] == key} for key in keys]
    assert places[0] and all(p == places[0] for p in places), "every sample has the same numbers, be they NaN"
    assert all(math.isfinite(r["value"]) for r in rows if r["sample"] != keys[3]), "both modalities are there"


def test_it_says_what_it_gives_once_a_prompt(view, diagnostic_name):
    said = lookup("diagnostic", diagnostic_name).by_prompt
    rows = measure(view, diagnostic_name, conflict_prompts(2))
    once = {row["metric"] for row in rows if row["layer"] is None and row["head"] is None}
    assert said is None or set(said) == once


def test_the_same_seed_gives_the_same_bytes(view, diagnostic_name):
    prompts = conflict_prompts(2)
    first = measure(view, diagnostic_name, prompts)
    torch.manual_seed(99)
    torch.randn(3)
    before = torch.get_rng_state()
    assert measure(view, diagnostic_name, prompts) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_what_else_is_in_the_batch_does_not_matter(view, diagnostic_name):
    prompts = mixed_prompts()
    together = by_place(measure(view, diagnostic_name, prompts))
    assert agree(by_place(measure(view, diagnostic_name, prompts, side="right")), together)
    assert agree(by_place(measure(view, diagnostic_name, prompts[::-1])), together)
    alone: dict[tuple, float] = {}
    for prompt in prompts:
        alone |= by_place(measure(view, diagnostic_name, [prompt]))
    assert agree(alone, together)
    values = {key: v for key, v in together.items() if key[0] == prompts[0].digest}
    assert not agree(
        {(prompts[1].digest, *k[1:]): v for k, v in values.items()},
        {k: together[k] for k in together if k[0] == prompts[1].digest},
    )


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(diagnostic_name, fails):
    view = cases.fresh_view()
    prompts = conflict_prompts(2)
    cases.logits(view, prompts)
    before = cases.traces(view)
    if fails:
        calls = []

        def refuse(*args, **kwargs):
            calls.append(1)
            if len(calls) > 2:
                raise ZeroDivisionError

        handle = view.layers[1].register_forward_pre_hook(refuse)
        with pytest.raises(ZeroDivisionError):
            for _ in range(3):
                measure(view, diagnostic_name, prompts)
        handle.remove()
    else:
        measure(view, diagnostic_name, prompts)
    assert cases.traces(view) == before


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_it_works_in_any_gradient_mode(diagnostic_name, grad):
    view = tiny_view()
    expected = by_place(measure(view, diagnostic_name, conflict_prompts(2)))
    with grad():
        assert agree(by_place(measure(view, diagnostic_name, conflict_prompts(2))), expected)


def test_a_batch_without_images_does_not_crash(view, diagnostic_name):
    prompts = [no_image(p) for p in conflict_prompts(2)]
    assert {r["sample"] for r in measure(view, diagnostic_name, prompts)} == {p.digest for p in prompts}


def test_measuring_leaves_the_prefix_as_it_was(view, prefix_diagnostic):
    cls = lookup("diagnostic", prefix_diagnostic)
    diagnostic, batch, keys = cls(cls.Params()), view.encode(conflict_prompts(2)), ["a", "b"]
    with torch.no_grad():
        hidden, whole = prefill(view, batch)
        prefix, query, hidden = hold_back(view, batch.input_ids, hidden, whole, diagnostic.queried(whole, keys))
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
    first = diagnostic.on_prefix(view, prefix, query, keys, hidden)
    after = [(layer.keys, layer.values) for layer in prefix.cache.layers]
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))
    assert diagnostic.on_prefix(view, prefix, query, keys, hidden) == first


def investigate(name: str, view=None, count: int | None = None) -> list[dict]:
    """What a diagnostic that asks prompts of its own says of a few samples."""
    bench, samples = scenes_bench(view)
    cls = lookup("diagnostic", name)
    diagnostic = cls(cls.Params.model_validate(cases.SMALL.get(name, {})))
    diagnostic.acquaint(cases.known(samples))
    diagnostic.learn(cases.random_states().found)
    return diagnostic.on_samples(bench, samples[:count])


def test_rows_about_samples_are_tidy_and_repeatable(view, asking_diagnostic):
    rows = investigate(asking_diagnostic, view)
    assert rows and str(investigate(asking_diagnostic, view)) == str(
        rows
    )  # NaN, which says "undefined", equals itself as text alone
    places = set()
    for row in rows:
        assert all(isinstance(row[column], types) for column, types in COLUMNS.items()) and not math.isinf(row["value"])
        assert {"task", "form", "prompt"} <= row.keys()
        places.add(tuple(v for k, v in row.items() if k != "value"))
    assert len(places) == len(rows), "one number for each sample, form, metric, layer and head"
    assert len({row["sample"] for row in rows} - {ALL}) == len(scenes_bench(view)[1])
    assert lookup("diagnostic", asking_diagnostic).at_once or ALL not in {row["sample"] for row in rows}


def test_asking_about_samples_leaves_nothing_behind(asking_diagnostic):
    view = cases.fresh_view()
    investigate(asking_diagnostic, view, 2)
    before = cases.traces(view)
    investigate(asking_diagnostic, view, 2)
    assert cases.traces(view) == before


def test_a_sample_says_the_same_whatever_else_is_asked(view, asking_diagnostic):
    few, all_ = investigate(asking_diagnostic, view, 2), investigate(asking_diagnostic, view)
    of = lambda rows: {
        tuple(v for k, v in r.items() if k != "value"): r["value"]
        for r in rows
        if not math.isnan(r["value"]) and r["sample"] != ALL
    }
    assert agree(of(few), {k: of(all_)[k] for k in of(few)}, 1e-2)

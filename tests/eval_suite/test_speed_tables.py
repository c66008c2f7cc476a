"""Peers side by side and growth: ratios, exponents and tables are right, and each comparison holds its two ways to the
same numbers. How fast they are is not tested.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from eval_suite.speed import growth, tables
from eval_suite.speed.peers import __main__ as command
from eval_suite.speed.peers import contests, environments, generation, worker
from eval_suite.speed.peers.pairs import in_turn, paired
from factory.errors import UserError
from tests.tiny import tiny_view


def of_ratio(ratio: float):
    theirs = [1.0, 2.0, 0.5, 4.0, 1.5, 0.7]
    wobble = [1.01, 0.99, 1.02, 0.98, 1.0, 1.0]
    return paired("work", "peer", {"torch": "1"}, {}, [[ratio * a * b for a, b in zip(theirs, wobble)]], [theirs])


def test_a_ratio_is_of_pairs_and_a_fault_only_where_its_whole_interval_is_above():
    slow, alike = of_ratio(1.1), of_ratio(1.0)
    assert slow.ratio == pytest.approx(1.1, abs=0.002) and slow.low < slow.ratio < slow.high and slow.slower
    assert alike.low < 1 < alike.high and not alike.slower
    with pytest.raises(ValueError):
        paired("work", "peer", {}, {}, [[1.0, 2.0]], [[1.0]])


def test_processes_that_differ_for_as_long_as_they_live_are_no_fault_of_the_work():
    """One launch of two processes, of which ours is slow, looks certain; over launches it does not."""
    quick, slow = [1.0, 1.01, 0.99, 1.0], [1.05, 1.06, 1.04, 1.05]
    once = paired("work", "peer", {}, {}, [slow], [quick])
    often = paired("work", "peer", {}, {}, [slow, quick, slow, quick], [quick, slow, quick, quick])
    assert once.slower and (once.rounds, once.launches) == (4, 1)
    assert not often.slower and often.low < 1 < often.high and (often.rounds, often.launches) == (4, 4)


def test_every_other_round_goes_backwards_after_one_that_warms_up():
    called: list[str] = []
    seconds = in_turn({name: lambda name=name: called.append(name) or len(called) for name in "ab"}, 2)
    assert called == [*"ab", *"ba", *"ab"]
    assert seconds == {"a": [4, 5], "b": [3, 6]}


def test_an_exponent_is_the_slope_and_what_grows_too_fast_is_marked(monkeypatch):
    monkeypatch.setattr(growth, "timed", lambda job, device: job)
    jobs = {n: {"linear": lambda n=n: 3.0 * n, "square": lambda n=n: 0.1 * n**2} for n in (10, 100, 1000)}
    found = linear, square = growth.grown("n", jobs, 3, lambda job, n: 5 * n)
    assert linear.exponent == pytest.approx(1) and square.exponent == pytest.approx(2)
    assert [each.worse(found) for each in found] == [False, True]
    assert linear.memory == pytest.approx(1)
    hungry, _ = growth.grown("n", jobs, 3, lambda job, n: n**2)
    assert hungry.exponent == pytest.approx(1) and hungry.worse([])


def test_beside_attention_a_job_is_held_to_the_forward_pass(monkeypatch):
    monkeypatch.setattr(growth, "timed", lambda job, device: job)
    costs = {growth.FORWARD: 1.8, "as it": 1.8, "faster": 2.1}
    jobs = {n: {name: lambda n=n, p=p: float(n) ** p for name, p in costs.items()} for n in (10, 100)}
    found = _, alike, faster = growth.grown("n", jobs, 2, lambda job, n: n**2)
    assert [each.worse(found) for each in found] == [False, False, True]
    assert dataclasses.replace(alike, memory=2.5).worse(found), "the forward's own is 2"
    assert faster.beyond is not None and faster.beyond[0] == pytest.approx(0.3)


def test_memory_of_what_python_holds_is_counted():
    assert 8_000_000 < growth.of_python(lambda: list(range(10**6))) < 80_000_000


def test_bookkeeping_runs_at_any_number_of_samples():
    found = growth.samples((20, 40), 1)
    assert len(found) == 6 and all(math.isfinite(each.exponent) and min(each.bytes) > 0 for each in found)


@pytest.mark.parametrize(
    ("axis", "sizes", "jobs"), [("tokens", (120, 160), 5), ("strengths", (1, 2), 1), ("ranks", (1, 2), 2)]
)
def test_the_models_part_runs_at_any_size(axis, sizes, jobs):
    found = list(growth.measure([axis], 1, {axis: sizes}))
    assert len(found) == jobs
    assert all(each.sizes == list(sizes) and min(each.seconds) > 0 and min(each.bytes) > 0 for each in found)


def test_a_prompt_is_as_long_as_asked():
    view = tiny_view()
    for n in (150, 400):
        assert abs(view.encode([growth.long_prompt(view, n)]).input_ids.shape[1] - n) < 12


@pytest.mark.parametrize("name", contests.CONTESTS)
def test_both_ways_of_a_contest_give_the_same_numbers(name):
    """Making a contest compares them."""
    contest = contests.CONTESTS[name](tiny_view(), 2)
    assert contest.setting and contest.libraries


def test_ways_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(contests, "_state", lambda view, prompt, block: torch.ones(view.width))
    with pytest.raises(RuntimeError, match="states of base"):
        contests.collect_and_fit(tiny_view(), 2)


@pytest.mark.parametrize("text_alone", [False, True])
def test_steered_ways_write_the_same_tokens(text_alone, tmp_path):
    generation.prepared(tiny_view(spread=1.0), text_alone, 2, 4, tmp_path)
    with torch.no_grad():
        written = {name: worker.made(name, tmp_path)().tolist() for name in ("plain", "bare hook", "ours")}
    generation.refuse_different(written)
    with pytest.raises(RuntimeError, match="bare hook"):
        generation.refuse_different({**written, "bare hook": written["plain"]})
    with pytest.raises(RuntimeError, match="changes no token"):
        generation.refuse_different({**written, "ours": written["plain"], "bare hook": written["plain"]})


def test_a_tool_that_cannot_be_installed_is_named_with_the_reason():
    with pytest.raises(UserError, match="repeng: its environment cannot be made: no such release"):
        environments.run([sys.executable, "-c", "import sys; sys.exit('no such release')"], "repeng")


def test_the_command_writes_the_table(tmp_path, capsys):
    out = {"json": tmp_path / "told.json", "markdown": tmp_path / "told.md"}
    sizes = [
        "--width",
        "32",
        "--layers",
        "2",
        "--image-tokens",
        "16",
        "--batch",
        "2",
        "--rounds",
        "2",
        "--launches",
        "2",
    ]
    command.main(["--only", "mcr", *sizes, "--json", str(out["json"]), "--markdown", str(out["markdown"])])
    told = json.loads(out["json"].read_text())
    assert [pair["peer"] for pair in told["pairs"]] == ["Algorithm 1 as printed"]
    assert out["markdown"].read_text() == capsys.readouterr().out == tables.markdown(told)
    assert told["date"] in out["markdown"].read_text()


def test_the_tables_mark_what_is_slower_and_what_grows_too_fast():
    held = tables.Growth("fit", "samples", [10, 1000], [1.0, 2.0], [1, 2], 2.0, 1.9, 2.1, -0.5)
    beside = tables.Growth("MCR", "tokens", [10, 100], [1.0, 2.0], [1, 2], 1.5, 1.4, 1.6, 1.0, (0.0, -0.1, 0.05))
    forward = dataclasses.replace(beside, job=tables.FORWARD, beyond=(0.0, 0.0, 0.0))
    told = json.loads(json.dumps(tables.record([of_ratio(1.1), of_ratio(1.0)], [held, beside, forward])))
    lines = tables.markdown(told).splitlines()
    assert [line for line in lines if line.endswith("| slower |")] == [line for line in lines if "| 1.10 |" in line]
    assert [line for line in lines if line.endswith("| worse |")] == [line for line in lines if "10 to 1,000" in line]
    assert any("1.50 (1.40 to 1.60) | 0.00 (−0.10 to 0.05)" in line for line in lines)


def test_the_documents_show_the_kept_numbers():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "speed.md").read_text(encoding="utf-8")
    kept = [path for kind in ("peers", "growth") for path in (root / "eval_suite/speed/results").glob(f"{kind}_*.json")]
    assert len(kept) > 1
    for path in kept:
        for block in tables.markdown(json.loads(path.read_text(encoding="utf-8"))).split("\n\n"):
            assert block.strip() in page, path.name

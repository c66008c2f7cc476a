"""What two papers time, measured: extras are beside their own baseline, and printed rows stand below."""

from __future__ import annotations

import json

import pytest

from eval_suite.speed import costs
from eval_suite.speed.costs import Cost
from tests.tiny import tiny_view


def shown(*found: Cost) -> list[list[str]]:
    """The table's cells, line by line."""
    table = costs.table(found, "t")
    return [list(line) for line in zip(*(list(column.cells) for column in table.columns), strict=True)]


def test_every_job_runs_and_the_model_is_left_as_it_was():
    view = tiny_view()
    before = {name: p.clone() for name, p in view.model.named_parameters()}
    found = costs.measure(view, batch=2, repeats=1, new=2, tuners=("mores", "adapter"))
    assert [(c.what, c.baseline) for c in found] == [
        ("forward", "forward"),
        ("mcr N=1", "forward"),
        ("mcr N=3", "forward"),
        ("generate", "generate"),
        ("generate with amps", "generate"),
        ("generate with mores", "generate"),
        ("generate with adapter", "generate"),
    ]
    assert all(c.seconds > 0 and c.peak_mib is None for c in found), "memory is known on a GPU alone"
    assert found[0].times == found[3].times == 1 and found[0].extra_seconds == 0
    assert all((p == before[name]).all() for name, p in view.model.named_parameters())


def test_extras_are_medians_of_neighbouring_times(monkeypatch):
    times = {"plain": [1.0, 2.0, 3.0], "slow": [2.0, 6.0, 4.0]}
    monkeypatch.setattr(costs.timing, "interleaved", lambda *_: times)
    monkeypatch.setattr(costs, "peak_mib", lambda job, device: {"p": 100.0, "s": 130.0}[job])
    plain, slow = costs.of_jobs({"plain": "p", "slow": "s"}, "plain", 2, 3, None)
    assert (slow.seconds, slow.times, slow.extra_seconds) == (2.0, 2.0, 0.5)
    assert (slow.peak_mib, slow.extra_mib, plain.extra_mib) == (130.0, 30.0, 0.0)


def test_the_papers_rows_stand_below_with_the_ratios_that_they_print():
    mcr = shown(Cost("mcr N=3", "forward", 0.1, 1.2, 0.02, 120.0, 20.0))
    assert mcr[0] == ["mcr N=3", "0.1000", "1.20", "+0.0200", "120", "20"]
    assert mcr[1:] == [
        ["  AMPS Table 5 qwen2.5-vl-3b", "1.46", "4.29", "+1.12", "", ""],  # printed 4.29x
        ["  AMPS Table 6 qwen2.5-vl-3b", "", "", "", "7,959", "162"],  # printed +162 MB
    ]
    amps = shown(Cost("generate with amps", "generate", 0.1, 1.0, 0.0, None, None))
    assert [line[1:] for line in amps[1:]] == [["0.40", "1.03", "+0.01", "", ""], ["", "", "", "7,739", "22"]]
    oft = shown(Cost("generate with oft", "generate", 0.1, 1.0, 0.0, None, None))
    assert oft[1:] == [["  LLaVA Steering A.7", "", "", "+2.80", "", ""]]


def test_every_published_cost_is_of_a_job_that_is_measured():
    measured = {"forward", "mcr N=1", "mcr N=3", "generate", "generate with amps"}
    measured |= {f"generate with {name}" for name in costs.TUNERS}
    assert {row["what"] for row in costs.published()} == measured


@pytest.mark.parametrize("tuners", [["--tuners"], ["--tuners", "mores"]])
def test_the_command_prints_and_writes(tuners, tmp_path, capsys):
    sizes = (
        "--width 32 --layers 2 --heads 4 --kv-heads 2 --image-tokens 16 --models random --batch 1 --repeats 1 --new 2"
    )
    costs.main([*sizes.split(), "--json", str(tmp_path / "costs.json"), *tuners])
    assert "AMPS Table 5" in capsys.readouterr().out
    (saved,) = json.loads((tmp_path / "costs.json").read_text())
    assert len(saved["costs"]) == 5 + len(tuners) - 1

"""How much of the gap to the oracle is closed: by hand, and its interval against plain resampling."""

from __future__ import annotations

import csv
import random
import re

import pytest

from eval_suite.report import build, closed
from eval_suite.report.rows import Predictions, groups
from factory.terminal import Console
from tests.eval_suite.synthetic_report import RECIPE, results_of

N = 200


def records(method: str, follows: list[bool], strength: float | None = None, split: str = "test") -> list[dict]:
    about = {"task": "color", "split": split, "method": method, "direction": "vision", "strength": strength}
    return [
        {**about, "sample": str(i), "outcome": "follow" if hit else "compete", "answers": ["red"]}
        for i, hit in enumerate(follows)
    ]


@pytest.fixture(scope="module")
def drawn():
    """The oracle follows wherever another does; 40 % are followed unsteered, half of the others are to be won."""
    rng = random.Random(3)
    none = [rng.random() < 0.4 for _ in range(N)]
    l2s = [hit or rng.random() < 0.3 for hit in none]
    amps = [hit or rng.random() < 0.3 for hit in l2s]
    oracle = [hit or rng.random() < 0.2 for hit in amps]
    return {"none": none, "l2s": l2s, "amps": amps, "oracle: l2s": oracle}


def told_of(follows: dict[str, list[bool]], split: str = "test"):
    kept = [p for name, hits in follows.items() for p in records(name, hits, split=split)]
    (group,) = groups(results_of(kept))
    return closed.closed(group, Predictions(kept)), kept


def test_the_share_is_that_of_the_distance_and_its_interval_that_of_plain_resampling(drawn):
    (split, found), _ = told_of(drawn)
    assert split == "test"
    shown = {(line.method, line.start): line for line in found}
    assert set(shown) == {("l2s", "none"), ("amps", "none"), ("amps", "l2s")}
    rng = random.Random(8)
    for (method, start), line in shown.items():
        own, begin, end = drawn[method], drawn[start], drawn["oracle: l2s"]
        assert line.gap.share == pytest.approx((sum(own) - sum(begin)) / (sum(end) - sum(begin)))
        assert (line.gap.n, line.gap.follow, line.gap.ends) == (N, sum(own) / N, sum(end) / N)
        shares = []
        for _ in range(2000):
            picks = [rng.randrange(N) for _ in range(N)]
            first, last = sum(begin[i] for i in picks), sum(end[i] for i in picks)
            shares.append((sum(own[i] for i in picks) - first) / (last - first))
        shares.sort()
        assert line.gap.interval == pytest.approx((shares[50], shares[1949]), abs=0.03)


def test_the_ends_are_0_and_1_and_without_a_distance_nothing_is_said(drawn):
    same = {**drawn, "l2s": drawn["none"], "amps": drawn["oracle: l2s"]}
    (_, found), _ = told_of(same)
    told = {(line.method, line.start): (line.gap.share, line.gap.interval) for line in found}
    assert told["l2s", "none"] == (0, (0, 0)) and told["amps", "none"] == (1, (1, 1))
    flat = {**drawn, "oracle: l2s": drawn["none"]}
    (_, found), _ = told_of(flat)
    told = {(line.method, line.start): (line.gap.share, line.gap.interval) for line in found}
    assert told["l2s", "none"] == (None, None)
    one = [i == 0 for i in range(N)]
    (_, found), _ = told_of({"none": [False] * N, "l2s": one, "oracle: l2s": one})
    told = found[0].gap
    assert (told.share, told.interval) == (None, None), "resamples without the one sample have no distance"


def test_without_an_oracle_there_is_no_table_and_with_one_it_is_on_the_page(drawn, tmp_path):
    (_, found), kept = told_of({name: hits for name, hits in drawn.items() if not name.startswith("oracle")})
    assert not found and closed.to_csv(results_of(kept), Predictions(kept)) is None
    _, kept = told_of(drawn)
    build(tmp_path, results_of(kept), [], kept, RECIPE)
    page = (tmp_path / "report" / "index.html").read_text()
    assert '<h2 id="closed">' in page and "Closed from none" in page and "Closed from l2s" in page
    rows = list(csv.DictReader((tmp_path / "report" / "closed.csv").read_text().splitlines()))
    share = (sum(drawn["amps"]) - sum(drawn["l2s"])) / (sum(drawn["oracle: l2s"]) - sum(drawn["l2s"]))
    [line] = [r for r in rows if (r["Method"], r["From"]) == ("amps", "l2s")]
    assert float(line["Closed"]) == pytest.approx(share) and f"{100 * share:.1f} [" in page
    tex = (tmp_path / "report" / "table.tex").read_text()
    assert re.search(rf"amps & the image & .* & {100 * share:.1f} \{{\[\}}", tex) and "tab:closed-1" in tex


def test_the_terminal_prints_the_shares_and_a_narrow_one_leaves_the_intervals(drawn, capsys):
    _, kept = told_of(drawn)
    share = (sum(drawn["amps"]) - sum(drawn["l2s"])) / (sum(drawn["oracle: l2s"]) - sum(drawn["l2s"]))
    for width, told in ((100, f"{100 * share:.1f} ["), (56, f"{100 * share:.1f}\n")):
        closed.show(results_of(kept), Predictions(kept), Console(width=width))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("amps ")]
        assert len(lines) == 1 and told in f"{lines[0].rstrip()}\n" and ("[" in lines[0]) == (width == 100)
    none = [p for p in kept if not p["method"].startswith("oracle")]
    closed.show(results_of(none), Predictions(none), Console(width=100))
    assert not capsys.readouterr().out

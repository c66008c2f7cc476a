"""A run with regret on the shipped tiny2, from recipe to report: every section, the dialogues' file, figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from factory.recipe import load
from factory.run import pipeline

RECIPE = """\
name: regret
model: {{zoo: tiny2}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 3}}}}
diagnostics:
  - type: regret
    kinds: [evidence]
    evidence: {{vision: "This is the image. What does it show?"}}
    folds: 2
    before: 1
    taus: [0.5]
    draws: 2
    silence: 1
    resamples: 20
    steered: [static]
    strengths: [4]
    max_new_tokens: 24
    batch: 32
steering: [none]
evaluate: {{strengths: [1], max_new_tokens: 6, batch_size: 32}}
run: {{root: {root}}}
report: {{plots: true}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("regret")
    (root / "r.yaml").write_text(RECIPE.format(root=root / "runs"))
    return pipeline.run(load(root / "r.yaml"))


@pytest.mark.slow
def test_a_run_tells_of_regret_first_and_in_plain_words(folder):
    told = json.loads((folder / "results.json").read_text())["diagnostics"]["regret"]
    lead = told["findings"][0]
    assert "the model takes" in lead["text"] and "of its wrong answers back" in lead["text"]
    assert {"taken_back", "unread", "ahead"} <= lead["values"].keys()
    names = {t["name"] for t in told["tables"]}
    assert {f"regret-{n}" for n in ("rates", "words", "probes", "early", "groups", "gic", "silenced")} <= names
    for table in told["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    page = (folder / "report" / "index.html").read_text()
    assert "Regret by block" in page and "Regret before it is said" in page and "Units of regret" in page


@pytest.mark.slow
def test_the_dialogues_file_and_the_rates_say_the_same(folder):
    lines = (folder / "report" / "regret-dialogues.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 8 * 3
    second = [r["a3"] for r in records if "a3" in r]
    assert len(second) == sum(r["a1 before a3"]["from the wrong modality"] for r in records)
    for answer in second:
        if answer["keyword"] is not None:
            at = answer["character"]
            assert answer["text"][at : at + len(answer["keyword"])].lower() == answer["keyword"]
    read = [a["act"] for a in second if a["act"] != "unread"]
    told = json.loads((folder / "results.json").read_text())["diagnostics"]["regret"]["findings"][0]["values"]
    assert told["dialogues"] == len(second)
    assert told["taken_back"] == pytest.approx(np.mean([a == "back" for a in read]))

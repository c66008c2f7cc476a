"""Which runs stand together in a comparison, and what damaged or foreign files come to."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval_suite.compare import read
from eval_suite.compare.load import load
from factory.cli import main
from factory.errors import UserError
from factory.files import file_name
from tests.eval_suite.test_compare import drawn, flipped, run_folder, table_of


def compared(*runs: Path, out: Path, more: tuple[str, ...] = ()) -> int:
    return main(["compare", *map(str, runs), "--out", str(out), *more])


def one_line(capsys) -> str:
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and "\n" not in told and len(told) < 600
    return told


def rewritten(folder: Path, **about: object) -> Path:
    path = folder / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "run": {**found["run"], **about}}))
    return folder


def test_two_runs_of_one_recipe_are_two_rows(tmp_path):
    old = run_folder(tmp_path / "old", "e", {"none": drawn(0.2)})
    new = run_folder(tmp_path / "new", "e", {"none": drawn(0.8)})
    assert compared(old, new, out=tmp_path / "out") == 0
    rows = {r["run"]: r for r in table_of(tmp_path / "out") if not r["reference"] or r["reference"] != "none"}
    assert set(rows) == {"old/e", "new/e"} and {r["seeds"] for r in rows.values()} == {"1"}
    assert float(rows["old/e"]["value"]) == sum(drawn(0.2)) / 400
    assert rows["new/e"]["verdict"] == "better", "the second is tested against the first"


@pytest.mark.parametrize("other", ["made_from", "samples", "seed"])
def test_only_seeds_of_one_recipe_on_the_same_samples_are_averaged(tmp_path, other):
    base = drawn(0.5)
    a = rewritten(run_folder(tmp_path / "a", "e-seed1", {"none": base}, seed=1), made_from="x")
    b = rewritten(run_folder(tmp_path / "b", "e-seed2", {"none": base}, seed=2), made_from="x")
    assert {arm.group: len(arm.seeds) for arm in load([a, b])} == {"e": 2}
    if other == "made_from":
        rewritten(b, made_from="y")
    elif other == "samples":
        run_folder(tmp_path / "b", "e-seed2", {"none": base[:-1]}, seed=2)
        rewritten(b, made_from="x")
    else:
        b = rewritten(run_folder(tmp_path / "b", "e-seed1", {"none": base}, seed=1), made_from="x")
    arms = load([a, b])
    assert len(arms) == 2 and len({arm.group for arm in arms}) == 2 and all(len(arm.seeds) == 1 for arm in arms)


def test_what_a_method_closes_of_the_distance_to_its_runs_oracle(tmp_path, capsys):
    """Of run ``b`` alone, which has an oracle; and a run without one has no column."""
    none = drawn(0.4)
    amps = [max(v, float(i % 5 == 0)) for i, v in enumerate(none)]
    oracle = [max(v, float(i % 2 == 0)) for i, v in enumerate(amps)]
    a = run_folder(tmp_path, "a", {"none": flipped(none, 0.1, 3), "amps": amps})
    b = run_folder(tmp_path, "b", {"none": none, "amps": amps, "oracle:amps": oracle})
    assert compared(a, b, out=tmp_path / "out") == 0
    share = (sum(amps) - sum(none)) / (sum(oracle) - sum(none))
    closed = {(r["run"], r["method"]): (r["closed"], r["closed_low"]) for r in table_of(tmp_path / "out")}
    assert float(closed["b", "amps"][0]) == pytest.approx(share) and float(closed["b", "amps"][1]) < share
    assert {key for key, (value, _) in closed.items() if value} == {("b", "amps")}
    told = f"{100 * share:.1f}"
    assert told in capsys.readouterr().out and rf"{told} \[" in (tmp_path / "out" / "compare.md").read_text()
    assert compared(a, out=tmp_path / "alone") == 0
    assert "| closed |" not in (tmp_path / "alone" / "compare.md").read_text()


def test_samples_of_one_name_that_are_not_one_sample_are_refused(tmp_path, capsys):
    a, b = (run_folder(tmp_path / at, "e", {"none": drawn(0.5)}) for at in "ab")
    for folder, item in ((a, "before"), (b, "mended")):
        path = folder / "predictions" / "pope" / "none.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [json.dumps({**row, "item": item if i == 7 else "same"}) for i, row in enumerate(rows)]
        path.write_text("\n".join(lines))
    for more in ((), ("--common",)):
        assert compared(a, b, out=tmp_path / "out", more=more) == 2
        assert "sample '7'" in one_line(capsys)


def test_common_leaves_out_what_cannot_be_made_again_and_is_advised_so(tmp_path, capsys):
    base = drawn(0.5)
    beside = {"metrics": {"f1": 0.123, "accuracy": 0.5}, "beside": ["accuracy"]}
    a = run_folder(tmp_path, "a", {"none": base}, **beside)
    b = run_folder(tmp_path, "b", {"none": base[:100]}, **beside)
    for folder in (a, b):  # a second benchmark, whose score is a mean
        found = json.loads((folder / "results.json").read_text())
        path = folder / "predictions" / "vqa" / "none.jsonl"
        path.parent.mkdir()
        shutil.copy(folder / "predictions" / "pope" / "none.jsonl", path)
        values = [json.loads(line)["value"] for line in path.read_text().splitlines()]
        row = {**found["rows"][0], "label": "vqa", "main": "acc", "metrics": {"acc": sum(values) / len(values)}}
        found["rows"].append({**row, "ci": {}, "beside": []})
        (folder / "results.json").write_text(json.dumps(found))
    assert compared(a, b, out=tmp_path / "out") == 2
    assert "add --common, which leaves f1 out" in one_line(capsys)
    assert compared(a, b, out=tmp_path / "out", more=("--common",)) == 0
    assert {(r["benchmark"], r["metric"]) for r in table_of(tmp_path / "out")} == {("vqa", "acc")}
    assert "f1 is no mean over samples" in (tmp_path / "out" / "compare.md").read_text()


def test_the_order_in_which_splits_are_named_makes_no_other_protocol():
    from eval_suite.benchmarks.pope import Pope, PopeParams

    one, other = (Pope(PopeParams(root="r", splits=s)) for s in (("random", "popular"), ("popular", "random")))
    assert one.protocol == other.protocol == "pope/random+popular/llava-1.5"


@pytest.mark.parametrize("label", ["a:b", "a/b", "../up", "größe", "a b", "con", "x" * 80, "a|b", "*"])
def test_labels_of_any_characters_are_found_again(tmp_path, label):
    base = drawn(0.5, 40)
    folder = run_folder(tmp_path, "r", {"none": base})
    found = json.loads((folder / "results.json").read_text())
    found["rows"] = [{**row, "method": label, "label": label} for row in found["rows"]]
    found["run"]["unsteered"] = label
    (folder / "results.json").write_text(json.dumps(found))
    path = folder / "predictions" / file_name(label) / f"{file_name(label)}.jsonl"
    path.parent.mkdir(parents=True)
    shutil.move(folder / "predictions" / "pope" / "none.jsonl", path)
    (folder / "costs.json").write_text(json.dumps({f"{label}/{label}": {"parameters": 5}}))
    assert compared(folder, out=tmp_path / "out") == 0
    [row] = csv.DictReader((tmp_path / "out" / "compare.csv").open(newline=""))
    assert row["method"].lstrip("'") == label and row["parameters"] == "5"
    [arm] = load([folder])
    assert [len(score.samples) for score in arm.scores.values()] == [40]


ROW = {"benchmark": "b", "method": "m", "metrics": {"f": 0.5}, "protocol": "p", "scorer": "s", "n": 2, "task": "all"}
RUN = {"schema": 1, "run": {"name": "r"}, "rows": [ROW]}
DAMAGED = {
    "cut": json.dumps(RUN)[:40].encode(),
    "no text": b"\xff\xfe\x00\x01",
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "no rows": json.dumps({**RUN, "rows": None}).encode(),
    "rows that are none": json.dumps({**RUN, "rows": [1]}).encode(),
    "rows by name": json.dumps({**RUN, "rows": {"a": ROW}}).encode(),
    "no run": json.dumps({**RUN, "run": []}).encode(),
    "no name": json.dumps({**RUN, "run": {}}).encode(),
    "no metrics": json.dumps({**RUN, "rows": [{k: v for k, v in ROW.items() if k != "metrics"}]}).encode(),
    "metrics that are none": json.dumps({**RUN, "rows": [{**ROW, "metrics": [0.5]}]}).encode(),
    "not a number": json.dumps({**RUN, "rows": [{**ROW, "metrics": {"f": float("nan")}}]}).encode(),
    "infinite": json.dumps({**RUN, "rows": [{**ROW, "metrics": {"f": float("inf")}}]}).encode(),
    "a text for a number": json.dumps({**RUN, "rows": [{**ROW, "metrics": {"f": "high"}}]}).encode(),
    "no scorer": json.dumps({**RUN, "rows": [{k: v for k, v in ROW.items() if k != "scorer"}]}).encode(),
    "another schema": json.dumps({**RUN, "schema": 7}).encode(),
    "nothing scored": json.dumps({**RUN, "rows": []}).encode(),
    "a method that is none": json.dumps({**RUN, "rows": [{**ROW, "method": {"a": "x" * 5000}}]}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_results_are_told_in_one_line(tmp_path, capsys, damage):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "results.json").write_bytes(DAMAGED[damage])
    assert compared(tmp_path / "r", out=tmp_path / "out") == 2
    assert str(tmp_path / "r") in one_line(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("predictions/pope/none.jsonl", b"{}\n"),
        ("predictions/pope/none.jsonl", b"[1]\n"),
        ("predictions/pope/none.jsonl", b'{"sample": "1", "value": NaN}\n'),
        ("predictions/pope/none.jsonl", b'{"sample": "1", "val'),
        ("predictions/pope/none.jsonl", b"\xff\n"),
        ("predictions/pope/none.jsonl", None),
        ("costs.json", b"[]"),
        ("costs.json", b'{"pope/none": 3}'),
        ("costs.json", b'{"pope/none": {"parameters": "many"}}'),
        ("costs.json", None),
        ("artefacts/none/steering.safetensors", b"\x08"),
        ("artefacts/none/steering.safetensors", None),
        ("results.json", None),
    ],
)
def test_damaged_files_beside_them_too(tmp_path, capsys, file, data):
    folder = run_folder(tmp_path, "r", {"none": drawn(0.5, 20)})
    path = folder / file
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if data is None else path.write_bytes(data)
    assert compared(folder, out=tmp_path / "out") == 2
    assert str(path) in one_line(capsys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["run", "rows", "schema", *ROW]), JSON)
def test_any_value_in_any_place_is_a_value_or_one_line(tmp_path, key, value):
    found = {**RUN, key: value} if key in RUN else {**RUN, "rows": [{**ROW, key: value}]}
    (tmp_path / "results.json").write_text(json.dumps(found))
    try:
        load([tmp_path])
        assert read.results(tmp_path).schema_ == 1
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600

"""The recipes of the MoReS paper: their plans without weights, data or network, and the published numbers that stand
beside them.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from eval_suite.compare.table import of_tables
from factory.cli import main
from factory.recipe import load

RECIPES = Path(__file__).parents[2] / "recipes"
TABLES = sorted((RECIPES / "paper").glob("mores_*.yaml"))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a plan must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def planned(path: str, capsys) -> dict[str, list[str]]:
    assert main(["plan", path]) == 2, "neither model nor data are here"
    said, error = capsys.readouterr()
    return {"": said + error} | {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}


def test_table_1_is_planned_with_the_papers_parameters(bare, capsys):
    rows = planned("recipes/paper/mores_table1.yaml", capsys)
    counts = {
        "full": "2,779,683,840",
        "adapter": "83,886,080",
        "lora": "188,743,680",
        "oft": "19,537,920",
        "ia3": "491,520",
        "mores_b": "163,872",
        "mores_l": "327,744",
        "mores_h": "655,488",
    }
    assert {method: rows[method][1] for method in counts} == counts
    for words in (
        "microsoft/phi-2",
        "google/siglip-so400m-patch14-384",
        "data/llava_v1_5_mix665k.json': no such file",
        "root 'data/gqa': no such folder",
        "runs/pretrain_phi2",
    ):
        assert words in rows[""]


@pytest.mark.parametrize(
    ("recipe", "row", "parameters"),
    [
        ("mores_vicuna7b", "mores", "262,176"),
        ("pretrain_vicuna13b", "connector", "31,467,520"),
        ("pgm_vicuna7b", "pgm.image.uni", "524,288"),
    ],
)
def test_single_tunings_are_planned_by_their_sizes(bare, capsys, recipe, row, parameters):
    rows = planned(f"recipes/{recipe}.yaml", capsys)
    assert rows[row][2] == parameters and "lmsys/vicuna" in rows[""]
    assert parameters in (RECIPES / f"{recipe}.yaml").read_text().split("\nname:")[0], "the header says so too"


def scored(node):
    """The columns of a benchmark by label; those of lm-eval told without it."""
    if node.type != "lm_eval":
        return [(node.label, node.make())]
    columns = {"main": "acc", "beside": ("acc_norm",)}
    shots = node.params.few_shot
    return [
        (f"{node.label}.{t}", SimpleNamespace(protocol=f"lm-eval/0.4.13/{t}/v1.0/{shots}-shot", **columns))
        for t in node.params.tasks
    ]


def test_published_numbers_are_of_columns_and_methods_that_their_recipe_has():
    by_run = defaultdict(list)
    for row in (row for row in of_tables() if row["paper"] == "LLaVA Steering"):
        by_run[row["run"]].append(row)
    assert sorted(by_run) == sorted(path.stem for path in TABLES)
    for path in TABLES:
        recipe, rows = load(path), by_run[path.stem]
        nodes = [node for task in recipe.compare.tasks for node in task.score]
        benchmarks = {label: made for node in nodes for label, made in scored(node)}
        methods = {c.tuner.label for c in recipe.compare.tuners}
        assert {(row["label"], row["method"]) for row in rows} == {
            (label, method) for label in benchmarks for method in methods
        } and recipe.name == path.stem
        for row in rows:
            bench = benchmarks[row["label"]]
            assert fnmatchcase(bench.protocol, row["protocol"]) and row["metric"] in (bench.main, *bench.beside), row
            assert 0 < float(row["value"]) < 100


def test_table_6_stands_beside_by_column():
    """As printed: columns Full, LoRA, Adapter, OFT, IA3, MoReS."""
    columns = ("full", "lora", "adapter", "oft", "ia3", "mores")
    printed = {
        "accuracy": (87.2, 86.7, 87.9, 85.1, 86.9, 88.2),
        "hard": (37.4, 34.6, 36.2, 33.9, 39.3, 42.6),
        "fAcc": (18.5, 16.7, 18.2, 14.1, 18.5, 19.4),
        "aAcc": (44.4, 43.0, 44.8, 36.2, 45.0, 46.1),
    }
    rows = [row for row in of_tables() if row["run"] == "mores_table6"]
    found = {metric: dict.fromkeys(columns) for metric in printed}
    for row in rows:
        found[row["metric"]][row["method"]] = float(row["value"])
    assert {metric: tuple(values.values()) for metric, values in found.items()} == printed
    ranks = {c.tuner.label: c.tuner.params for c in load(RECIPES / "paper" / "mores_table6.yaml").compare.tuners}
    assert ranks["mores"].rank == 4, "MoReS-H"

"""A plan of every recipe of the project, on a machine with no weights, no data and no network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from factory.cli import main
from factory.model import facts as sizing
from factory.model.facts import sizes_of
from factory.recipe import load
from factory.run.plan import estimate as estimating
from factory.run.plan.estimate import estimate, memory

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = [path for path in sorted(RECIPES.rglob("*.yaml")) if load(path).train is None]
OF_MC2 = [path for path in PATHS if (r := load(path)).model.zoo and r.data and r.data.type == "mc2" and not r.claim]


known = {}


def once(config, *rest):
    """Each model is built once for all recipes."""
    key = repr(config)
    if key not in known:
        known[key] = sizes_of(config, *rest)
    return known[key]


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a plan must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(estimating, "FIT_ON", 4)
    monkeypatch.setattr(sizing, "sizes_of", once)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", OF_MC2, ids=lambda path: str(path.relative_to(RECIPES)))
def test_forwards_and_memory_are_known_without_weights_or_data(path):
    recipe = load(path, ["steering=[none, static]"])
    found = estimate(recipe)
    assert found.model.depth > found.layer == 14
    assert found.data.samples == {"train": 1280, "dev": 320, "test": 400}
    assert (
        found.passes > 0
        and memory(recipe, found.model, (found.prompt_tokens, found.longest), found.data.prompts) > found.model.bytes
    )
    weights, data = found.missing
    assert "Get them with" in weights and "data.file=FILE" in data


@pytest.mark.parametrize("path", OF_MC2, ids=lambda path: str(path.relative_to(RECIPES)))
def test_the_header_says_what_the_plan_says(path):
    found = estimate(load(path))
    passes = f"{round(found.passes):,} prompt passes"
    memory_told = (
        f"{memory(load(path), found.model, (found.prompt_tokens, found.longest), found.data.prompts) / 1e9:.0f} GB"
    )
    head = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert passes in head and memory_told in head and f"fetch {load(path).model.zoo}" in head


def test_a_claims_header_says_what_its_plan_says(capsys):
    path = RECIPES / "amps_claim_llava7b.yaml"
    assert main(["plan", str(path)]) == 2
    said, head = "".join(capsys.readouterr()), path.read_text(encoding="utf-8").split("\nname:")[0]
    passes = next(line for line in said.splitlines() if line.startswith("all: ")).split()[1]
    memory_told = next(line for line in said.splitlines() if line.startswith("memory: ")).split()[2]
    assert f"{passes} prompt passes" in head and f"{float(memory_told):.0f} GB" in head
    assert "train 1,280, dev 320, test 400" in said and "its weights are not on this machine" in said


def test_a_plan_says_what_it_does_not_know(capsys):
    assert main(["plan", "recipes/amps_smolvlm.yaml", "steering=[none, static]", "--limit", "5"]) == 2
    said = "".join(capsys.readouterr())
    for words in (
        "its weights are not on this machine",
        "evaluate_final.json is not in",
        "memory: about",
        "time: unknown until the model and the data are there",
        "train 5, dev 5, test 5",
    ):
        assert words in said

"""Every recipe of the project loads, without a network and without the files it will need."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from factory.recipe import dump, load, loads

RECIPES = Path(__file__).parents[2] / "recipes"
PATHS = sorted([*RECIPES.rglob("*.yaml"), *RECIPES.rglob("*.yml")])


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("reading a recipe must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipe_loads_and_its_resolved_form_is_the_same_recipe(path):
    recipe = load(path)
    assert loads(dump(recipe), path=path) == recipe


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(RECIPES)))
def test_recipe_begins_with_the_command_that_runs_it(path):
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert head.startswith("#")
    assert f"bash launch.sh recipes/{path.relative_to(RECIPES)}" in head


def test_no_two_recipes_share_a_run_folder():
    names = [load(path).name for path in PATHS]
    assert len(set(names)) == len(names)


def test_no_two_recipes_go_by_one_name():
    stems = [path.stem for path in PATHS]
    assert len(set(stems)) == len(stems)

"""Sheets of samples say what is right in words."""

from __future__ import annotations

import pytest

from eval_suite import benchmark
from factory.recipe.nodes import read_node


@pytest.mark.parametrize("shows", ["image", "text"])
def test_a_sheet_tells_the_right_answer_alone(shows, tmp_path, monkeypatch):
    asked = read_node("benchmark", {"type": "plain_scenes", "shows": shows, "per_task": 1}).make()
    drawn: list = []
    monkeypatch.setattr(benchmark, "write_sheet", lambda path, cells: drawn.extend(cells) or path)
    asked.pictures(tmp_path)
    wanted = {item.id: asked.wanted(item) for item in asked.questions()}
    assert drawn and all(cell.answers == (f"Right answer: {wanted[cell.name]}",) for cell in drawn)

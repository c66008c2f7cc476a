"""Every notebook of the documents runs as it stands; where the documents' extra is, as the four take half a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_suite.site import notebooks, pages
from factory.errors import UserError

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def given() -> dict[str, list[notebooks.Output]]:
    """What the cells of each notebook give, as the site shows it."""
    return dict(zip((path.stem for path in NOTEBOOKS), notebooks.outputs(NOTEBOOKS), strict=True))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands(path, given):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "import factory" in sources[0]
    assert not any("from factory" in source or "import plugins" in source for source in sources)
    for source, output in zip(sources, given[path.stem], strict=True):
        assert bool(output.text) >= ("print(" in source) and len(output.figures) == source.count("plt.show()")
        assert " %)" not in output.text and "/tmp" not in output.text, "neither progress nor this machine's folders"


def test_the_site_shows_what_each_gives(given):
    text, figures = notebooks.page(NOTEBOOKS[[path.stem for path in NOTEBOOKS].index("steer")], given["steer"])
    assert "```{.text .printed}\nunsteered: purple\n```" in text
    assert "![mean probability over strength: the picture's colour, the text's colour](steer-1.svg)" in text
    assert [*figures] == ["steer-1.svg"] and figures["steer-1.svg"].startswith("<?xml")
    long, _ = notebooks.page(NOTEBOOKS[0], given[NOTEBOOKS[0].stem])
    assert '??? quote "What it prints"\n\n    ```{.text .printed}\n    run folder: runs/apart\n' in long


def test_a_notebook_that_fails_is_told_in_a_line(tmp_path):
    cell = {"cell_type": "code", "source": ["1 / 0"]}
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": [cell]}))
    with pytest.raises(UserError, match="a notebook does not run: ZeroDivisionError: division by zero"):
        notebooks.outputs([tmp_path / "x.ipynb"])


def test_a_notebook_is_kept_without_outputs_and_has_a_page():
    made = pages.build()
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        page = made[f"notebooks/{path.stem}.md"]
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in cells)
        assert page.startswith("# ") and f"({path.name})" in page
        assert not any(cell.get("outputs") for cell in cells)

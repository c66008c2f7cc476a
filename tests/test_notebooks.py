"""Every notebook of the documents runs as it stands; where the documents' extra is, as the four take half a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_suite.site import pages

pytest.importorskip("mkdocs", reason="needs the extra 'docs'")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_stands(path, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "notebook"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "import factory" in sources[0]
    for source in sources:
        assert "from factory" not in source and "import plugins" not in source
        exec(compile(source, str(path), "exec"), names)  # noqa: S102  the project's own documents


def test_the_site_has_a_page_of_each_without_outputs():
    made = pages.build()
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        page = made[f"notebooks/{path.stem}.md"]
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in cells)
        assert page.startswith("# ") and f"({path.name})" in page
        assert not any(cell.get("outputs") for cell in cells)

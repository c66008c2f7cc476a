"""Notebooks as they come out: ``python -m eval_suite.site.notebooks FILE ...`` runs each in the folder one stands in.

It writes a line of JSON for each notebook: of each cell of code what it printed, and its figures as SVG.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from factory.errors import UserError

ROOT = Path(__file__).parents[2]
WIDE = "84"  # columns that a page has
PROGRESS = re.compile(r"(?m)^\S+: (\d+/\d+ \(\d+ %\).*|done before)\n?")
LONG = 24  # lines that a page shows before one asks for more


@dataclass(frozen=True)
class Figure:
    """A figure as SVG, and what it shows in words."""

    alt: str
    svg: str


@dataclass(frozen=True)
class Output:
    """What a cell of code gave."""

    text: str = ""
    figures: tuple[Figure, ...] = ()


def outputs(paths: Sequence[Path]) -> list[list[Output]]:
    """What each cell of code of each notebook gives, in a process of its own; kept as long as they stay as they are.
    Raises ``UserError`` where one fails.
    """
    return _outputs(*((path.resolve(), path.read_text(encoding="utf-8")) for path in paths))


@cache
def _outputs(*notebooks: tuple[Path, str]) -> list[list[Output]]:
    env = {**os.environ, "MPLBACKEND": "Agg", "COLUMNS": WIDE, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-P", "-m", "eval_suite.site.notebooks", *(str(path) for path, _ in notebooks)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"a notebook does not run: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    read = lambda cell: Output(cell["text"], tuple(Figure(**each) for each in cell["figures"]))
    return [[read(cell) for cell in json.loads(line)] for line in done.stdout.splitlines()]


def run(path: Path) -> list[Output]:
    """Run a notebook in the folder one stands in, cell by cell; a run's progress is no part of what it gave."""
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "notebook"}
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            printed = io.StringIO()
            with redirect_stdout(printed), redirect_stderr(io.StringIO()):
                exec(compile("".join(cell["source"]), str(path), "exec"), names)  # noqa: S102  the project's own
            figures = tuple(_drawn(pyplot.figure(number), path.stem) for number in pyplot.get_fignums())
            pyplot.close("all")
            text = PROGRESS.sub("", printed.getvalue()).replace(f"{Path.cwd()}/", "")
            found.append(Output("\n".join(line.rstrip() for line in text.splitlines()).strip("\n"), figures))
    return found


def _drawn(figure: Any, name: str) -> Figure:
    from matplotlib import rc_context

    axes, drawn = figure.axes[0], io.StringIO()
    lines = axes.get_legend_handles_labels()[1]
    alt = f"{axes.get_ylabel()} over {axes.get_xlabel()}" + (f": {', '.join(lines)}" if lines else "")
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
    return Figure(alt, drawn.getvalue())


def page(path: Path, given: Sequence[Output]) -> tuple[str, dict[str, str]]:
    """A notebook's page, its texts and code with what the cells ``given`` gave and the file to run, and its figures by
    name; without any, as it was written.
    """
    cells, figures = json.loads(path.read_text(encoding="utf-8"))["cells"], dict[str, str]()
    left, parts = iter(given), []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        output = next(left, Output())
        parts += [_told(output.text)] if output.text else []
        for figure in output.figures:
            name = f"{path.stem}-{len(figures) + 1}.svg"
            figures[name] = figure.svg
            parts.append(f"![{figure.alt}]({name})")
    how = f"`pip install jupyterlab`, then `jupyter lab {path.name}`"
    told = f"[The notebook]({path.name}), to run where the project is installed: {how}."
    return "\n\n".join([parts[0], told, *parts[1:]]) + "\n", figures


def _told(text: str) -> str:
    """What a cell printed; folded where it is long."""
    block = f"```{{.text .printed}}\n{text}\n```"
    if text.count("\n") < LONG:
        return block
    return '??? quote "What it prints"\n\n' + "\n".join(f"    {line}".rstrip() for line in block.splitlines())


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(json.dumps([asdict(output) for output in run(Path(each))]))

"""The main table as CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval_suite.report.closed import MEANING
from eval_suite.report.controls import Controls
from eval_suite.report.rows import DASH, TOTAL
from eval_suite.report.tables import ERROR, Block, Entry, Line
from factory.plain import csv_text

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "—": "---",
    "–": "--",
    "−": "$-$",
    "²": r"\textsuperscript{2}",
    "[": "{[}",
    "]": "{]}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}


def to_csv(blocks: Sequence[Block]) -> str:
    """One line per method and direction. Shares are percentages; the interval columns belong to total and error. What
    was not measured is empty, so that a column of numbers reads as one.
    """
    tasks = list(dict.fromkeys(key for b in blocks for key, _ in b.columns if key not in (TOTAL, ERROR)))
    labels = {key: label for b in blocks for key, label in b.columns}
    rows: list[list[object]] = [
        [
            "benchmark",
            "protocol",
            "scorer",
            "seed",
            "split",
            "direction",
            "method",
            "variant",
            "strength",
            "chosen_on_dev",
            "uses_labels",
            "n",
            *(labels[t] for t in tasks),
            "Total",
            "Total_low",
            "Total_high",
            "Error",
            "Error_low",
            "Error_high",
        ]
    ]
    for block in blocks:
        for line in block.lines:
            group = block.group
            made = [group.benchmark, group.protocol, group.scorer, group.seed]
            head = [*made, block.split, block.direction, line.method, line.variant]
            about = [line.strength, int(line.chosen), int(line.oracle), line.n]
            cells = [line.entries[t].text if t in line.entries else "" for t in tasks]
            for key in (TOTAL, ERROR):
                entry = line.entries[key]
                cells += [entry.text, entry.low, entry.high]
            rows.append([number(v) for v in [*head, *about, *cells]])
    return csv_text(rows)


def number(value: object) -> object:
    """A printed value as a column of numbers takes it: nothing for the dash of what is not there."""
    return "" if value is None or value == DASH else value


def to_markdown(blocks: Sequence[Block]) -> str:
    """One pipe table per block, best values in bold, oracles last and in italics."""
    parts = []
    for block in blocks:
        labels = ["Method", "Strength", *(label for _, label in block.columns)]
        lines = [f"### {markdown_escape(block.title)}" + (f" (n = {block.n})" if block.n else ""), ""]
        lines += ["| " + " | ".join(labels) + " |", "|:---|" + "---:|" * (len(labels) - 1)]
        for line in block.lines:
            plain = markdown_escape(_named(line))
            name = f"*{plain}* (upper bound)" if line.oracle else plain
            cells = [_md_entry(line.entries[key], key) for key, _ in block.columns]
            lines.append("| " + " | ".join([name, markdown_escape(line.strength), *cells]) + " |")
        parts.append("\n".join(lines + [f"\n{markdown_escape(note)}" for note in block.notes]))
        parts += [_md_controls(block.controls)] if block.controls else []
    parts.append(
        "Share of samples that follow the target modality, in percent, with 95 % intervals. "
        "Bold: best of a column, upper bounds left aside."
    )
    return "\n\n".join(parts) + "\n"


def _md_controls(found: Controls) -> str:
    head = [f"#### {markdown_escape(found.title)}", ""]
    head += ["| " + " | ".join(map(markdown_escape, ("Method", "Strength", *found.columns))) + " |"]
    head += ["|:---|" + "---:|" * (len(found.columns) + 1)]
    for method, strength, cells in found.lines:
        shown = (f"{text} ({interval})" if interval else text for text, interval in cells)
        head.append("| " + " | ".join([markdown_escape(method), markdown_escape(strength), *shown]) + " |")
    return "\n".join(head)


def markdown_escape(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]#])", r"\\\1", text)


def _md_entry(entry: Entry, key: str) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} ({entry.interval})" if key in (TOTAL, ERROR) and entry.interval else text


FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Opens what is made smaller where it is wider than its place; a brace ends it."""


def to_latex(blocks: Sequence[Block], gaps: Sequence[tuple[str, list[str], list[list[str]]]] = ()) -> str:
    """One booktabs table per block, across both columns of a page that has two, no wider than the page; then one of
    each of ``gaps``, as ``closed.blocks`` makes them.
    """
    tables = [_latex_block(i, b) for i, b in enumerate(blocks, 1)]
    tables += [_latex_gap(i, *gap) for i, gap in enumerate(gaps, 1)]
    return "% \\usepackage{booktabs,graphicx}\n" + "\n".join(tables)


def _named(line: Line) -> str:
    return f"{line.label}, {line.variant}" if line.variant else line.label


def latex_escape(text: str) -> str:
    """`text` as plain LaTeX text: the special characters escaped."""
    return "".join(_LATEX.get(char, char) for char in text)


def _latex_block(number: int, block: Block) -> str:
    count = f" ($n = {block.n}$)" if block.n else ""
    caption = latex_escape(block.title) + count + ". Share of samples that follow the target modality, in percent."
    notes = "".join(" " + latex_escape(note) for note in block.notes)
    heads = ["Method", "Strength", *(label for _, label in block.columns)]
    rows: list[str] = []
    separated = False
    for line in block.lines:
        if line.oracle and not separated:
            rows.append(r"\midrule")
            separated = True
        rows.append(_latex_line(block, line))
    return latex_table(caption + notes, f"tab:steering-{number}", "l" + "r" * (len(heads) - 1), heads, rows)


def _latex_gap(number: int, title: str, heads: list[str], lines: list[list[str]]) -> str:
    caption = f"Share of the gap to the oracle that is closed: {title}. {MEANING}"
    rows = [" & ".join(map(latex_escape, line)) + r" \\" for line in lines]
    return latex_table(latex_escape(caption), f"tab:closed-{number}", "ll" + "r" * (len(heads) - 2), heads, rows)


def latex_table(caption: str, label: str, columns: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    """A table across both columns of a page that has two, no wider than the page; ``caption`` and ``rows`` are LaTeX,
    ``heads`` plain.
    """
    opening = [r"\begin{table*}[t]", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}", FITTED]
    head = " & ".join(map(latex_escape, heads)) + r" \\"
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return "\n".join([*opening, *body, r"\end{tabular}}", r"\end{table*}", ""])


def _latex_line(block: Block, line: Line) -> str:
    name = latex_escape(_named(line))
    cells = [rf"\textit{{{name}}}" if line.oracle else name, latex_escape(line.strength)]
    for key, _ in block.columns:
        entry = line.entries[key]
        text = latex_escape(entry.text)
        text = rf"\textbf{{{text}}}" if entry.best else text
        if key == TOTAL and entry.interval:
            text += rf" {{\scriptsize [{entry.low}, {entry.high}]}}"
        cells.append(text)
    return " & ".join(cells) + r" \\"

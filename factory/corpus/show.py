"""One sample as the model will be taught it: every token with its role and whether it is learnt."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table
from rich.text import Text

from factory.corpus.labels import IGNORE, Example
from factory.data.prompt import Role
from factory.model.view import ModelView
from factory.terminal import Console

COLOURS = {
    Role.TEMPLATE: "bright_black",
    Role.SYSTEM: "magenta",
    Role.IMAGE: "blue",
    Role.CONTEXT: "cyan",
    Role.QUESTION: "yellow",
    Role.OPTIONS: "bright_yellow",
    Role.INSTRUCTION: "bright_magenta",
    Role.ANSWER: "green",
}
LEARNT = "bold underline"


def show_sample(view: ModelView, name: str, example: Example, console: Console) -> None:
    """Print an example: its text in the colours of its roles, then a row for each run of tokens of one role and label.

    Colours and rulings are left out where the console is no terminal.
    """
    encoded, labels = example.encoded, example.labels
    console.print(f"sample {name}: {len(labels)} tokens, {example.labelled} of them learnt", highlight=False)
    console.print(
        Text(" ").join(Text(role.name.lower(), colour) for role, colour in COLOURS.items()) + Text("  learnt", LEARNT)
    )
    runs = [list(run) for _, run in groupby(range(len(labels)), lambda i: (encoded.roles[i], labels[i] != IGNORE))]
    table = Table("positions", "tokens", "role", "learnt", "text", box=None, pad_edge=False)
    for run in runs:
        role, learnt = Role(encoded.roles[run[0]]), labels[run[0]] != IGNORE
        pieces = _pieces(view, [encoded.ids[i] for i in run])
        style = COLOURS[role] + (f" {LEARNT}" if learnt else "")
        positions = f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}"
        table.add_row(
            positions,
            str(len(run)),
            Text(role.name.lower(), COLOURS[role]),
            "yes" if learnt else "",
            Text(pieces, style),
        )
    console.print(table)


def _pieces(view: ModelView, ids: list[int]) -> str:
    """The tokens' texts, a bar between two of them; equal ones that follow each other are counted."""
    written = []
    for token, same in groupby(ids):
        text, n = view.tokenizer.decode([token]).replace("\n", "⏎"), len(list(same))
        written.append(text if n == 1 else f"{text} x {n}")
    return "|".join(written)

"""The tables of peers and of growth, as Markdown and as JSON, with the machine and the date."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval_suite.speed.peers.pairs import FAULT, Pair
from factory import files
from factory.run.environment import environment

LINEAR = 1.1  # an exponent whose whole interval lies above grows faster than in proportion
FORWARD = "plain forward"
BESIDE = 0.1  # as much may be added to the exponent of the plain forward pass


@dataclass(frozen=True)
class Growth:
    """One job along one axis: ``seconds`` (medians) and ``bytes`` (peak) at each of ``sizes``, their exponents, and
    how much the time's exceeds that of the plain forward pass (None on axes without one).
    """

    job: str
    axis: str
    sizes: list[int]
    seconds: list[float]
    bytes: list[int]
    exponent: float
    low: float
    high: float
    memory: float
    beyond: tuple[float, float, float] | None = None

    def worse(self, beside: Sequence[Growth]) -> bool:
        """Whether time or memory grow faster than the size, or than the plain forward pass where one of that axis is
        among those ``beside``.
        """
        forward = next((each for each in beside if (each.axis, each.job) == (self.axis, FORWARD)), None)
        if forward is None or self.beyond is None:
            return self.low > LINEAR or self.memory > LINEAR
        return self.beyond[1] > BESIDE or self.memory > max(LINEAR, forward.memory + BESIDE)


def record(pairs: Sequence[Pair], growths: Sequence[Growth]) -> dict[str, Any]:
    """JSON-able: the command, the day, the machine, and both tables' numbers."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment(),
        "load_average": os.getloadavg(),
        "pairs": [asdict(pair) for pair in pairs],
        "growths": [asdict(growth) for growth in growths],
    }


def markdown(told: Mapping[str, Any]) -> str:
    """Both tables of a ``record``, each where it has rows."""
    pairs = [Pair(**row) for row in told["pairs"]]
    growths = [Growth(**{**row, "beyond": row["beyond"] and tuple(row["beyond"])}) for row in told["growths"]]
    blocks = [_machine(told), _pairs(pairs), _growths(growths)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _machine(told: Mapping[str, Any]) -> str:
    about = told["environment"]
    cpu, gpus = about["cpu"], [gpu["name"] for gpu in about["gpus"]]
    on = ", ".join([f"{cpu['model']}, {cpu['cores']} core(s), {about['torch_threads']} thread(s)", *gpus])
    libraries = ", ".join(f"{name} {about['libraries'][name]}" for name in ("torch", "transformers", "peft"))
    return f"`{told['command']}`, on `{told['date']}`: `{on}; Python {about['python']}, {libraries}`."


def _pairs(pairs: Sequence[Pair]) -> str:
    lines = [
        [
            pair.work,
            pair.peer,
            ", ".join(f"{name} {version}" for name, version in pair.versions.items()),
            f"{pair.ratio:.2f}",
            f"{pair.low:.2f} to {pair.high:.2f}",
            "slower" if pair.slower else "",
        ]
        for pair in pairs
    ]
    heads = ["work", "peer", "versions", "ours / peer", "95 % interval", f"above {FAULT}"]
    return _table(heads, "lllrrl", lines)


def _growths(growths: Sequence[Growth]) -> str:
    lines = [
        [
            each.axis,
            each.job,
            f"{min(each.sizes):,} to {max(each.sizes):,}",
            _exponent(each.exponent, each.low, each.high),
            _exponent(*each.beyond) if each.beyond else "",
            f"{each.memory:.2f}",
            "worse" if each.worse(growths) else "",
        ]
        for each in growths
    ]
    heads = ["grows", "job", "sizes", "time's exponent", "above the forward's", "memory's", "worse than allowed"]
    return _table(heads, "lllrrrl", lines)


def _exponent(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")


def _table(heads: Sequence[str], aligned: str, lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rules = [{"l": ":---", "r": "---:"}[side] for side in aligned]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (heads, rules, *lines))


def outputs(parser: argparse.ArgumentParser) -> None:
    """The options that say where tables go beside the screen."""
    parser.add_argument("--json", type=Path, help="write the numbers, the command and the machine to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")


def tell(a: argparse.Namespace, pairs: Sequence[Pair] = (), growths: Sequence[Growth] = ()) -> None:
    """Print both tables, and write them where ``outputs`` said."""
    told = record(pairs, growths)
    text = markdown(json.loads(json.dumps(told)))
    print(text, end="")
    if a.json:
        files.write_json(a.json, told)
    if a.markdown:
        files.write_text(a.markdown, text)

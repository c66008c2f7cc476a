"""Ours beside other tools and plain loops, how cost grows, and both as tables.

    python -m eval_suite.speed.peers [--growth] [--json FILE] [--markdown FILE]
    python -m eval_suite.speed.peers --only repeng nnsight mcr --rounds 20

Steered generation runs in one process a tool, each tool in an environment of its own below ``--environments``, made
where it is not there (the package index must be at hand). The rest is compared in this process. All ratios are of
neighbouring runs in alternating order, with the bootstrap's 95 % interval: over launches of the processes, and where
there is but one, over rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from eval_suite.speed import growth, tables
from eval_suite.speed.peers import contests, generation
from eval_suite.speed.peers.pairs import Pair
from eval_suite.speed.peers.worker import CONTENDERS
from eval_suite.speed.timing import random_llava
from factory.plain import ending_in_one_line

GENERATING = tuple(name for name in CONTENDERS if name != generation.OURS)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval_suite.speed.peers", description=__doc__.partition("\n\n")[0])
    every = [*GENERATING, *contests.CONTESTS]
    p.add_argument("--only", nargs="+", choices=every, default=every, metavar="NAME", help=", ".join(every))
    p.add_argument("--rounds", type=int, default=12, help="timed rounds (default 12)")
    p.add_argument("--launches", type=int, default=8, help="of the processes of steered generation (default 8)")
    p.add_argument("--width", type=int, default=128, help="of the random LLaVA (default 128)")
    p.add_argument("--layers", type=int, default=6, help="its blocks (default 6)")
    p.add_argument("--image-tokens", type=int, default=144, help="of a picture, a square number (default 144)")
    p.add_argument("--batch", type=int, default=4, help="prompts of a generation, a step or a diagnosis (default 4)")
    p.add_argument("--new", type=int, default=16, help="tokens to generate (default 16)")
    p.add_argument("--environments", type=Path, default=Path("runs/.peers"), help="folder (default runs/.peers)")
    p.add_argument("--growth", action="store_true", help="measure how cost grows too, for the second table")
    p.add_argument("--growth-rounds", type=int, default=5, help="its timed rounds (default 5)")
    tables.outputs(p)
    return p


def pairs(a: argparse.Namespace) -> Iterator[Pair]:
    view = random_llava(a.width, a.layers, 4, 2, a.image_tokens)
    tools = [name for name in GENERATING if name in a.only]
    how = {"launches": a.launches, "rounds": a.rounds, "batch": a.batch, "new_tokens": a.new}
    for kind in generation.MODELS if tools else ():
        yield from generation.compare(view, kind, tools, a.environments.resolve(), how)
    yield from contests.compare(view, [name for name in contests.CONTESTS if name in a.only], a.batch, a.rounds)


@ending_in_one_line()
def main(arguments: Sequence[str] | None = None) -> None:
    a = parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = list(pairs(a))
    tables.tell(a, found, list(growth.measure(list(growth.AXES), a.growth_rounds)) if a.growth else [])


if __name__ == "__main__":
    main()

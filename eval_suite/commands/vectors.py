"""``vectors ARTEFACT FILE.pt``: an artefact as a vector file for ``lm-eval --model steered``, or such a file as
artefacts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.bridges.steered_files import read, write
from eval_suite.commands import Command
from factory.errors import UserError
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.registry import register
from factory.steer import artefact


@register("command", "vectors")
class Vectors(Command):
    """Turn an artefact into a vector file of lm-eval's steered models, or such a file into artefacts."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", type=Path, metavar="ARTEFACT|FILE.pt")
        parser.add_argument("target", type=Path, metavar="FILE.pt|FOLDER")
        parser.add_argument("--model", required=True, metavar="MODEL", help="a model card's name or a model folder")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        view = load(ModelSpec(path=args.model) if Path(args.model).is_dir() else ModelSpec(zoo=args.model))
        if args.target.suffix == ".pt":
            print(write(args.target, [artefact.load(args.source, view)], view))
        elif args.source.suffix in (".pt", ".pth"):
            for s in read(args.source, view):
                print(artefact.save(args.target / f"block-{s.where.layer}", s, view, {"source": args.source.name}))
        else:
            raise UserError("vectors: one of the two should be a .pt file")

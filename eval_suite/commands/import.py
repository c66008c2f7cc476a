"""``import FILE FOLDER FORMAT --model MODEL``: what another tool has written, as artefacts."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.commands.export import model_of
from eval_suite.travel import format_named
from factory.errors import UserError
from factory.formats import ModelFormat
from factory.model.load import load
from factory.registry import available, register
from factory.steer import artefact


@register("command", "import")
class Import(Command):
    """Read a steering that another tool has written; each block's becomes an artefact."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", type=Path, metavar="FILE", help="the file or folder to read")
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the artefacts go, one block-N each")
        parser.add_argument("format", metavar="FORMAT", help=", ".join(entry.name for entry in available("format")))
        parser.add_argument("--model", required=True, help="a model card's name, a model folder or a hub id")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        form = format_named(args.format)
        if isinstance(form, ModelFormat):
            raise UserError(f"import: '{args.format}' is a model, which needs no import: name it with model.path")
        view = load(model_of(args.model, None))
        for steering in form.read(args.source, view):
            folder = args.folder / f"block-{steering.layer}"
            print(artefact.save(folder, steering, view, {"source": args.source.name, "format": args.format}))

"""``push FOLDER OWNER/NAME``: an artefact, a trained part or an exported model to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.sharing import card_of, contents_of
from factory.hub import check_repo, push_files
from factory.plain import say
from factory.registry import register


@register("command", "push")
class Push(Command):
    """Upload an artefact, a trained part or an exported model to the Hugging Face hub, with a card that states model,
    revision, recipe and results.
    """

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "folder", type=Path, metavar="FOLDER", help="RUN/artefacts/NAME, RUN/tuned, or what export has written"
        )
        parser.add_argument("repo", metavar="OWNER/NAME", help="a model repository, made where there is none")
        parser.add_argument("--private", action="store_true", help="make the repository private")
        parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded, and upload nothing")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        contents = contents_of(args.folder)
        check_repo(args.repo, "push to")
        if args.dry_run:
            for name, data in contents.items():
                say(f"{name}: {len(data) if isinstance(data, bytes) else data.stat().st_size:,} bytes")
            say(f"\n{card_of(contents)}")
            return
        say(push_files(args.repo, contents, f"{args.folder.name}, by steering-factory", private=args.private))

"""``push FOLDER OWNER/NAME``: an artefact or a trained part to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.sharing import CARD, Shared
from factory.hub import check_repo, push_files
from factory.plain import say
from factory.registry import register


@register("command", "push")
class Push(Command):
    """Upload an artefact or a trained part to the Hugging Face hub, with a card that states model, revision, recipe and
    results.
    """

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, metavar="FOLDER", help="RUN/artefacts/NAME, or RUN/tuned")
        parser.add_argument("repo", metavar="OWNER/NAME", help="a model repository, made where there is none")
        parser.add_argument("--private", action="store_true", help="make the repository private")
        parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded, and upload nothing")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        contents = Shared.of(args.folder).contents()
        check_repo(args.repo, "push to")
        if args.dry_run:
            for name, data in contents.items():
                say(f"{name}: {len(data):,} bytes")
            say(f"\n{contents[CARD].decode()}")
            return
        say(push_files(args.repo, contents, f"{args.folder.name}, by steering-factory", private=args.private))

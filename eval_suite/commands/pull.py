"""``pull OWNER/NAME``: an artefact, a trained part or an exported model from the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.sharing import PATTERNS, is_shared
from factory.errors import UserError
from factory.hub import check_repo, pull_files
from factory.plain import say
from factory.registry import register
from factory.steer import artefact
from factory.tune import checkpoint


@register("command", "pull")
class Pull(Command):
    """Download an artefact, a trained part or an exported model from the Hugging Face hub; prints its folder."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("repo", metavar="OWNER/NAME")
        parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: the hub's cache (HF_HOME)")
        parser.add_argument("--revision", metavar="REVISION", help="a branch, tag or commit")
        parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded, and download nothing")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        names = sorted({*artefact.FILES, *checkpoint.FILES, *PATTERNS})
        if args.dry_run:
            check_repo(args.repo, "pull from")
            say(f"of {args.repo} ({args.revision or 'its main branch'}), as far as they are there: {', '.join(names)}")
            return
        folder = pull_files(args.repo, names, args.to, args.revision)
        if not is_shared(folder):
            raise UserError(f"{args.repo}: holds neither a steering artefact nor a trained part nor a model")
        say(folder)

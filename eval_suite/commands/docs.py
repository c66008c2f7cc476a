"""``docs [build|serve]``: the documents as a site, with a generated page for every plugin."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from eval_suite.commands import Command
from factory.errors import UserError
from factory.extras import not_installed
from factory.registry import register

ROOT = Path(__file__).parents[2]
QUIET = {"NO_MKDOCS_2_WARNING": "1"}  # the theme's notice of its successor, at each build


@register("command", "docs")
class Docs(Command):
    """Build the documents' site, or serve it on this machine."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("do", nargs="?", choices=("serve", "build"), default="serve", help="default: serve")
        parser.add_argument("--to", type=Path, metavar="FOLDER", help="where build writes; default: site")
        parser.add_argument("--port", type=int, default=8000, help="where serve listens, on this machine alone")

    @staticmethod
    def run(args: argparse.Namespace) -> int:
        if not (ROOT / "mkdocs.yml").is_file():
            raise UserError("this installation carries no documents; build them from a checkout of the project")
        if why := not_installed("the site of documents", "docs", ["mkdocs", "material", "mkdocstrings"]):
            raise UserError(why)
        config = ["--config-file", str(ROOT / "mkdocs.yml"), "--strict"]
        if args.do == "build":
            more = ["--site-dir", str((args.to or ROOT / "site").absolute())]
        else:
            more = ["--dev-addr", f"127.0.0.1:{args.port}"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        words = [sys.executable, "-m", "mkdocs", args.do, *config, *more]
        return subprocess.run(words, check=False, env={**os.environ, **QUIET, "PYTHONPATH": path}).returncode

"""Commands of the evaluation suite, one file each, named after what it registers."""

from __future__ import annotations

import argparse


class Command:
    """Base of the commands, classes that are used as they are; the docstring of one is what its --help says."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        """Say what follows the command's name; nothing by default."""

    @staticmethod
    def run(args: argparse.Namespace) -> int | None:
        """Do it; returns the exit code, None for 0. Raises ``UserError`` for a person's mistake."""
        raise TypeError("a command must define run(args)")

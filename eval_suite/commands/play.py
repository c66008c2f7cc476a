"""``play [RUN | ARTEFACT | RECIPE | MODEL]``: a page to steer one prompt at a time."""

from __future__ import annotations

import argparse
import socket
import tempfile
import time
from pathlib import Path

from eval_suite.commands import Command
from factory.errors import UserError
from factory.extras import not_installed
from factory.plain import say
from factory.registry import register

LOOPBACK = "127.0.0.1"


@register("command", "play")
class Play(Command):
    """Serve a page on this machine: one prompt, answered as the model is and steered, with what lies behind it."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "what",
            nargs="?",
            metavar="RUN|ARTEFACT|RECIPE|MODEL",
            help="a finished run's folder, an artefact's, a recipe, or a model: a card, a folder or OWNER/NAME;"
            " default: amps_tiny, the shipped model",
        )
        parser.add_argument("--model", metavar="MODEL", help="that of an artefact outside its run; default: tiny")
        parser.add_argument("--data", metavar="BENCHMARK", help="conflicts to take samples from, in place of the run's")
        parser.add_argument(
            "--limit", type=int, default=192, metavar="N", help="training samples of methods fitted here; default: 192"
        )
        parser.add_argument("--host", default=LOOPBACK, help=f"default: {LOOPBACK}, this machine alone")
        parser.add_argument("--port", type=int, default=7860, help="default: 7860")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        if why := not_installed("the playground", "play", ["gradio"]):
            raise UserError(why)
        if args.limit < 1:
            raise UserError(f"--limit {args.limit} should be a whole number of 1 or more")
        check_free(args.host, args.port)
        say("playground: opening; its address follows")
        from eval_suite.play.opening import open_session
        from eval_suite.play.page import serve

        session = open_session(args.what, model=args.model, data=args.data, limit=args.limit)
        with tempfile.TemporaryDirectory(prefix="steering-factory-play-") as exports:
            blocks, address = serve(session, args.host, args.port, Path(exports))
            say(f"playground: {address} (Ctrl-C ends it)")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                say("the playground has ended")
            finally:
                blocks.close(verbose=False)
                session.close()


def check_free(host: str, port: int) -> None:
    """Raises ``UserError`` for a place that cannot be served at, before a model is loaded."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((host, port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port} cannot be served at ({why}); name another --host or --port") from error

"""``serve MODEL --artefact FOLDER``: a steered model behind an OpenAI-compatible chat endpoint, on loopback."""

from __future__ import annotations

import argparse
from pathlib import Path

from eval_suite.commands import Command
from factory.api import load
from factory.errors import UserError
from factory.extras import not_installed
from factory.registry import register
from factory.steer import Steering, artefact
from factory.terminal import Console


@register("command", "serve")
class Serve(Command):
    """Answer OpenAI's chat completions with a model that artefacts steer, each request as strongly as it says."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a model card's name, a model folder or a hub id")
        parser.add_argument(
            "--artefact", type=Path, action="append", default=[], metavar="FOLDER", help="may be given several times"
        )
        parser.add_argument("--host", default="127.0.0.1", help="loopback unless you say otherwise")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--batch", type=int, default=16, help="how many requests are answered at once")
        parser.add_argument("--max-new-tokens", type=int, default=256, help="of an answer whose request does not say")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        if why := not_installed("serve", "serve", ["fastapi", "uvicorn"]):
            raise UserError(why)
        import uvicorn

        from eval_suite.serving.app import app_of
        from eval_suite.serving.batches import Batches

        for folder in args.artefact:
            artefact.check_folder(folder)
        view = load(args.model)
        steerings: dict[str, Steering] = {}
        for folder in args.artefact:
            name = str(artefact.noted(folder).get("direction") or folder.name)
            if name in steerings:
                raise UserError(
                    f"--artefact {folder}: another artefact already steers toward '{name}'; serve one of them"
                )
            steerings[name] = artefact.load(folder, view)
        name = Path(args.model).name
        told = ", ".join(f"{each} (strength {s.strength:g})" for each, s in steerings.items()) or "none"
        Console().print(f"http://{args.host}:{args.port}/v1  model {name}, directions: {told}", soft_wrap=True)
        app = app_of(name, Batches(view, steerings, args.batch), args.max_new_tokens)
        uvicorn.run(app, host=args.host, port=args.port, log_level="warning")

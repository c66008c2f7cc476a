"""``export ARTEFACT TO FORMAT``: a steering for llama.cpp, PEFT, vLLM, lm-eval, or as a whole checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from eval_suite.commands import Command
from eval_suite.sharing import write_card
from eval_suite.travel import Origin, everywhere, format_named, meant, on_dev, origin_of
from factory.errors import UserError
from factory.formats import Format, ModelFormat
from factory.model.load import load
from factory.model.source import spec_named, tuned_folder
from factory.model.view import ModelView
from factory.recipe.schema import ModelSpec
from factory.registry import available, register
from factory.steer import Steering, artefact
from factory.terminal import Console


@register("command", "export")
class Export(Command):
    """Write an artefact, or what a tuning run has trained, in a format that another tool reads."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("source", type=Path, metavar="ARTEFACT|RUN", help="RUN/artefacts/NAME, or a tuning run")
        parser.add_argument("to", type=Path, metavar="TO", help="the file or folder to write")
        parser.add_argument("format", metavar="FORMAT", help=", ".join(entry.name for entry in available("format")))
        parser.add_argument("--model", help="a model card's name, a model folder or a hub id; the run tells its own")
        parser.add_argument("--strength", type=float, help="in place of the artefact's own")
        parser.add_argument("--positions", choices=["all"], help="take a steering of some positions as one of all")
        parser.add_argument("--mean", action="store_true", help="take the mean vector of a method that reads its input")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        form = format_named(args.format)
        line = _model(args, form) if isinstance(form, ModelFormat) else _steering(args, form)
        Console().print(f"{args.to}: {line}", soft_wrap=True, markup=False, highlight=False)


def _steering(args: argparse.Namespace, form: Format) -> str:
    artefact.check_folder(args.source)
    origin = origin_of(args.source)
    view = load(model_of(args.model, origin))
    own = artefact.load(args.source, view)
    if args.strength is not None:
        own = replace(own, strength=args.strength)
    steering = changed(args, own, origin)
    if steering is not own:
        _tell_cost(args.source, own, steering, origin, view)
    return form.write(args.to, [steering], view)


def _model(args: argparse.Namespace, form: ModelFormat) -> str:
    folder = tuned_folder(str(args.source))
    spec = model_of(args.model, origin_of(folder, "tuned"))
    line = form.write(args.to, load(spec.model_copy(update={"tuned": (*spec.tuned, str(folder))})))
    write_card(args.to, folder, line)
    return line


def model_of(named: str | None, origin: Origin | None) -> ModelSpec:
    """The model that ``--model`` names, else that of the artefact's run. Raises ``UserError`` without either."""
    if named is not None:
        return spec_named(named)
    if origin is None:
        raise UserError("which model is it for? Add --model, a model card's name, a model folder or a hub id")
    return origin.recipe.model


def changed(args: argparse.Namespace, own: Steering, origin: Origin | None) -> Steering:
    """What travels: the steering itself, or as --mean and --positions make it."""
    if args.mean and origin is None:
        raise UserError(f"--mean needs the run that {args.source} came out of: give it as RUN/artefacts/NAME")
    travelling = meant(args.to, own, origin.states()) if args.mean and origin else own
    return everywhere(travelling) if args.positions == "all" else travelling


def _tell_cost(path: Path, own: Steering, travelling: Steering, origin: Origin | None, view: ModelView) -> None:
    if origin is None:
        raise UserError(f"--positions needs the run that {path} came out of, to show on its dev data what it costs")
    direction = artefact.noted(path)["direction"]
    rows = on_dev(origin, view, direction, {"as fitted": own, "as written": travelling})
    for row in rows:
        told = f"{row['method']}: follows {row['follow']:.1%}, errors {row['error']:.1%} of {row['n']} dev samples"
        Console().print(told, markup=False, highlight=False)

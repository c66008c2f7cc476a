"""The command line, ``steering-factory`` and ``bash launch.sh``: one grammar, one line for a person's mistake.

Exit codes: 0 done, 1 a fault (with its traceback; that of a plugin with --debug), 2 a mistake in what was asked for,
130 interrupted. Whatever is heavy is imported by the command that needs it, so that ``--help`` and ``list`` answer at
once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, NoReturn, Protocol

from factory.blame import blaming
from factory.errors import DEBUG, UserError, did_you_mean
from factory.launch.world import CONTINUE, World, join
from factory.plain import say

if TYPE_CHECKING:
    from factory.recipe import Recipe

STARTED = time.perf_counter()
PROJECT = Path(__file__).resolve().parents[1]
LOCAL_RANK = re.compile(r"--local[-_]rank=\d+")  # what the DeepSpeed launcher adds unless told not to
RECIPE_SUFFIXES = (".yaml", ".yml")
HELP = """\
usage: {me} RECIPE [KEY=VALUE ...] [--limit N] [--debug]
       {me} COMMAND ...

  RECIPE, run RECIPE          run a recipe, a file or the name of a bundled one; started again, it skips what is done
  plan RECIPE                 print what would run, and what it needs
  fetch [MODEL]               download a model of the zoo or of the hub; without MODEL, the models there are
  list [KIND [NAME]]          the plugins there are; of one, its parameters and what it does
  recipe [NAME]               a bundled recipe's text, to keep as a file of your own; without NAME, what there is
  show BENCHMARK|RECIPE       draw some of a benchmark's samples: show pope root=FOLDER
  show RECIPE --sample N      one training sample: its tokens, their roles, and which are learnt
  convert NAME FOLDER OUT     a released dataset to LLaVA-JSON (bash launch.sh list converter)
  play [RUN|ARTEFACT|MODEL]   a page to steer one prompt at a time; without a name, the shipped model
  compare RUN RUN ...         finished runs in one table, with paired tests
  rescore BENCHMARK ANSWERS   answers that came from elsewhere, scored by a benchmark's rule
  rules RUN                   a run's answers by every version of the scoring rule, side by side
  verify RUN                  a run's numbers, recomputed from its kept answers
  export ARTEFACT TO FORMAT   a steering for llama.cpp, PEFT, vLLM, lm-eval, or as a whole checkpoint
  import FILE FOLDER FORMAT   what such a tool has written, as an artefact
  serve MODEL --artefact A    an OpenAI-compatible chat endpoint, steered as each request says
  push FOLDER OWNER/NAME      an artefact or a trained part to the hub, with its card
  pull OWNER/NAME             gets one back from the hub
  docs [serve|build]          the documents as a site
  new-plugin KIND NAME        write a plugin file to start from
  test [PYTEST ARGUMENTS]     run the project's tests

  KEY=VALUE overrides a key of the recipe: {me} amps_tiny seed=1 steering.7.beta=0.5
  --debug shows the traceback where a plugin raises, which is told in one line otherwise.
  --version says which version this is. {me} COMMAND --help tells more of a command."""


class _Parser(argparse.ArgumentParser):
    world: World

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split(" ")
        near = (did_you_mean(word, self._option_string_actions) for word in unknown if word.startswith("--"))
        raise UserError(f"{message}; see {self.prog} --help.{next(filter(None, near), '')}".removesuffix("."))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Of several ranks one speaks for all."""
    argv = [word for word in (sys.argv[1:] if argv is None else argv) if not LOCAL_RANK.fullmatch(word)]
    world = join()
    try:
        return world.carry_out(lambda: _dispatch(argv, world))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(argv: list[str], world: World) -> int:
    me = os.environ.get("STEERING_FACTORY_COMMAND", "steering-factory")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP.format(me=me))
        return 0
    if argv[0] == "--version":
        print(f"steering-factory {version('steering-factory')}")
        return 0
    name, rest = argv[0], argv[1:]
    parser = _Parser(prog=f"{me} {name}")
    parser.world = world
    if name not in COMMANDS and (command := _registered(name)):
        parser.description = command.__doc__
        command.arguments(parser)
        return command.run(parser.parse_intermixed_args(rest)) or 0
    if name not in COMMANDS:
        _check_recipe_word(name)
        name, rest = "run", argv
    parser.prog, parser.description = f"{me} {name}", COMMANDS[name].__doc__
    return COMMANDS[name](parser, rest) or 0


class _Command(Protocol):
    """What a plugin of the kind "command" is."""

    @staticmethod
    def arguments(parser: argparse.ArgumentParser) -> None: ...

    @staticmethod
    def run(args: argparse.Namespace) -> int | None: ...


def _registered(word: str) -> type[_Command] | None:
    """The command that a plugin adds under this name, or that a plugin file holds under its own."""
    if word.startswith("-") or Path(word).suffix in RECIPE_SUFFIXES:
        return None
    from factory.registry import available, plugin_named

    is_one = Path(word).suffix == ".py" or word in {entry.name for entry in available("command")}
    return plugin_named("command", word) if is_one else None


def _check_recipe_word(word: str) -> None:
    """Refuse a first word that does not look like a recipe as an unknown command, rather than as a missing file."""
    looks_like_one = word.startswith("-") or Path(word).suffix in RECIPE_SUFFIXES or Path(word).is_file()
    if not looks_like_one and not _bundled(word):
        from factory.registry import available

        commands = [*COMMANDS, *(entry.name for entry in available("command"))]
        hint = did_you_mean(word, [*commands, *(path.stem for path in _recipes())])
        raise UserError(f"'{word}' is neither a command nor a recipe.{hint} Commands: {', '.join(commands)}")


def _run(parser: _Parser, argv: list[str]) -> int | None:
    """Run a recipe."""
    _add_recipe(parser)
    args = _parse_run(parser, argv)
    recipe = _load(args.recipe, args.overrides)
    from factory.launch import launcher

    if launcher.wanted(recipe.launch):
        with blaming(recipe):
            return launcher.launch(recipe.launch, recipe.model, ["run", *argv])
    try:
        from factory.run.pipeline import run

        once = lambda fitted: run(fitted, args.limit, parser.world)
        if args.batch:
            from factory.run.fitting import fitted_batch, halving

            halving(*fitted_batch(recipe, args.limit), once)
        else:
            once(recipe)
        return None
    except SystemExit as left:
        *_, (frame, _) = walk_tb(left.__traceback__)
        if frame.f_globals.get("__name__", "").startswith("factory."):  # another rank's end, or a signal
            raise
        told = f"it left by SystemExit({left.code!r})"  # a plugin's: a run that is not done would end as if it were
        raise RuntimeError(told).with_traceback(left.__traceback__) from None
    except Exception as fault:
        fault.add_note(f"The run stopped here; once the fault is mended, {CONTINUE}.")
        raise


def _plan(parser: _Parser, argv: list[str]) -> None:
    """Print what a recipe would run: model, trainable parameters, steering sites, memory, forward passes, time."""
    _add_recipe(parser)
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="compute the time for h100, h200, a100, rtx4090 or cpu (this one) from sizes alone; no weights are read",
    )
    args = _parse_run(parser, argv)
    recipe = _load(args.recipe, args.overrides)
    if args.batch:
        from factory.run.fitting import fitted_batch, with_batch

        recipe = with_batch(*fitted_batch(recipe, args.limit))
    from factory.run.plan.plan import plan

    plan(recipe, args.limit, time.perf_counter() - STARTED, args.device)


def _fetch(parser: _Parser, argv: list[str]) -> None:
    """Download a model, by its name in the zoo or its hub id; without a name, list the zoo's models."""
    parser.add_argument("model", nargs="?", metavar="MODEL")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="default: the hub's cache (HF_HOME)")
    parser.add_argument("--revision", metavar="REVISION", help="a branch, tag or commit of the hub repository")
    args = parser.parse_args(argv)
    from factory.model.fetch import fetch, show_zoo

    if args.model:
        say(fetch(args.model, args.to, args.revision))
    else:
        from factory.terminal import Console

        show_zoo(Console())


def _list(parser: _Parser, argv: list[str]) -> None:
    """List the plugins there are, in-tree and out; or tell all of one: what it does, its parameters, a node."""
    parser.add_argument("kind", nargs="?", metavar="KIND")
    parser.add_argument("name", nargs="?", metavar="NAME")
    args = parser.parse_args(argv)
    kind = args.kind
    if args.name:
        from factory.describe import describe_plugin

        say(describe_plugin(kind, args.name))
        return
    from factory.registry import available

    entries = available(kind)
    width = max((len(entry.name) for entry in entries), default=0)
    for each, group in groupby(entries, key=lambda entry: entry.kind):
        print(each)
        for entry in group:
            origin = "" if entry.origin == "in-tree" else f"  [{entry.origin}]"
            say(f"  {entry.name:<{width}}  {entry.summary}{origin}".rstrip())
    if not entries:
        print(f"no {kind or ''} plugins".replace("  ", " "))


def _recipe(parser: _Parser, argv: list[str]) -> None:
    """Print a bundled recipe; without a name, list them with their first lines."""
    parser.add_argument("name", nargs="?", metavar="NAME")
    name = parser.parse_args(argv).name
    if name is None:
        for path in _recipes():
            say(f"{path.stem:<24}{path.read_text('utf-8').splitlines()[0].strip('# ')}")
        return
    if not (found := _bundled(name.removesuffix(".yaml"))):
        raise UserError(f"no bundled recipe '{name}'.{did_you_mean(name, [path.stem for path in _recipes()])}")
    print(found[0].read_text("utf-8"), end="")


def _show(parser: _Parser, argv: list[str]) -> None:
    """Draw some samples of a benchmark, or of a recipe's; a recipe's question benchmarks print three prompts each, as
    the model reads them.
    """
    _add_recipe(parser, "BENCHMARK|RECIPE")
    parser.add_argument("--out", type=Path, default=Path("runs", "show"), metavar="FOLDER", help="default: runs/show")
    parser.add_argument(
        "--sample", type=int, metavar="N", help="print training sample N of a recipe, the first being 0"
    )
    args = parser.parse_intermixed_args(argv)
    from factory.recipe.alone import benchmark_of

    named = Path(args.recipe).suffix in RECIPE_SUFFIXES or _bundled(args.recipe)
    recipe = _load(args.recipe, args.overrides) if named else None
    if args.sample is not None:
        from factory.run.plan.tuning_plan import show

        show(_load(args.recipe, args.overrides), args.sample)
        return
    if recipe and recipe.asked:
        _show_prompts(recipe)
    nodes = (
        [node for node in (recipe.data, *recipe.asked) if node]
        if recipe
        else [benchmark_of(args.recipe, args.overrides)]
    )
    drawn = False
    for node in nodes:
        with blaming(node):
            for _, picture in node.make().pictures(args.out):
                say(picture)
                drawn = True
    if not drawn:
        raise UserError(
            f"{args.recipe} has no benchmark with samples to draw; --sample N prints a training sample of a recipe"
        )


def _show_prompts(recipe: Recipe) -> None:
    from factory.run.questions.suite import dry_run

    for suite, prompts in dry_run(recipe):
        bench = suite.benchmark
        say(
            f"== {suite.node.label}: {len(suite.items)} questions, protocol {suite.protocol}, scorer {bench.scorer},"
            f" {bench.new_tokens} new tokens at most"
        )
        for sample, text in prompts:
            say(f"-- {sample}\n{text}")


def _convert(parser: _Parser, argv: list[str]) -> None:
    """Write a released dataset's questions as LLaVA-JSON (JSONL); image paths in it are relative to FOLDER."""
    parser.add_argument("name", metavar="NAME", help="a converter, such as scienceqa, or a plugin file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the dataset as its authors release it")
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write, such as scienceqa.jsonl")
    parser.add_argument("--split", default="train", help="default: train")
    args = parser.parse_args(argv)
    from factory.corpus.convert import convert

    say(f"{args.out}: {convert(args.name, args.folder, args.split, args.out)} samples; images in {args.folder}")


def _new_plugin(parser: _Parser, argv: list[str]) -> None:
    """Write a plugin file to start from, in the current folder, and say how to use it."""
    parser.add_argument("kind", metavar="KIND")
    parser.add_argument("name", metavar="NAME")
    args = parser.parse_args(argv)
    from factory.new_plugin import write_plugin

    print(write_plugin(args.kind, args.name, Path.cwd()))


def _test(parser: _Parser, argv: list[str]) -> None:
    """Run the project's tests but the slow ones (-m slow runs these); what follows is pytest's."""
    if not (PROJECT / "tests").is_dir():
        raise UserError("this installation carries no tests; run them from a checkout of the project")
    os.chdir(PROJECT)
    workers = ["-n", str(min(os.cpu_count() or 1, 8)), "--dist", "loadfile", "--durations", "10", "-rs"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *(argv or [*workers, "-m", "not slow"])])


COMMANDS: dict[str, Callable[[_Parser, list[str]], int | None]] = {
    "run": _run,
    "plan": _plan,
    "fetch": _fetch,
    "list": _list,
    "recipe": _recipe,
    "show": _show,
    "convert": _convert,
    "new-plugin": _new_plugin,
    "test": _test,
}


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' should be a whole number of 1 or more")
    return int(text)


def _parse_run(parser: _Parser, argv: list[str]) -> argparse.Namespace:
    """What ``run`` and ``plan`` are told."""
    _add_limit(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a plugin's fault")
    parser.add_argument(
        "--batch",
        choices=["auto"],
        help="as many prompts at once as fit into memory, halved where the device runs out of it",
    )
    args = parser.parse_intermixed_args(argv)
    if args.debug:
        os.environ[DEBUG] = "1"  # for the ranks too
    return args


def _add_limit(parser: _Parser) -> None:
    parser.add_argument("--limit", type=_positive, metavar="N", help="use at most N samples of each split")


def _add_recipe(parser: _Parser, metavar: str = "RECIPE") -> None:
    parser.add_argument("recipe", metavar=metavar, help="a recipe file, from here or from the project's folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="as in steering.2.beta=0.5")


def _load(given: str, overrides: Sequence[str]) -> Recipe:
    from factory.recipe import load

    return load(find_recipe(given), overrides)


def find_recipe(given: str) -> Path:
    """The recipe file, from the current folder or else from the project's; a bundled one also by its bare name."""
    for path in (Path(given), PROJECT / given, *_bundled(given)):
        if path.is_file():
            return path
    hint = did_you_mean(Path(given).name, [path.name for path in _recipes()])
    raise UserError(f"recipe '{given}' not found, neither here nor in {PROJECT}.{hint}")


def _bundled(name: str) -> list[Path]:
    """The recipes that come with the project and are called ``name``: at most one, a test holds this."""
    return [path for path in _recipes() if path.stem == name]


def _recipes() -> list[Path]:
    return sorted((PROJECT / "recipes").rglob("*.yaml"))


if __name__ == "__main__":
    sys.exit(main())

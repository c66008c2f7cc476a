"""What ``play`` is given, a run, an artefact, a recipe or a model, as a session."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from eval_suite.play.methods import Methods, Offer, of_artefacts, to_fit, unfitted, with_defaults
from eval_suite.play.session import Session
from factory import cli
from factory.bench import conflicts
from factory.errors import UserError, did_you_mean
from factory.model.load import load as load_model
from factory.model.source import spec_named
from factory.model.view import ModelView
from factory.recipe import Recipe, load
from factory.recipe.nodes import Node, node_of, read_node
from factory.recipe.paths import RecipePath
from factory.recipe.sections.model import ModelSpec
from factory.run.methods.study import steered_layer
from factory.steer import artefact
from factory.zoo.cards import cards

FIRST = "amps_tiny"  # what is played with where nothing is named: the shipped model, and methods fitted at first use
LIMIT = 192  # training samples of a fit: some seconds on the tiny model
SCENES = {"type": "scenes", "scoring": "open_ended"}  # conflicts that need no files
MOST = 3.0


class Source(NamedTuple):
    """What was named: its model, the recipe that it comes from if any, and the artefacts in it."""

    model: ModelSpec
    recipe: Recipe | None = None
    artefacts: tuple[Path, ...] = ()


def open_session(
    what: str | None = None, *, model: str | None = None, data: str | None = None, limit: int = LIMIT
) -> Session:
    """A session on a run's folder, an artefact's, a recipe, or a model: a card, a folder or a hub id.

    ``model`` is that of an artefact outside its run; ``data`` a benchmark of conflicts by its name, in place of the
    run's own; methods that are not fitted yet are on ``limit`` training samples. Raises ``UserError`` for what is none
    of these, for an artefact of another model, and for data that are no conflicts.
    """
    source = find(what or FIRST, model)
    recipe = source.recipe
    benchmark_node = node_of("benchmark", data) if data else (recipe and recipe.data) or read_node("benchmark", SCENES)
    benchmark = conflicts(benchmark_node)
    if not benchmark.sources.pictured:
        raise UserError(
            f"play: '{benchmark_node.type}' sets two texts against each other, and the page shows a picture and a text;"
            " look at the samples in the run's report, or name other data: --data scenes"
        )
    view = load_model(source.model)
    if recipe:
        view.layer = steered_layer(recipe, view.depth, view.card)
    diagnostic = (recipe and recipe.diagnostic) or read_node("diagnostic", "mcr")
    offers = _offers(source, view, benchmark_node, diagnostic, limit)
    plugins = [str(Path(p).absolute()) if p.endswith(".py") else p for p in (recipe.plugins if recipe else ())]
    strengths = [s for offer in offers for s in offer.strength.values()]
    return Session(
        view,
        benchmark,
        Methods(offers),
        diagnostic.make(),
        model=source.model,
        plugins=plugins,
        max_new_tokens=recipe.evaluate.max_new_tokens if recipe else 16,
        most=max(MOST, *(recipe.evaluate.strengths if recipe else ()), *strengths),
    )


def find(what: str, model: str | None = None) -> Source:
    """What ``what`` names. Raises ``UserError`` where that is nothing."""
    path = Path(what).expanduser()
    if (path / artefact.MANIFEST).is_file():
        run = path.resolve().parents[1]
        if model is None and (run / "resolved.yaml").is_file():
            recipe = load(run / "resolved.yaml")
            return Source(recipe.model, recipe, (path,))
        return Source(_from_anywhere(spec_named(model or "tiny")), None, (path,))
    if (path / "resolved.yaml").is_file():
        recipe, kept = load(path / "resolved.yaml"), path / "artefacts"
        if recipe.data is None or not recipe.steering:
            raise UserError(f"{what}: this run compares no steering methods; play with its model instead")
        if not (path / "results.json").is_file() or not kept.is_dir():
            raise UserError(f"{what}: the run is not finished; go on with it, or play with its recipe")
        return Source(recipe.model, recipe, tuple(sorted(each for each in kept.iterdir() if each.is_dir())))
    if path.suffix in cli.RECIPE_SUFFIXES or (what not in cards() and not path.is_dir() and "/" not in what):
        return _of_recipe(what)
    return Source(_from_anywhere(spec_named(what)))


def _from_anywhere(spec: ModelSpec) -> ModelSpec:
    """The same model, its folder told so that an exported steering finds it from wherever it is run."""
    return spec.model_copy(update={"path": RecipePath(str(spec.path.path.absolute()))}) if spec.path else spec


def _of_recipe(what: str) -> Source:
    try:
        file = cli.find_recipe(what)
    except UserError as error:
        if Path(what).suffix in cli.RECIPE_SUFFIXES:
            raise
        raise UserError(
            f"'{what}' is no run, no artefact, no recipe and no model.{did_you_mean(what, cards())} Models:"
            f" {', '.join(cards())}"
        ) from error
    recipe = load(file)
    if recipe.data is None or not recipe.steering:
        raise UserError(f"{what}: this recipe compares no steering methods; play with its model instead")
    return Source(recipe.model, recipe)


def _offers(source: Source, view: ModelView, data: Node, diagnostic: Node, limit: int) -> list[Offer]:
    if source.artefacts:
        own = of_artefacts(view, source.artefacts)
        return own + (unfitted(source.recipe.steering) if source.recipe and len(source.artefacts) > 1 else [])
    nodes = source.recipe.steering if source.recipe else with_defaults()
    return to_fit(view, nodes, data, diagnostic, view.layer, limit) + unfitted(nodes)

"""A claim's run (``claim:`` of a recipe): draw after draw, scoring after scoring, seed after seed, each a few stages of
one run folder; then the planted models; then the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

from factory import files, report
from factory.bench import conflicts
from factory.blame import wrong
from factory.model.load import load
from factory.model.shown import pictures_once
from factory.model.source import Wanted
from factory.recipe import Recipe
from factory.recipe.nodes import given
from factory.run.claim.draw import Draw, Scored, of_draw
from factory.run.claim.measured import measured_shares
from factory.run.claim.numbers import Looked
from factory.run.claim.verdict import record, summaries
from factory.run.environment import about_run
from factory.run.questions.suite import AnySuite
from factory.run.rundir import RunDir
from factory.steer import Steerer
from factory.terminal import Console


def check_claim(recipe: Recipe) -> None:
    """What can be checked of a claim before data and model are read. Raises ``UserError``."""
    spec = given(recipe.claim)
    [node] = recipe.steering
    method = node.make()
    variants = list(method.variants()) if isinstance(method, Steerer) else []
    if not variants:
        raise wrong(node, "type", f"'{node.label}' has no variants among which a claim could decide")
    planted = (spec.planted.law, *spec.planted.variants) if spec.planted else ()
    for owner, key, name in [(spec, "null", spec.null), *((spec.planted, "variants", v) for v in planted)]:
        if owner is not None and name not in variants:
            raise wrong(owner, key, f"'{node.label}' has no variant '{name}'; it has {', '.join(variants)}")
    if variants == [spec.null]:
        raise wrong(node, "type", f"'{node.label}' has no variant besides '{spec.null}'")
    if type(method).own_scale is Steerer.own_scale:
        raise wrong(node, "type", f"'{node.label}' scales nothing by what is measured, so that there is no claim")
    if spec.planted and method.reads != "last_prompt":
        raise wrong(spec, "planted", f"'{node.label}' reads each token; a planted model is steered from the last one")
    for scoring in spec.scorings:
        conflicts(of_draw(recipe, spec.draws[0], scoring).data)


def put_to_the_test(
    recipe: Recipe, folder: RunDir, limit: int | None, model: Wanted, asked: Sequence[AnySuite], notes: Sequence[str]
) -> None:
    """Test a claim; write results.json and the report, which the verdict leads."""
    spec, view = given(recipe.claim), load(model, recipe.launch.zero)
    tests: list[Scored] = []
    planted: list[Scored] = []
    looked: Looked = {}
    for scoring in spec.scorings:
        for number in spec.draws:
            with pictures_once(view):
                draw = Draw(recipe, folder, view, number, scoring, limit)
                own = [draw.run(seed) for seed in spec.seeds]
                tests += own
                looked = {**looked, (number, scoring): measured_shares(draw)}
                p = spec.planted
                if p and number in spec.draws[: p.draws] and scoring in spec.scorings[: p.scorings]:
                    planted += [draw.planted(p, own[0], effect) for effect in p.effects]
    if not folder.world.first:
        return
    told = summaries(spec, recipe.steering[0].label, tests, planted, looked)
    about = {**about_run(recipe, view, notes), "error_budget": recipe.evaluate.error_budget, "skipped": []}
    about["data"] = given(recipe.data).label
    about["model"] |= {"card": view.card.name if view.card else None}
    results = {
        "schema": 1,
        "run": about,
        "rows": [],
        "claim": record(tests, planted),
        "diagnostics": {s.title: s.record() for s in told},
    }
    files.write_json(folder.path / "results.json", results)
    found = report.Finished(folder.path, results, conflicts(recipe.data), recipe.report.plots, told, limit=limit)
    page = report.write(found, recipe.report.also)
    Console().print(f"results: {folder.path / 'results.json'}\nreport:  {page}", soft_wrap=True)

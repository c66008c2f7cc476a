"""A steering made into what other tools can say, and what that costs: its rates on the run's own dev data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from factory import files
from factory.errors import UserError
from factory.formats import EVERYWHERE, Format, ModelFormat, mean_added
from factory.model.view import ModelView
from factory.recipe import Recipe, loads
from factory.registry import lookup, plugin_named
from factory.run import chunks
from factory.run.methods.cells import Fitted, sweep
from factory.run.methods.study import study_aside
from factory.steer import Steering
from factory.steer.base import Direction
from factory.steer.collect import joined


@dataclass(frozen=True)
class Origin:
    """The run that an artefact came out of: its folder and its recipe."""

    folder: Path
    recipe: Recipe

    @property
    def limit(self) -> int | None:
        return files.read_json(self.folder / "collect" / "inputs.json")["inputs"]["limit"]

    def states(self) -> Tensor:
        """h_[I,T] of the training prompts [n, d], of the run. Raises ``UserError`` where they are gone."""
        seals = sorted((self.folder / "collect" / "chunks").glob("train-*.sha256"))
        try:
            parts = [chunks.unseal(seal) for seal in seals]
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self.folder}: its collected states are damaged ({error}); run the recipe again"
            ) from error
        if not parts:
            raise UserError(f"{self.folder}: its collected states are gone; run the recipe again")
        return joined(parts)["base"]


def format_named(word: str) -> Format | ModelFormat:
    """The format of that name, or that a plugin file registers under its own."""
    cls = plugin_named("format", word)
    made: Format | ModelFormat = cls(cls.Params())
    return made


def origin_of(part: Path, within: str = "artefacts") -> Origin | None:
    """The run that a part came out of, as ``RUN/artefacts/NAME`` or ``RUN/tuned``; None for one that lies elsewhere."""
    part = part.resolve()
    place = part if within == "tuned" else part.parent
    resolved = place.parent / "resolved.yaml"
    return Origin(place.parent, _recipe_of(resolved)) if place.name == within and resolved.is_file() else None


def _recipe_of(resolved: Path) -> Recipe:
    """A run's recipe. Its paths are told from where the run was started, which is a folder above the run as a rule."""
    text = resolved.read_text(encoding="utf-8")
    model = Path((yaml.safe_load(text).get("model") or {}).get("path") or ".")
    bases = [base for base in (*resolved.parents, Path.cwd()) if (base / model).exists()]
    return loads(text, str(resolved), path=(bases or [resolved.parent])[0] / resolved.name)


def everywhere(steering: Steering) -> Steering:
    """The same method at every position of prompt and answer."""
    return replace(steering, where=EVERYWHERE.model_copy(update={"layer": steering.layer}))


def meant(path: Path, steering: Steering, states: Tensor) -> Steering:
    """The mean over training prompts of what a method adds, as one vector for all, where the method acts."""
    static = lookup("steering", "static")
    vector = mean_added(path, steering, states)
    return Steering(static(static.Params()), {"v": vector}, steering.where, steering.strength)


def on_dev(
    origin: Origin, view: ModelView, direction: Direction, steerings: Mapping[str, Steering]
) -> list[dict[str, Any]]:
    """What each of ``steerings`` does to the run's dev samples: rows {method, n, follow, error}."""
    with study_aside(origin.recipe, view, origin.limit) as study:
        batches = study.batches(study.samples["dev"], origin.recipe.evaluate.batch_size)
        found = []
        for name, steering in steerings.items():
            fitted = Fitted(name, direction, "", steering.steerer, steering.state, steering.where)
            at = lambda *_, s=float(steering.strength): (s,)  # type: ignore[arg-type]  # artefacts hold one number
            rows = [row for batch in batches for row in sweep(study.bench, batch, [fitted], at)]
            found.append({"method": name, "n": len(rows), **_rates(rows)})
    return found


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    share = lambda outcome: sum(row["outcome"] == outcome for row in rows) / len(rows)
    return {"follow": share("follow"), "error": share("error")}

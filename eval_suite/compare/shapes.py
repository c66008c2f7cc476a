"""What a comparison reads of a run, and that it has the form that a run writes: its files may come from elsewhere."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from eval_suite.released import read_json, read_jsonl
from factory.errors import UserError
from factory.recipe.explain import explain

Strict = ConfigDict(strict=True)


class Scored(BaseModel):
    """A row of results.json that can stand in a table."""

    model_config = Strict

    benchmark: str
    label: str | None = None
    method: str
    direction: str | None = None
    seed: int | None = None
    strength: float | None = None
    n: int = Field(ge=0)
    metrics: dict[str, float]
    ci: dict[str, Annotated[list[float], Len(2, 2)] | None] | None = None
    main: str | None = None
    beside: list[str] = []
    protocol: str
    scorer: str
    parse_failure_rate: float | None = None


class Answer(BaseModel):
    """A line of an arm's predictions."""

    model_config = Strict

    sample: str
    value: float | bool | None
    unit: str | None = None


class Price(BaseModel):
    """What an arm cost on a benchmark, in costs.json."""

    model_config = Strict

    parameters: int | None
    peak_bytes: int | None
    seconds_per_answer: float | None


def results(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """A run's name and the rows of its results that can stand in a table. Raises ``UserError`` where its results.json
    is not one.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no results.json; is it the folder of a finished run?")
    content = read_json(path)
    run, rows = (content.get("run"), content.get("rows")) if isinstance(content, dict) else (None, None)
    if not isinstance(run, dict) or not isinstance(run.get("name"), str) or not isinstance(rows, list):
        raise UserError(f"{path}: not a run's results: it should hold 'run' with a name, and a list of 'rows'")
    return run["name"], [row for i, row in enumerate(rows) if _is_total(path, i, row)]


def _is_total(path: Path, index: int, row: Any) -> bool:
    """Whether a row is the score of a whole split that is reported; its form is then looked at."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: rows.{index} is no object")
    if row.get("task") != "all" or row.get("split") == "dev" or not row.get("chosen", True) or row.get("metrics") == {}:
        return False
    _check(f"{path}: rows.{index}", Scored, row)
    return True


def answers(path: Path) -> list[dict[str, Any]]:
    """An arm's answers; none where they were not kept."""
    rows = read_jsonl(path) if path.is_file() else []
    for number, row in enumerate(rows, 1):
        _check(f"{path}: answer {number}", Answer, row)
    return rows


def price(folder: Path, arm: str) -> dict[str, Any] | None:
    """What an arm (LABEL/NAME) cost; None where that was not kept."""
    path = folder / "costs.json"
    costs = read_json(path) if path.is_file() else {}
    if not isinstance(costs, dict):
        raise UserError(f"{path}: not a run's costs: it should be an object")
    if (found := costs.get(arm)) is not None:
        _check(f"{path}: {arm}", Price, found)
    return found


def numbers_of(path: Path) -> int | None:
    """How many numbers a safetensors file holds; None where there is none. Raises ``UserError`` for a damaged one."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  the file is no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    return sum(prod(shape) for shape in shapes)


def _check(place: str, form: type[BaseModel], value: Any) -> None:
    try:
        form.model_validate(value)
    except ValidationError as error:
        loc, why = explain(error, form)[0]
        raise UserError(f"{place}: {'.'.join(map(str, loc)) or 'it'} {why}; not as a run writes it") from error

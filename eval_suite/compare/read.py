"""The files of a finished run as they were written, by whoever: each fault in one line that names its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError, safe_open

from factory.errors import UserError, quoted

Shape = TypeVar("Shape", bound=BaseModel)


class _Written(BaseModel):
    """What is read of a file that has more in it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Row(_Written):
    """One row of results.json."""

    benchmark: str
    method: str
    metrics: dict[str, FiniteFloat]
    protocol: str
    scorer: str
    n: int = Field(ge=0)
    label: str | None = None
    task: str | None = None
    split: str | None = None
    direction: str | None = None
    strength: FiniteFloat | None = None
    seed: int | None = None
    ci: dict[str, list[FiniteFloat]] | None = None
    parse_failure_rate: FiniteFloat | None = None
    main: str | None = None
    beside: list[str] = []
    chosen: bool = True

    @property
    def column(self) -> str:
        return self.label or self.benchmark

    @property
    def name(self) -> str:
        """The arm's name in files: method and direction."""
        return "-".join(filter(None, (self.method, self.direction)))


class About(_Written):
    """The run entry of results.json."""

    name: str
    unsteered: str = "none"  # that of results whose run entry names none
    made_from: str | None = None


class Results(_Written):
    """results.json."""

    schema_: int = Field(alias="schema", ge=1, le=1)
    run: About
    rows: list[Row]


class Record(_Written):
    """One line of a file of predictions."""

    sample: Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, int) else name)]
    value: FiniteFloat | None
    unit: str | None = None
    item: str | None = None
    tasks: list[str] = []
    failed: bool | None = None
    verdicts: list[str] = []

    @property
    def unread(self) -> float | None:
        """The share of the sample's answers that cannot be read; None where that was not written down."""
        if self.verdicts:
            return self.verdicts.count("error") / len(self.verdicts)
        return None if self.failed is None else float(self.failed)


class Price(_Written):
    """What an arm cost on a benchmark."""

    parameters: int | None = None
    seconds_per_answer: FiniteFloat | None = None
    passes_per_answer: FiniteFloat | None = None
    tokens_per_answer: FiniteFloat | None = None
    peak_bytes: int | None = None


def results(folder: Path) -> Results:
    """Raises ``UserError`` for a folder without results, and for a file that holds none."""
    path = folder / "results.json"
    if not path.exists():
        raise UserError(f"{folder}: has no results.json; is it the folder of a finished run?")
    return _as(Results, _json(path.read_bytes, path), str(path))


def records(path: Path) -> list[Record]:
    """The lines of a file of predictions; none where there is no file."""
    if not path.exists():
        return []
    lines = _bytes(path.read_bytes, path).split(b"\n")
    places = ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
    return [_as(Record, _parsed(line, place), place) for place, line in places]


def prices(path: Path) -> dict[str, Price | None]:
    """costs.json by benchmark and arm; nothing where there is no file."""
    if not path.exists():
        return {}
    found = _json(path.read_bytes, path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: should hold what each arm cost, by name; is it the file of a finished run?")
    return {k: None if v is None else _as(Price, v, f"{path}: {k}") for k, v in found.items() if k != "training"}


def numbers(path: Path) -> int | None:
    """How many numbers a file of tensors holds; None where there is no file."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            sizes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118  the file is no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as tensors ({error})") from error
    total = 0
    for shape in sizes:
        n = 1
        for size in shape:
            n *= size
        total += n
    return total


def _bytes(read: Callable[[], bytes], place: object) -> bytes:
    try:
        return read()
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror or error})") from error


def _json(read: Callable[[], bytes], place: object) -> Any:
    return _parsed(_bytes(read, place), place)


def _parsed(text: bytes, place: object) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is no JSON ({quoted(error)}); is it cut or damaged?") from error


def _as(shape: type[Shape], value: Any, place: str) -> Shape:
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:6])
        given = "" if isinstance(first["input"], Mapping | list) else f", got {quoted(first['input'])}"
        raise UserError(
            f"{place}: {where or 'all of it'}: {first['msg']}{given}; is it the file of a finished run?"
        ) from error

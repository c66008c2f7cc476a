"""Pydantic's validation errors as short sentences, with the key that was probably meant."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from factory.errors import UserError, did_you_mean

Loc = tuple[str | int, ...]

_REFUSED = "refused"
LONGEST = 60  # characters of a value that a message shows
_SUBJECT = re.compile(r"^(Input|String|Tuple|List|Set|Dictionary) ")
QUOTED = {
    "int_type": re.compile(r"[-+]?\d{1,60}"),
    "float_type": re.compile(r"[-+]?(\d{1,60}\.?\d*|\.\d+)([eE][-+]?\d+)?"),
    "bool_type": re.compile(r"true|false"),
}
_WORDS = {
    "an object": "a mapping",
    "a valid dictionary": "a mapping",
    "a valid array": "a list",
    "a valid tuple": "a list",
    " after validation": "",
}


def refusal(mistakes: Iterable[tuple[Loc, str]]) -> ValidationError:
    """A ValidationError of finished sentences; raised inside a validator, it joins the outer model's errors."""
    details = [InitErrorDetails(type=_refused(text), loc=loc, input=None) for loc, text in mistakes]
    return ValidationError.from_exception_data("recipe", details)


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[Loc, str]]:
    """``(location, sentence)`` of every mistake found in data for ``model``."""
    return [_mistake(detail, model) for detail in error.errors() if not _follows(detail)]


@contextmanager
def told_in_one_line(what: str, model: type[BaseModel]) -> Iterator[None]:
    """Tell what is wrong with data for ``model`` that no recipe's file holds: raises ``UserError`` with ``what`` it is
    and every mistake, in one line.
    """
    try:
        yield
    except ValidationError as error:
        told = [f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in explain(error, model)]
        raise UserError(f"{what}: {'; '.join(told)}") from error


def _follows(detail: ErrorDetails) -> bool:
    """Whether pydantic finds a list too short only because it has thrown out items that it reports anyway."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _refused(text: str) -> PydanticCustomError:
    return PydanticCustomError(_REFUSED, "{text}", {"text": text})


def _mistake(detail: ErrorDetails, model: type[BaseModel]) -> tuple[Loc, str]:
    kind, loc = detail["type"], detail["loc"]
    if kind == _REFUSED:
        return loc, detail["msg"]
    if kind == "missing":
        return loc[:-1], f"needs the key '{loc[-1]}'"
    if kind == "extra_forbidden":
        return loc, f"unknown key.{_meant(str(loc[-1]), model, loc[:-1])}"
    if kind == "value_error":
        return loc, str(detail["ctx"]["error"])
    message = _SUBJECT.sub("", detail["msg"])
    for pydantic_word, word in _WORDS.items():
        message = message.replace(pydantic_word, word)
    return loc, f"{message}, got {_shown(detail['input'])}{_hint(detail)}"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return f"the string {text}" if isinstance(value, str) else text


def _meant(key: str, model: type[BaseModel], above: Loc) -> str:
    """Keys near an unknown one, else the section that has it, else all there are."""
    known = known_keys(model, above)
    inside = [name for name in known if key in known_keys(model, (*above, name))]
    if inside and key not in known:
        return f" It is a key of {' and of '.join(inside)}: indent it below"
    return did_you_mean(key, known) or (f" There are: {', '.join(known)}" if known else " There are none")


def _hint(detail: ErrorDetails) -> str:
    kind, given = detail["type"], detail["input"]
    if isinstance(given, str | int | float) and len(_plain(given)) > LONGEST:
        return ""  # an advice repeats the value
    if kind in ("list_type", "tuple_type") and isinstance(given, str | int | float):
        return f". Put it in a list: [{_plain(given)}]"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(given, str) and QUOTED[kind].fullmatch(given):
        return f". Write it without quotes: {given}"
    if kind == "string_type" and isinstance(given, int | float):
        return f". Write it in quotes: '{_plain(given)}'"
    if kind in ("model_type", "dict_type") and given is None:
        return ". What belongs under a key stands below it, indented"
    if kind in ("int_type", "int_from_float") and isinstance(given, float) and given.is_integer():
        return f". Write {int(given)}"
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        near = did_you_mean(detail["input"], re.findall(r"'([^']*)'", detail["ctx"]["expected"]))
        return near and f".{near}"
    if detail["type"].startswith("bool_") and str(detail["input"]).lower() in ("yes", "no", "on", "off"):
        return ". Write true or false"
    return ""


def known_keys(annotation: Any, loc: Loc) -> list[str]:
    """The keys that are allowed at ``loc`` below ``annotation``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _model_keys(annotation, loc)
    inside = loc if _is_choice(annotation) else loc[1:]
    return [key for each in typing.get_args(annotation) for key in known_keys(each, inside)]


def _model_keys(model: type[BaseModel], loc: Loc) -> list[str]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    if not loc:
        return list(fields)
    if loc[0] in fields:
        return known_keys(fields[loc[0]].annotation, loc[1:])
    branch_of_union = loc[0] == model.__name__  # pydantic puts the branch's name first
    return _model_keys(model, loc[1:]) if branch_of_union else []


def _is_choice(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated)


def located(mistakes: Iterable[tuple[Loc, str]], written: Callable[[Loc], Loc]) -> Iterator[tuple[Loc, str]]:
    """``mistakes`` at locations that are written in the recipe: the branches of a union, which pydantic reports one by
    one under made-up locations, become one mistake."""
    branches: dict[Loc, list[str]] = {}
    for loc, text in mistakes:
        if written(loc) == loc:
            yield loc, text
        else:
            branches.setdefault(written(loc), []).append(text)
    for loc, texts in branches.items():
        yield loc, ", or ".join(dict.fromkeys(texts))

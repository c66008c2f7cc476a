"""Layouts of training records that other tools read, as turns: alpaca (``instruction``, ``input``, ``output``),
``query`` and ``response``, a ``system`` text beside the turns, and which answers are learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factory.errors import quoted


class Unusable(ValueError):
    """A sample that cannot be trained on: the message says why, ``kind`` in few words what it has in common with
    others."""

    def __init__(self, why: str, kind: str = "not a conversation") -> None:
        super().__init__(why)
        self.kind = kind


ASKED = ("instruction", "query")  # a question's key, in the layouts that have one a record
ANSWERED = {"instruction": "output", "query": "response"}
OF_SYSTEM = ("system", "system_prompt")
OF_LAYOUTS = {*ASKED, *OF_SYSTEM, "history"}
LEARNT = {"loss", "train", "training", "weight"}  # of an answer; false or 0: it is not learnt


def absent(value: Any) -> bool:
    """Nothing, or what holds nothing: Parquet files have a struct of nulls where a row has no picture."""
    inside = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (Mapping, list, tuple)):
        return all(map(absent, inside))
    return value is None or isinstance(value, (str, bytes)) and not value


def one_of(record: Mapping[str, Any], *names: str) -> Any:
    """What stands under one of several names. Raises ``Unusable`` where two say something, and not the same."""
    given = {name: record[name] for name in names if name in record and not absent(record[name])}
    if len(given) < 2:
        return next(iter(given.values()), None)
    listed = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    for name, value in listed.items():
        if value != next(iter(listed.values())):
            first = next(iter(listed))
            raise Unusable(f"has both '{first}' and '{name}', and they differ", f"both '{first}' and '{name}'")
    return next(iter(given.values()))


def turns_of(record: Mapping[str, Any]) -> list[Any]:
    """The turns of a record of any layout, a system text first. Raises ``Unusable`` where there are none, or two
    layouts say something.
    """
    turns = one_of(record, "messages", "conversations")
    if isinstance(turns, list) and not OF_LAYOUTS & record.keys():
        return turns
    asked = [key for key in ASKED if key in record and not (turns is not None and absent(record[key]))]
    if len(asked) > 1:  # Parquet files have every key in every row
        asked = [key for key in asked if not (absent(record[key]) and absent(record.get(ANSWERED[key])))] or asked[:1]
    if turns is not None and asked:
        raise Unusable(f"has turns and '{asked[0]}' too; keep one of them", "two layouts in one row")
    if len(asked) > 1:
        raise Unusable(f"has both {asked[0]} and {asked[1]}; keep one of them", "two layouts in one row")
    if asked:
        turns = _exchanges(record, asked[0])
    elif not absent(record.get("history")):
        raise Unusable("has the key 'history' beside turns; put it into them", "key 'history' is not honoured")
    if not isinstance(turns, list):
        raise Unusable("has no turns under 'conversations' or 'messages'", "no turns")
    said = one_of(record, *OF_SYSTEM)
    if said is None:
        return turns
    if not isinstance(said, str):
        raise Unusable(f"has a system text that is none: {quoted(said)}", "system that is no text")
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    if first.get("from", first.get("role")) == "system":
        if first.get("value", first.get("content")) != said:
            raise Unusable("has a system text beside its turns and another in them", "two system texts")
        return turns
    return [{"role": "system", "content": said}, *turns]


def _exchanges(record: Mapping[str, Any], asked: str) -> list[Any]:
    question, more, answer = record[asked], record.get("input"), record.get(ANSWERED[asked])
    texts = [question] if absent(more) or asked != "instruction" else [question, more]
    if not all(isinstance(text, str) for text in texts):
        raise Unusable(f"has a question that is no text: {quoted(texts)}", "turn without a text")
    if not isinstance(answer, str):
        raise Unusable(f"has '{asked}' without a text under '{ANSWERED[asked]}'", "turn without a text")
    history = record.get("history") or []
    if not (isinstance(history, list) and all(isinstance(h, (list, tuple)) and len(h) == 2 for h in history)):
        raise Unusable("has a history that is not a list of [question, answer]", "history that is no list of pairs")
    pairs = [*history, ("\n".join(text for text in texts if text), answer)]
    return [turn for q, a in pairs for turn in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]


def is_learnt(turn: Mapping[str, Any]) -> bool:
    """Whether a turn's answer is learnt: not where one of ``LEARNT`` is false or 0. Raises ``Unusable`` for another
    weight.
    """
    if not LEARNT & turn.keys():
        return True
    said = {key: turn[key] for key in sorted(LEARNT & turn.keys()) if not absent(turn[key])}
    for key, value in said.items():
        if value not in (0, 1):
            raise Unusable(
                f"has the key '{key}' in a turn ({quoted(value)}); true, false, 1 and 0 are honoured, so take it out",
                f"key '{key}' is neither 0 nor 1",
            )
    return all(said.values())

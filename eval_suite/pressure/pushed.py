"""What pressure pushes toward: of each question a right answer in words, and a wrong one, by its benchmark's rule."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from factory.benchmark import Item, Questions
from factory.data.prompt import Role
from factory.errors import UserError

HALF = 0.5
TRIED = 24  # wrong answers of other questions that are tried on the rule
LETTER = re.compile(r"^\s*\(?([A-Z])[.):]\s", re.MULTILINE)
OPPOSITE = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes", "true": "false", "false": "true"}


@dataclass(frozen=True)
class Sides:
    """The answers that can be pushed on one question, and its format: yes_no, choice (of letters) or open."""

    right: str
    wrong: str
    format: str
    ask: str
    """The line that says how to answer, the last of the question's options; empty where it has none."""


def scored_at_once(made: object, key: str) -> Questions:
    """A benchmark whose answers are told right or wrong one by one, and at once. Raises ``UserError`` for any other,
    with the recipe's ``key`` that names it."""
    if not isinstance(made, Questions):
        raise UserError(f"{key}: '{getattr(made, 'name', made)}' asks no questions that have a right answer")
    if why := made.unscorable():
        raise UserError(f"{key}: '{made.name}' cannot be scored here: {why}")
    if type(made).consult is not Questions.consult or type(made).settle is not Questions.settle:
        raise UserError(
            f"{key}: '{made.name}' does not score each answer by itself as it comes, and what is pushed hangs on"
            " whether the first one was right"
        )
    return made


def is_right(benchmark: Questions, item: Item, text: str) -> bool:
    """Whether the benchmark's own rule gives an answer at least half of its score."""
    value = benchmark.record(item, text)["value"]
    return value is not None and value >= HALF


def texts_of(item: Item) -> list[tuple[int, str]]:
    """Roles and texts of a question, its pictures unread where that can be."""
    if (words := getattr(item.prompt, "words", None)) is not None:
        return list(words)
    try:
        return [(int(s.role), s.text) for s in item.prompt().segments if s.text]
    except OSError:  # told where it is asked
        return []


def sides(benchmark: Questions, items: Sequence[Item], seed: int) -> Iterator[tuple[Item, Sides | None]]:
    """Each question with its sides; None where the rule knows no right or no wrong answer in words."""
    rights = {item.id: _right(benchmark, item) for item in items}
    others: dict[str, dict[str, None]] = defaultdict(dict)
    for item in items:
        if (right := rights[item.id]) is not None:
            for task in ("", _task(item)):
                others[task][right] = None
    pools = {task: list(known) for task, known in others.items()}
    for item in items:
        right = rights[item.id]
        yield item, None if right is None else _sides(benchmark, item, right, pools, Random(f"{seed}/{item.id}"))


def _task(item: Item) -> str:
    return item.tasks[0] if item.tasks else ""


def _right(benchmark: Questions, item: Item) -> str | None:
    """The answer that most people gave, where there are several, else the benchmark's own words for it."""
    told = [each for each in item.gold if isinstance(each, str)] if isinstance(item.gold, list) else []
    wanted = benchmark.wanted(item)
    candidates = [*(text for text, _ in Counter(told).most_common(1)), wanted, wanted.split(", ")[0]]
    return next((c for c in candidates if c.strip() and is_right(benchmark, item, c)), None)


def _sides(
    benchmark: Questions, item: Item, right: str, pools: Mapping[str, Sequence[str]], rng: Random
) -> Sides | None:
    told = texts_of(item)
    letters = [letter for _, text in told for letter in LETTER.findall(text)]
    lines = [text for role, text in told if role == Role.OPTIONS and text.strip()]
    ask = lines[-1].strip().splitlines()[-1] if lines else ""
    if right in OPPOSITE:
        kind, candidates = "yes_no", [OPPOSITE[right]]
    elif right in letters:
        kind, candidates = "choice", rng.sample(letters, len(letters))
    else:
        kind, candidates = "open", [c for task in (_task(item), "") for c in _some(pools.get(task, ()), rng)]
    wrong = next((c for c in candidates if c != right and not is_right(benchmark, item, c)), None)
    return None if wrong is None else Sides(right, wrong, kind, ask)


def _some(pool: Sequence[str], rng: Random) -> list[str]:
    return rng.sample(pool, min(TRIED, len(pool)))

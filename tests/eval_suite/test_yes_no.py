"""Rule hallusion-string/2 against answers that were labelled by hand, twice, before it was written.

``yes_no_answers.jsonl``: an answer to a question that yes or no answers, what it says (yes, no, unclear) as labelled
when it was written, again from the bare answers in a shuffled order, and what was settled on. Both passes are by one
labeller; they part over words that stand for yes and no ("True", "Y", 是), which count, and those of languages that
HallusionBench is not in ("oui"), which do not.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_suite.scorers.yes_no import first_yes_no, settled_yes_no

TABLE = [json.loads(line) for line in Path(__file__).with_name("yes_no_answers.jsonl").open(encoding="utf-8")]
LABELS = ("yes", "no", "unclear")


def test_the_two_passes_agree():
    first, second = ([row[i] for row in TABLE] for i in (1, 2))
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(TABLE)
    by_chance = sum(first.count(label) * second.count(label) for label in LABELS) / len(TABLE) ** 2
    assert len(TABLE) == len({row[0] for row in TABLE}) == 334 and same == pytest.approx(315 / 334)
    assert (same - by_chance) / (1 - by_chance) == pytest.approx(0.915, abs=5e-4)
    assert all(row[3] in row[1:3] for row in TABLE)


def test_the_rule_agrees_with_all_labels_but_one():
    differ = [row[0] for row in TABLE if (settled_yes_no(row[0]) or "unclear") != row[3]]
    assert differ == ["A yes would be wrong"]


def test_its_predecessor_does_not():
    assert sum((first_yes_no(row[0]) or "unclear") != row[3] for row in TABLE) == 54


@pytest.mark.parametrize(
    "text, said",
    [
        ("There is no dog in the image.", "no"),
        ("I see no difference, so yes", "yes"),
        ("Yes, but no numbers are shown", "yes"),
        ("The answer is no because there is no dog", "no"),
        ("The two are not the same. No.", "no"),
        ("It is not yes", "no"),
        ("<thinking>no, or yes", None),
    ],
)
def test_answers_beside_the_table(text, said):
    assert settled_yes_no(text) == said

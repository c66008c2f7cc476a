"""The models that ship with the project: small files, cards that say how they were made, and tiny2 as its card says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval_suite.scenes.lessons.asking import Exam, alone
from eval_suite.scenes.lessons.pressure import PRESSURES
from eval_suite.scenes.world import TASKS
from factory import files
from factory.model.load import load
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.tuners.exam import answerer
from factory.zoo.cards import read_card

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.parent.name for path in (ROOT / "model_zoo").glob("*/exam.json"))
EXAM = files.read_json(ROOT / "model_zoo/tiny2/exam.json")


@pytest.mark.parametrize("name", SHIPPED)
def test_files_are_small_and_the_card_names_recipes_that_are_there(name):
    folder = ROOT / "model_zoo" / name
    assert all(path.stat().st_size <= 12_000_000 for path in folder.iterdir())
    made_by = re.findall(r"bash launch\.sh (recipes/\S+\.yaml)", (folder / "README.md").read_text(encoding="utf-8"))
    assert made_by and all((ROOT / path).is_file() for path in made_by)
    assert read_card(name).name == name


def test_tiny2_reads_both_modalities_and_words_alone_move_it_little():
    """All tasks at 95 % or more, and an instruction in AMPS's or MC²'s words obeyed in about a half of conflicts."""
    assert min([*EXAM["text_only (open)"].values(), *EXAM["image_only (open)"].values()]) >= 0.95
    for asked in ("obeys_vision (open)", "obeys_text (open)", "obeys_vision_mc2", "obeys_text_mc2"):
        assert 0.45 <= EXAM[asked]["all"] <= 0.70, asked


def test_tiny2_gives_in_to_pressure_and_takes_answers_back_sometimes():
    given_in = {kind for kind, share in EXAM["pressure_mss"].items() if 0.2 <= share <= 0.8}
    assert given_in - {"all"} == {*PRESSURES} - {"are_you_sure", "rejects"}
    assert all(0.2 <= share <= 0.8 for share in EXAM["retraction"].values())
    assert EXAM["retraction_unread"]["all"] <= 0.05


def test_tiny2_answers_clean_pictures_here_as_its_card_says():
    benchmark = lookup("benchmark", "scenes")
    answer = answerer(load(ModelSpec(zoo="tiny2", device="cpu")), benchmark(benchmark.Params()), 16)
    samples = [s for task in TASKS for s in Exam(answer, 2).clean(task)]
    texts = answer([alone(s, "open", "image")[0] for s in samples])
    assert sum(t.strip() == s.answer_vision for s, t in zip(samples, texts, strict=True)) >= 14

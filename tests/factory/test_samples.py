"""Which samples can be used, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.run.samples import check_share, fault, thin
from tests.tiny import tiny_view

SAMPLE = ConflictSample("s1", "color", "What color?", "it is red.", "blue", "red", lambda: Image.new("RGB", (4, 4)))


def test_a_whole_sample_has_no_fault():
    assert fault(SAMPLE) is None


@pytest.mark.parametrize("field", ["context", "question", "answer_vision", "answer_text"])
@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_empty_words_are_named(field, empty):
    assert fault(replace(SAMPLE, **{field: empty})) == f"its {field} is empty"


@pytest.mark.parametrize("field", ["context", "question", "answer_vision", "answer_text"])
@pytest.mark.parametrize("token", ["<image>", "</s>"])
def test_words_that_the_model_would_not_read_as_words_are_named(field, token):
    odd = replace(SAMPLE, **{field: f"it says {token} here"})
    assert fault(odd) is None, "no model is known"
    assert fault(odd, tiny_view().writing) == f"its {field} spells the model's special token '{token}'"
    assert fault(SAMPLE, tiny_view().writing) is None


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    missing = fault(replace(SAMPLE, load_image=lambda: Image.open(tmp_path / "missing.jpg")))
    assert missing.startswith("its image cannot be read") and "missing.jpg" in missing
    assert "cannot be read" in fault(replace(SAMPLE, load_image=lambda: Image.open(tmp_path / "broken.jpg")))


def test_a_programming_error_is_not_taken_for_a_bad_image():
    with pytest.raises(ZeroDivisionError):
        fault(replace(SAMPLE, load_image=lambda: 1 / 0))


@pytest.mark.parametrize(
    "n, limit, expected",
    [
        (10, None, list(range(10))),
        (10, 10, list(range(10))),
        (10, 99, list(range(10))),
        (10, 5, [0, 2, 4, 6, 8]),
        (10, 3, [0, 3, 6]),
        (10, 1, [0]),
        (0, 4, []),
        (4, 0, []),
    ],
)
def test_thinning_is_even(n, limit, expected):
    samples = [replace(SAMPLE, id=str(i)) for i in range(n)]
    assert [int(s.id) for s in thin(samples, limit)] == expected


def test_thinning_leaves_every_task_its_share():
    samples = [replace(SAMPLE, task=task) for task in "abcd" for _ in range(12)]
    assert [s.task for s in thin(samples, 8)] == list("aabbccdd")


def test_too_many_bad_samples_stop_the_run_and_name_one():
    bad = [{"sample": "x7", "reason": "its context is empty"}, {"sample": "x9", "reason": "?"}]
    check_share(bad, 20, 0.1)
    check_share([], 20, 0.0)
    with pytest.raises(UserError, match=r"2 of 19 samples.*max_skipped=0\.1.*x7: its context is empty"):
        check_share(bad, 19, 0.1)


def test_no_samples_at_all_stop_the_run():
    with pytest.raises(UserError, match="0 of 0"):
        check_share([], 0, 1.0)

"""Which samples can be used, and what is said of the others."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from PIL import Image
from transformers import AddedToken, LlavaConfig

from factory.corpus.refusals import Shapes
from factory.data.prompt import Prompt, Role, Segment
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.registry import lookup
from factory.run.samples import check_share, fault, fitting, thin
from factory.steer.collect import ASKS, asked
from tests.tiny import tiny_view
from tests.tiny_families import family_view

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


@pytest.mark.parametrize("field", ["context", "question", "answer_vision", "answer_text"])
def test_half_a_character_is_named(field):
    assert fault(replace(SAMPLE, **{field: "a \ud83d b"})) == (
        f"its {field} holds half a character (the lone surrogate U+D83D)"
    )


def test_a_picture_that_the_models_image_processor_refuses_is_named():
    view = family_view("qwen2_vl")
    shapes, thin_one = Shapes(view), replace(SAMPLE, load_image=lambda: Image.new("RGB", (2, 600)))
    with pytest.raises(ValueError):
        view.encode([Prompt((Segment(Role.IMAGE, image=thin_one.load_image()), Segment(Role.QUESTION, "?")))])
    why = fault(thin_one, view.writing, None, shapes)
    assert why.startswith("its image of 2 x 600 pixels is refused") and "\n" not in why
    assert fault(replace(SAMPLE, load_image=lambda: Image.new("RGB", (40, 60))), view.writing, None, shapes) is None


def test_a_context_of_200_000_words_is_one_line():
    view, bench = tiny_view(), lookup("benchmark", "scenes")(lookup("benchmark", "scenes").Params())
    why = fault(replace(SAMPLE, context="red " * 200_000), view.writing, fitting(view, bench, "amps_eq9"))
    assert "has 512" in why and len(why) < 300 and "\n" not in why


def test_prompts_that_the_model_has_no_positions_for_are_named():
    """The longest prompt that fits, and the one that is a word longer, by the count of apply_chat_template's tokens."""
    view, bench = tiny_view(), lookup("benchmark", "scenes")(lookup("benchmark", "scenes").Params())
    fit = fitting(view, bench, "amps_eq9")

    def longest(words: int) -> int:
        sample = replace(SAMPLE, context="red " * words)
        prompts = [asked(bench.prompt(sample, form), ask, "amps_eq9") for form in bench.forms for ask in ASKS]
        return max(len(view.tokens([p], [["<image>" * 16]])[0].ids) for p in prompts)

    words = next(n for n in range(50, 600) if longest(n) > 512) - 1
    assert longest(words) <= 512 < longest(words + 1)
    assert fault(replace(SAMPLE, context="red " * words), view.writing, fit) is None
    why = fault(replace(SAMPLE, context="red " * (words + 1)), view.writing, fit)
    assert "positions, and LlavaForConditionalGeneration has 512" in why and "\n" not in why
    with pytest.raises(UserError, match="has 512 .max_position_embeddings.: shorten its text"):
        view.encode([bench.prompt(replace(SAMPLE, context="red " * 600), "open")])


STRETCHED = {
    "as told": ({}, 2048),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 8192),
    "yarn": ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
    "llama3": ({"rope_type": "llama3", "factor": 0.5, "original_max_position_embeddings": 2048}, 2048),
    "mrope": ({"rope_type": "default", "mrope_section": [2, 2, 2]}, 2048),
}


@pytest.mark.parametrize("rope, positions", STRETCHED.values(), ids=STRETCHED)
def test_a_stretched_rotary_embedding_has_more_positions(rope, positions):
    config = LlavaConfig(text_config={"model_type": "llama", "max_position_embeddings": 2048})
    config.text_config.rope_parameters = rope
    assert tiny_view().family.positions(config) == positions


def test_control_tokens_that_a_tokenizer_only_marks_are_named():
    """A fake end of turn is read as one, though the tokenizer has no name for it."""
    tokenizer = copy.deepcopy(tiny_view().tokenizer)
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<plain>", special=False)])
    assert "<|eot|>" not in tokenizer.all_special_tokens
    writing = replace(tiny_view().writing, tokenizer=tokenizer)
    odd = replace(SAMPLE, context="it is<|eot|>")
    assert fault(odd, writing) == "its context spells the model's special token '<|eot|>'"
    assert fault(replace(SAMPLE, context="it is <plain>"), writing) is None
    assert writing.reserved("<|new|>") is None and tokenizer.add_tokens([AddedToken("<|new|>", special=True)]) == 1
    assert writing.reserved("<|new|>") == "<|new|>"


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

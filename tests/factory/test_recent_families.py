"""Families whose pictures keep their shape, against the rules of transformers' own processors. Pixtral's cannot be
imported without torchvision: its loop is written out.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import transformers
from PIL import Image
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.minicpmv4_6.processing_minicpmv4_6 import MiniCPMV4_6Processor

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.source import family_of
from tests.tiny import tiny_view
from tests.tiny_families import family_view
from tests.tiny_qwen import MARKS

SIZES = ((48, 48), (72, 30), (30, 72), (7, 13), (200, 11), (96, 64))


def as_pixtrals_processor(size: tuple[int, int], side: int) -> str:
    """``PixtralProcessor.replace_image_token`` (transformers 5.23)."""
    height, width = size
    tokens = []
    for _ in range(height // side):
        tokens += ["[IMG]"] * (width // side) + ["[IMG_BREAK]"]
    tokens[-1] = "[IMG_END]"
    return "".join(tokens)


@pytest.mark.parametrize(("name", "merged"), [("mistral3", 2), ("pixtral", 1)])
def test_rows_of_tokens_are_those_of_the_models_own_processor(name, merged):
    view = family_view(name)
    pictures = [Image.effect_noise(size, 50).convert("RGB") for size in SIZES]
    prompts = [Prompt((Segment(Role.IMAGE, image=picture), Segment(Role.QUESTION, "what?"))) for picture in pictures]
    written = view.images_of(prompts)[1]
    for (text,), picture in zip(written, pictures, strict=True):
        inputs = view.processor.image_processor(
            images=[picture], patch_size={"height": 6 * merged, "width": 6 * merged}, return_tensors="pt"
        )
        assert text == as_pixtrals_processor(inputs["image_sizes"][0].tolist(), 6 * merged)
        batch = view.encode([Prompt((Segment(Role.IMAGE, image=picture), Segment(Role.QUESTION, "what?")))])
        rows, columns = view.family.image_grid(batch.images, text.count("[IMG]"))
        assert [row.count("[IMG]") for row in text.split("[IMG_BREAK]")] == [columns] * rows
    assert len({len(text) for (text,) in written}) > 3, "pictures of several shapes were tried"


@pytest.mark.parametrize("name", ["glm4v", "glm46v"])
def test_a_pictures_tokens_are_those_of_glms_own_processor(name):
    view = family_view(name)
    own = SimpleNamespace(image_processor=view.processor.image_processor, image_token="<|image|>")
    for size in SIZES[:4]:
        picture = Image.effect_noise(size, 50).convert("RGB")
        ((text,),) = view.images_of([Prompt((Segment(Role.IMAGE, image=picture),))])[1]
        inputs = view.processor.image_processor(images=[picture], return_tensors="pt")
        assert text == Glm4vProcessor.replace_image_token(own, inputs, 0)


def test_a_pictures_slices_are_those_of_minicpms_own_processor():
    """Whole, cut into rows and columns, and several in one prompt, which are numbered."""
    view = family_view("minicpmv4_6")
    marks = {f"{w}_{s}_token": f"<{'/' * (s == 'end')}{w}>" for w in MARKS for s in ("start", "end")}
    own = SimpleNamespace(**marks, image_token="<|image_pad|>", slice_mode=True)
    pictures = [Image.effect_noise(size, 50).convert("RGB") for size in SIZES]
    first, second = (Prompt(tuple(Segment(Role.IMAGE, image=p) for p in some)) for some in (pictures[:4], pictures[4:]))
    written = view.images_of([first, second])[1]
    inputs = view.processor.image_processor(images=pictures, return_tensors="pt")
    theirs = [MiniCPMV4_6Processor.replace_image_token(own, inputs, i, image_token_divisor=16) for i in range(6)]
    numbered = [f"<image_id>{i}</image_id>" for i in (0, 1, 2, 3, 0, 1)]
    assert [*written[0], *written[1]] == [n + text for n, text in zip(numbered, theirs, strict=True)]
    assert {text.count("<slice>") for text in theirs} >= {0, 2}, "of both kinds"
    for picture, text in zip(pictures, theirs, strict=True):
        batch = view.encode([Prompt((Segment(Role.IMAGE, image=picture), Segment(Role.QUESTION, "what?")))])
        rows, columns = batch.images["target_sizes"][0].tolist()
        grid = view.family.image_grid(batch.images, text.count("<|image_pad|>"))
        assert grid == (None if "<slice>" in text else (rows // 4, columns // 4))


def test_one_class_of_transformers_is_two_families_by_its_tower():
    assert type(family_of(family_view("pixtral").model.config)).__name__ == "Pixtral"
    assert type(family_of(tiny_view().model.config)).__name__ == "Llava"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("Qwen3_5MoeConfig", r"a Qwen3_5Moe cannot be steered here: 30 of its 40 blocks \(linear_attention\)"),
        ("FalconH1Config", r"a FalconH1 cannot .*running state"),
        ("MllamaConfig", r"a Mllama cannot .*by cross-attention in 8 of its blocks.*LLaVA or Qwen3-VL"),
    ],
)
def test_what_no_family_can_express_is_refused_with_its_reason(config, why):
    """Before a weight is read, and in one line: the plan, a run and the Python interface ask the same function."""
    if not hasattr(transformers, config):
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    with pytest.raises(UserError, match=why) as told:
        family_of(getattr(transformers, config)())
    assert "\n" not in str(told.value)

"""A pixel budget bounds what a picture becomes, and with it the tokens that it takes."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from factory import files
from factory.corpus.audit import Audit
from factory.corpus.collate import image_tokens
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.model.load import outline
from factory.recipe import loads
from factory.recipe.schema import ModelSpec
from factory.run.plan.plan import plan
from tests.tiny import saved_tiny
from tests.tiny_families import family_view, own_family_view

SIZED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "mistral3", "pixtral", "glm4v"]
LARGE = (400, 300)


def pixels_of(view, size) -> int:
    """Pixels of what the processor makes of a picture, by the tensors that the model gets."""
    inputs = view.family.image_inputs(view.processor, [Image.new("RGB", size)], [1])
    if "image_grid_thw" in inputs:
        return int(inputs["image_grid_thw"].prod()) * view.processor.image_processor.patch_size**2
    if "image_sizes" in inputs:
        return int(inputs["image_sizes"].prod())
    tiles = inputs["pixel_values"]
    return tiles.shape[:-3].numel() * tiles.shape[-1] * tiles.shape[-2]


@pytest.mark.parametrize("family", SIZED)
def test_a_budget_leaves_a_large_picture_fewer_tokens(family):
    view = own_family_view(family)
    before, own = image_tokens(view, LARGE), pixels_of(view, LARGE)
    view.family.limit_pixels(view.processor, None, own // 2)
    whole = own // 2 if family in ("internvl", "idefics3") else 0  # the picture once more, in one tile
    assert image_tokens(view, LARGE) < before and pixels_of(view, LARGE) <= own // 2 + whole


def test_a_least_number_makes_a_small_picture_larger():
    view = own_family_view("qwen2_vl")
    before, own = image_tokens(view, (28, 28)), pixels_of(view, (28, 28))
    view.family.limit_pixels(view.processor, 4 * own, 64 * own)
    assert image_tokens(view, (28, 28)) >= 4 * before


@pytest.mark.parametrize("family", ["llava_next", "gemma3", "steering_factory_composed"])
def test_a_family_whose_pictures_no_budget_changes_refuses_it_by_name(family):
    view = family_view(family)
    with pytest.raises(UserError, match=f"^{view.family.model_class} brings pictures to sizes of its own"):
        view.family.limit_pixels(view.processor, None, 10_000)


def test_the_recipe_s_budget_is_the_processor_s_and_is_refused_where_it_says_nothing(tmp_path):
    from tests.factory.train.case import write_data

    view = family_view("qwen2_vl")
    view.model.save_pretrained(tmp_path / "qwen")
    view.processor.save_pretrained(tmp_path / "qwen")
    free = outline(ModelSpec(path=str(tmp_path / "qwen")))
    bound = outline(ModelSpec(path=str(tmp_path / "qwen"), max_pixels=pixels_of(free, LARGE) // 2))
    assert image_tokens(bound, LARGE) < image_tokens(free, LARGE)
    assert bound.picture_settings != free.picture_settings, "told apart in a stage's inputs"
    saved_tiny(tmp_path / "llava")
    text = "{name: r, model: {path: %s, max_pixels: 1000}, tune: {tuner: lora, data: {path: %s}}}"
    with pytest.raises(UserError, match="LlavaForConditionalGeneration brings pictures to sizes of its own"):
        plan(loads(text % (tmp_path / "llava", write_data(tmp_path)), path=tmp_path / "r.yaml"))
    with pytest.raises(UserError, match="model.min_pixels: 9 is more than max_pixels, 4"):
        loads("{name: r, model: {zoo: tiny, min_pixels: 9, max_pixels: 4}, tune: {tuner: lora, data: {path: x}}}")


def test_the_audit_tells_the_tokens_of_the_smallest_and_the_largest_picture(tmp_path):
    for i, size in enumerate([(40, 30), LARGE, (100, 100)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    rows = [{"query": "<image>What?", "response": "It", "images": [f"{i}.png"]} for i in range(3)]
    files.write_jsonl(tmp_path / "data.jsonl", rows)
    for _ in range(2):  # read, and then from the index
        audit = ConversationFile(tmp_path / "data.jsonl", tmp_path, tmp_path / "index").audit
        assert (audit.smallest, audit.largest) == ((40, 30), LARGE)
    assert Audit.of(audit.record()).largest == LARGE
    table = audit.table(tmp_path / "data.jsonl", lambda size: size[0])
    said = " ".join(str(cell) for column in table.columns for cell in column.cells)
    assert re.search("40 x 30 takes 40, 400 x 300 takes 400", said)

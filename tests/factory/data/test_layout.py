"""Where an image stands: before its turn's texts for templates that write it there, else where the record has it."""

from __future__ import annotations

import copy
import json

import pytest
from PIL import Image

from factory.corpus.collate import Collator
from factory.corpus.conversation import parse
from factory.corpus.source import ConversationFile
from factory.data.prompt import Role
from factory.model.encode import images_first
from factory.model.view import ModelView
from factory.train.scratch.build import CHAT_TEMPLATE
from tests.compose import LLMS, composed, llm
from tests.tiny import IN_ORDER, tiny_view


def view_with(template: str) -> ModelView:
    shared = tiny_view()
    processor = copy.copy(shared.processor)
    processor.chat_template = template
    return ModelView(shared.model, processor, shared.family)


def source(folder, *questions: str) -> ConversationFile:
    Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    rows = [
        {
            "id": str(i),
            "images": ["a.png"] * question.count("<image>"),
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": "red"}],
        }
        for i, question in enumerate(questions)
    ]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ConversationFile(folder / "d.jsonl", folder, folder / "cache")


def texts(view: ModelView, found: ConversationFile) -> list[str]:
    batch = Collator(view, found, None, None)(range(len(found)))
    return view.tokenizer.batch_decode([[i for i in row if i != view.pad_id] for row in batch["input_ids"].tolist()])


LAST, FIRST = "What color is this?\n<image>", "<image>\nWhat color is this?"


def test_the_mark_goes_to_the_front_where_the_template_writes_images_first(tmp_path):
    view = view_with(CHAT_TEMPLATE)
    assert images_first(view.writing)
    last, first = texts(view, source(tmp_path, LAST, FIRST))
    assert last == first


def test_the_record_is_kept_as_it_is_where_the_template_keeps_its_order(tmp_path):
    view = view_with(IN_ORDER)
    assert not images_first(view.writing)
    last, first = texts(view, source(tmp_path, LAST, FIRST))
    assert last != first
    assert last.index("What") < last.index("<image>") and first.index("<image>") < first.index("What")


@pytest.mark.parametrize("name", LLMS)
def test_composed_models_are_written_as_the_released_code_writes_them(tmp_path, name):
    view = composed(text=llm(name))
    last, first = texts(view, source(tmp_path, LAST, FIRST))
    assert last == first and first.index("<image>") < first.index("What")


def test_a_text_that_images_part_is_one_text_and_turns_keep_their_own_images(tmp_path):
    rows = ["Is <image> like <image> here?", "<image>\nIs it like this?\n<image>"]
    found = source(tmp_path, *rows)
    prompts = [found[i].prompt.images_first() for i in range(2)]
    assert [p.messages()[0]["content"][-1]["text"] for p in prompts] == ["Is like here?", "Is it like this?"]
    assert [len(p.images) for p in prompts] == [2, 2]
    turns = [("human", "one\n<image>"), ("gpt", "a"), ("human", "two\n<image>"), ("gpt", "b")]
    record = {"images": ["a.png", "a.png"], "conversations": [{"from": f, "value": v} for f, v in turns]}
    roles = [s.role for s in parse(record, 0).prompt(tmp_path).images_first().segments]
    assert roles == [Role.IMAGE, Role.QUESTION, Role.ANSWER] * 2
    assert texts(view_with(CHAT_TEMPLATE), found)


def test_a_prompt_that_has_its_images_first_is_left_as_it_is(tmp_path):
    prompt = source(tmp_path, FIRST)[0].prompt
    assert prompt.images_first() == prompt

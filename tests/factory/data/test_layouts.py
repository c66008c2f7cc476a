"""Records in other tools' layouts are the conversations that these tools make of them, and say which answers are
learnt.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

from factory.corpus.collate import Collator
from factory.corpus.conversation import parse
from factory.corpus.labels import IGNORE
from factory.corpus.layouts import Unusable
from factory.corpus.source import ConversationFile
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe import loads
from tests.tiny import tiny_view

USER, ANSWER, SYSTEM = Role.QUESTION, Role.ANSWER, Role.SYSTEM


def chat(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


# The right sides are written by hand after LLaMA-Factory's data/README.md (alpaca, sharegpt) and ms-swift's
# documentation of custom datasets (messages, query and response).
@pytest.mark.parametrize(
    ("record", "parts"),
    [
        ({"instruction": "Add", "input": "1 and 2", "output": "3"}, [(USER, "Add\n1 and 2"), (ANSWER, "3")]),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, [(USER, "Hi"), (ANSWER, "Hello")]),
        ({"instruction": "Hi", "output": "Hello", "system": None}, [(USER, "Hi"), (ANSWER, "Hello")]),
        (
            {"instruction": "c", "input": "", "output": "d", "system": "Be kind", "history": [["a", "b"]]},
            [(SYSTEM, "Be kind"), (USER, "a"), (ANSWER, "b"), (USER, "c"), (ANSWER, "d")],
        ),
        ({"query": "q", "response": "r", "history": []}, [(USER, "q"), (ANSWER, "r")]),
        (
            {"query": "q", "response": "r", "history": [["a", "b"], ["c", "d"]], "system": "s"},
            [(SYSTEM, "s"), (USER, "a"), (ANSWER, "b"), (USER, "c"), (ANSWER, "d"), (USER, "q"), (ANSWER, "r")],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}], "system": "s"},
            [(SYSTEM, "s"), (USER, "q"), (ANSWER, "r")],
        ),
        (
            {"messages": [chat("system", "s"), chat("user", "q"), chat("assistant", "r")], "system": "s"},
            [(SYSTEM, "s"), (USER, "q"), (ANSWER, "r")],
        ),
        (
            {"query": "<image>What?", "response": "A cat", "images": ["a.png"]},
            [(Role.IMAGE, "a.png"), (USER, "What?"), (ANSWER, "A cat")],
        ),
        ({"messages": [chat("user", "q"), chat("assistant", "r")], "query": None}, [(USER, "q"), (ANSWER, "r")]),
    ],
)
def test_a_record_of_another_layout_is_its_conversation(record, parts):
    assert list(parse(record, 0).parts) == parts


TALK = [chat("user", "a"), chat("assistant", "b")]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"messages": TALK, "instruction": "x", "output": "y"}, "turns and 'instruction' too"),
        ({"query": "a", "response": "b", "instruction": "x", "output": "y"}, "both instruction and query"),
        ({"instruction": "x"}, "'instruction' without a text under 'output'"),
        ({"query": "x", "response": None}, "'query' without a text under 'response'"),
        ({"query": 3, "response": "y"}, "a question that is no text"),
        ({"query": "x", "response": "y", "history": "before"}, r"not a list of \[question, answer\]"),
        ({"query": "x", "response": "y", "history": [["a", "b", "c"]]}, r"not a list of \[question, answer\]"),
        ({"messages": TALK, "history": [["a", "b"]]}, "'history' beside turns"),
        ({"messages": [chat("system", "one"), *TALK], "system": "two"}, "another in them"),
        ({"messages": TALK, "system": "one", "system_prompt": "two"}, "both 'system' and 'system_prompt'"),
        ({"messages": TALK, "system": ["one"]}, "a system text that is none"),
        ({"query": "What?", "response": "y", "images": ["a.png"]}, "names 1 images, but 0 are marked"),
        ({"messages": [TALK[0], chat("assistant", "b", weight=0.5)]}, r"'weight' in a turn \('0.5'\)"),
        ({"messages": [TALK[0], chat("assistant", "b", loss=False)]}, "no answer that is learnt"),
        ({"output": "y"}, "has no turns"),
    ],
)
def test_what_two_layouts_or_half_of_one_say_is_refused(record, why):
    with pytest.raises(Unusable, match=why):
        parse(record, 0)


def said(**of_turn) -> list[dict]:
    """Three exchanges, of whose second answer ``of_turn`` is said."""
    texts = [("one", "first"), ("two", "second"), ("three", "third")]
    return [
        turn
        for i, (q, r) in enumerate(texts)
        for turn in (chat("user", q), chat("assistant", r, **(of_turn if i == 1 else {})))
    ]


@pytest.mark.parametrize(
    ("record", "masked", "learnt"),
    [
        ({"messages": said()}, False, "first second third"),
        ({"messages": said(loss=False)}, False, "first third"),
        ({"messages": said(weight=0)}, False, "first third"),
        ({"messages": said(train=0, weight=1)}, False, "first third"),
        ({"messages": said(loss=True)}, False, "first second third"),
        ({"messages": said()}, True, "third"),
        ({"messages": said(), "mask_history": True}, False, "third"),
    ],
)
def test_the_answers_that_are_learnt_are_the_ones_that_are_asked_for(tmp_path, record, masked, learnt):
    """Through the file, the collator and the tokenizer: what is labelled, decoded, is these answers and their ends."""
    path, view = tmp_path / "data.jsonl", tiny_view()
    path.write_text(json.dumps(record) + "\n")
    source = ConversationFile(path, tmp_path, tmp_path / "index", mask_history=masked)
    batch = Collator(view, source, None, None)([0])
    labels = [int(i) for i in batch["labels"][0] if i != IGNORE]
    assert view.tokenizer.decode(labels, skip_special_tokens=True).split() == learnt.split()
    ends = set(view.end_ids)
    assert sum(i in ends for i in labels) == len(learnt.split()), "each with the token that ends it"


def test_masked_history_is_a_key_of_the_data_and_of_files_alone(tmp_path):
    text = "{name: r, model: {zoo: tiny}, tune: {tuner: mores, data: {%s, mask_history: true}}}"
    assert loads(text % "path: x.json").tune.data.mask_history
    with pytest.raises(UserError, match="tune.data.mask_history: is for conversations"):
        loads(text % "photos: x")


def test_a_mixed_file_of_layouts_is_audited_row_by_row(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [
        {"instruction": "Add", "input": "1", "output": "2"},
        {"query": "<image>What?", "response": "A square", "image": "a.png"},
        {"query": "x"},
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ConversationFile(path, tmp_path, tmp_path / "index", max_skipped=0.5)
    assert len(source) == 2 and source.audit.troubles["turn without a text"][0] == 1
    assert [s.prompt.images != [] for s in (source[0], source[1])] == [False, True]

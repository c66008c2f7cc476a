"""Rows and mixes of odd kinds: nulls of Parquet, flat histories, answers cut off, one file twice, weights too high."""

from __future__ import annotations

import json

import pytest

from factory.corpus.collate import Collator
from factory.corpus.conversation import parse
from factory.corpus.layouts import Unusable
from factory.corpus.mixed import MixedFiles
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from tests.tiny import tiny_view


def test_keys_that_are_null_in_a_row_are_another_layout_s():
    for row in (
        {"instruction": "Say", "output": "yes", "query": None, "response": None, "history": None, "system": ""},
        {"instruction": None, "output": None, "query": "Say", "response": "yes", "history": [], "system": None},
    ):
        assert parse(row, 0).texts == ["Say", "yes"]
    with pytest.raises(Unusable, match="has both instruction and query"):
        parse({"instruction": "Say", "output": "yes", "query": "Tell", "response": "no"}, 0)


@pytest.mark.parametrize("history", [["hi", "yo"], "hi", {"hi": "yo"}, 5, [["hi"]], [["hi", 5]]])
def test_a_history_that_is_no_list_of_pairs_of_texts_is_refused(history):
    with pytest.raises(Unusable):
        parse({"query": "Say", "response": "yes", "history": history}, 0)


@pytest.mark.parametrize("said", ["false", "true", 2, ["x"]])
def test_a_mask_that_is_neither_true_nor_false_is_refused(said):
    with pytest.raises(Unusable, match="'mask_history'"):
        parse({"query": "Say", "response": "yes", "mask_history": said}, 0)


@pytest.mark.parametrize("tokens", [60, 30])
def test_a_sample_whose_learnt_answer_is_cut_off_is_refused(tmp_path, tokens):
    turns = [("user", "What is it now? " * 4), ("assistant", "red " * 3)] * 6
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(row) + "\n")
    source = ConversationFile(path, tmp_path, tmp_path / "index", mask_history=True)
    assert (Collator(tiny_view(), source, None, None)([0])["labels"] != -100).any()
    with pytest.raises(UserError, match="none of its answers that are learnt"):
        Collator(tiny_view(), source, tokens, None)([0])


def test_one_file_twice_holds_the_same_samples_and_weights_have_an_end(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"query": f"Say {i}", "response": str(i)}) + "\n" for i in range(5)))
    made = lambda: ConversationFile(path, tmp_path, tmp_path / "index")
    mixed = MixedFiles([made(), made()], [1, 2], None, 0)
    assert len(mixed) == 15 and sorted(mixed.of) == sorted([*range(5)] * 3)
    assert all(mixed[i].prompt.segments[0].text == f"Say {mixed.of[i]}" for i in range(15))
    for weight in (1e9, 1e300, 2e7):
        with pytest.raises(UserError, match="tune.data.mix: its weights make an epoch of more than 50,000,000"):
            MixedFiles([made()], [weight], None, 0)

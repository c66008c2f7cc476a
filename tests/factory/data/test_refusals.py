"""What a model cannot take is told at the audit, counted and left out; what is found later is too."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace

import pytest
from PIL import Image

from factory.corpus.collate import Collator, Refused
from factory.corpus.conversation import Unusable, parse
from factory.corpus.labels import IGNORE, encode_samples
from factory.corpus.photos import PhotoFolder
from factory.corpus.refusals import Refusals, Shapes
from factory.corpus.source import ConversationFile, Sample
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.files import read_jsonl
from factory.model.encode import images_first, render
from factory.model.view import ModelView
from tests.counted import calls
from tests.tiny import IN_ORDER, tiny_view
from tests.tiny_families import family_view

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DROPS_SYSTEM = IN_ORDER.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


def view_with(template: str) -> ModelView:
    shared = tiny_view()
    processor = copy.copy(shared.processor)
    processor.chat_template = template
    return ModelView(shared.model, processor, shared.family)


def row(i: int, question: str = "What?", answer: str = "red", image: str | None = None, system: str = "") -> dict:
    asked = [{"from": "human", "value": ("<image>\n" if image else "") + question}, {"from": "gpt", "value": answer}]
    first = [{"from": "system", "value": system}] if system else []
    return {"id": f"s{i}", "conversations": first + asked} | ({"image": image} if image else {})


def opened(folder, view: ModelView, rows: list[dict], limit: int | None = None, **more) -> ConversationFile:
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"max_skipped": 0.9, "check": Refusals(view, limit), **more}
    return ConversationFile(folder / "d.jsonl", folder, folder / "cache", **more)


def names(source: ConversationFile) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_texts_that_spell_a_special_token_are_counted_and_left_out(tmp_path):
    rows = [row(0), row(1, "what is </s>?"), row(2, answer="<pad>"), row(3, system="<s> x"), row(4)]
    source = opened(tmp_path, tiny_view(), rows)
    assert names(source) == ["s0", "s4"] and source.audit.troubles["special token in a text"][0] == 3
    assert "sample s1: a question text spells the model's special token '</s>'" in source.audit.named[0]
    assert Collator(tiny_view(), source, 200, None)([0, 1])


@pytest.mark.parametrize("template", [NO_SYSTEM + IN_ORDER, DROPS_SYSTEM])
def test_a_template_that_refuses_the_system_role_costs_only_the_rows_that_have_it(tmp_path, template):
    view = view_with(template)
    source = opened(tmp_path, view, [row(0), row(1, system="Be brief"), row(2)])
    assert names(source) == ["s0", "s2"]
    ((kind, (count, first)),) = source.audit.troubles.items()
    assert (kind, count) == ("refused by the chat template", 1) and first.startswith("sample s1: the model's chat")
    assert Collator(view, source, 200, None)([0, 1])


def test_a_refusing_template_is_one_line_where_nothing_was_audited(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(row(0, system="Be brief")))
    source = ConversationFile(tmp_path / "d.jsonl", tmp_path, tmp_path / "cache")
    with pytest.raises(
        UserError, match="sample s0: .*refuses turns by system, user.*System role not supported"
    ) as told:
        Collator(view_with(NO_SYSTEM + IN_ORDER), source, 200, None)([0])
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'][1]['text'] * 1.5 }}{% endfor %}",
        "{% for m in messages %}{{ 1 // 0 }}{% endfor %}",
    ],
    ids=["texts as strings", "a number", "a division"],
)
def test_whatever_a_template_raises_is_one_line(template):
    writing = replace(tiny_view().writing, template=template)
    with pytest.raises(UserError, match=r"^the model's chat template refuses turns by user, assistant: [^\n]+$"):
        render(writing, Prompt((Segment(Role.QUESTION, "a"), Segment(Role.ANSWER, "b"))), [])


def test_a_picture_that_the_image_processor_refuses_is_left_out(tmp_path):
    view = family_view("qwen2_vl")
    for name, size in (("thin", (1, 300)), ("wide", (900, 2)), ("line", (1, 4000)), ("good", (60, 40))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [row(i, image=f"{name}.png") for i, name in enumerate(("good", "thin", "wide", "line"))]
    source = opened(tmp_path, view, rows)
    assert names(source) == ["s0"] and source.audit.troubles["refused by the image processor"][0] == 3
    assert "1 x 300 pixels" in source.audit.named[0] and "\n" not in source.audit.named[0]
    for size in ((1, 300), (900, 2)):
        with pytest.raises(ValueError):  # the processor's own word
            view.processor.image_processor(images=[Image.new("RGB", size)], return_tensors="pt")
    late = ConversationFile(tmp_path / "d.jsonl", tmp_path, tmp_path / "cache")
    batch = Collator(view, late, None, tmp_path / "skipped.jsonl")([0, 1])
    assert [int((labels != IGNORE).sum()) > 0 for labels in batch["labels"]] == [True, False]


def test_usual_pictures_are_not_asked_about():
    shapes = Shapes(tiny_view())
    shapes.view = None  # nobody is asked
    assert shapes.refusal((640, 480)) is None and shapes.refusal((32, 640)) is None
    assert "thinner than 1:500" in shapes.refusal((1, 501))


def test_a_row_that_is_too_long_is_found_by_its_tokens(tmp_path):
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    view = tiny_view()  # 16 tokens an image
    words = "what color is the big circle " * 10
    rows = [row(0), row(1, words), row(2, image="a.png"), row(3, answer=words), row(4, "A" * 18)]
    length = len(view.tokenizer(words.strip(), add_special_tokens=False)["input_ids"])
    source = opened(tmp_path, view, rows, limit=length - 10)
    assert names(source) == ["s0", "s2", "s3", "s4"] and list(source.audit.troubles) == ["too long"]
    assert f"max_tokens={length - 10}" in source.audit.named[0]
    assert names(opened(tmp_path, view, rows, limit=length * 2)) == ["s0", "s1", "s2", "s3", "s4"]
    assert "s2" not in names(opened(tmp_path, view, rows, limit=20)), "the picture's tokens count"
    assert names(opened(tmp_path, view, rows)) == ["s0", "s1", "s2", "s3", "s4"]


def test_whoever_passes_the_audit_of_lengths_or_not_agrees_with_the_encoding(tmp_path):
    draw, view, limit = random.Random(0), tiny_view(), 60
    rows = [row(i, " ".join(draw.choices(["what", "color", "is", "the", "big", "circle"], k=i))) for i in range(1, 60)]
    kept = set(names(opened(tmp_path, view, rows, limit=limit)))
    whole = ConversationFile(tmp_path / "d.jsonl", tmp_path, tmp_path / "whole")
    skipped = tmp_path / "skipped.jsonl"
    Collator(view, whole, limit, skipped)(range(len(whole)))
    late = {found["sample"] for found in read_jsonl(skipped)}
    assert set(names(whole)) - kept == late and late and kept


def encodes(view: ModelView, record: dict, sizes: list[tuple[int, int]], limit: int | None) -> bool:
    """Whether a row and pictures of these sizes can be encoded: what the audit has to say of it beforehand."""
    blanks = iter(sizes)
    parts = parse(record, 0).parts
    show = lambda role, text: Segment(
        role, **({"image": Image.new("RGB", next(blanks))} if role == Role.IMAGE else {"text": text})
    )
    prompt = Prompt(tuple(show(role, text) for role, text in parts))
    prompt = prompt.images_first() if images_first(view.writing) else prompt
    try:
        encode_samples(view, [Sample("x", prompt)], limit)
    except Unusable as error:
        assert error.kind == "too long", error
        return False
    return True


FITTING = ["llava_next", "qwen2_vl", "idefics3"]


@pytest.mark.parametrize("family", FITTING)
def test_the_audit_knows_which_rows_are_too_long_by_their_pictures(family, monkeypatch):
    view, draw = family_view(family), random.Random(1)
    sizes = [(900, 200), (640, 480), (48, 48), (333, 500), (500, 90)]
    seen = set()
    for positions, limit in ((None, 110), (140, None), (110, 240)):
        monkeypatch.setattr(type(view.family), "positions", lambda self, config, positions=positions: positions)
        check = Refusals(view, limit)
        for i in range(6):
            words = " ".join(["dog"] * draw.randrange(1, 60))
            record, size = row(i, words, "red", image="a.png"), draw.choice(sizes)
            record["conversations"] += row(0, "What?", " ".join(["cat"] * draw.randrange(1, 30)))["conversations"]
            fits = encodes(view, record, [size], limit)
            try:
                check(parse(record, 0), [size])
                assert fits, (positions, limit, record, size)
            except Unusable as error:
                assert error.kind == "too long" and not fits, (str(error), positions, limit, record, size)
            seen.add(fits)
    assert seen == {True, False}


def test_a_row_beyond_the_models_positions_is_told_at_the_audit_and_cut_where_rows_are_cut(tmp_path):
    view = tiny_view()
    asked = "dog " * (view.positions // 4)
    record = row(0, asked, "red " * view.positions)
    spare = row(1)
    source = opened(tmp_path, view, [record, spare])
    assert names(source) == ["s1"] and list(source.audit.troubles) == ["too long"]
    assert f"{type(view.model).__name__} has {view.positions:,}" in source.audit.named[0]
    cut = opened(tmp_path, view, [record, spare], limit=10 * view.positions)
    assert names(cut) == ["s0", "s1"]
    assert Collator(view, cut, 10 * view.positions, None)([0])["input_ids"].shape[1] == view.positions
    without = opened(tmp_path, view, [row(0, "dog " * 2 * view.positions), spare], limit=10 * view.positions)
    assert names(without) == ["s1"] and f"the model's {view.positions} positions leave none" in without.audit.named[0]


def test_another_model_has_an_audit_of_its_own(tmp_path):
    rows = [row(0), row(1, system="Be brief")]
    assert names(opened(tmp_path, tiny_view(), rows)) == ["s0", "s1"]
    assert names(opened(tmp_path, view_with(NO_SYSTEM + IN_ORDER), rows)) == ["s0"]
    assert names(opened(tmp_path, tiny_view(), rows)) == ["s0", "s1"]


def test_photos_are_checked_as_rows_are(tmp_path):
    for name, size in (("a", (40, 40)), ("b", (1, 900)), ("</s>", (40, 40))):
        (tmp_path / name.strip("</>")).mkdir()
        Image.new("RGB", size).save(tmp_path / name.strip("</>") / "1.png")
    (tmp_path / "s" / "1.png").rename(tmp_path / "s.png")
    for path in tmp_path.glob("**/*.png"):
        path.with_suffix(".txt").write_text("</s>" if path.stem == "s" else "cat")
    photos = PhotoFolder(tmp_path, "What?", max_skipped=0.9, check=Refusals(tiny_view(), None))
    assert [photos.name(i) for i in range(len(photos))] == ["a/1.png"]
    assert set(photos.audit.troubles) == {"special token in a text", "refused by the image processor"}


def test_a_training_stops_as_soon_as_too_many_samples_fail(tmp_path):
    for i in range(6):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{i}.png")
    source = opened(tmp_path, tiny_view(), [row(i, image=f"{i}.png") for i in range(6)])
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    collator = Collator(tiny_view(), source, 200, tmp_path / "skipped.jsonl", most=3)
    for _ in range(2):
        batch = collator([0, 1, 2])
    assert (batch["labels"] == IGNORE).all() and "pixel_values" in batch, "the connector still runs"
    assert len(read_jsonl(tmp_path / "skipped.jsonl")) == 3, "each once"
    with pytest.raises(UserError, match="4 samples could not be used.*the last: sample s3: its image cannot be read"):
        collator([3, 4])


def test_the_line_of_a_data_loaders_worker_is_one_line():
    raised = "Caught Refused in DataLoader worker process 0.\nOriginal Traceback:\n  x\nfactory.data.collate.Refused: "
    assert str(Refused(raised + "sample s1: bad\n")) == "sample s1: bad"


def test_a_checked_row_costs_a_few_hundred_calls_and_no_encoding(tmp_path):
    def cost(rows: int) -> int:
        turns = [{"from": f, "value": f"w{rows} " * 60} for f in ("human", "gpt") * 2]
        lines = [{"id": i, "conversations": turns} for i in range(rows)]
        return calls(lambda: opened(tmp_path / str(rows), tiny_view(), lines, check=Refusals(tiny_view(), 2048)))

    for rows in (1, 20, 120):
        (tmp_path / str(rows)).mkdir()
    cost(1)  # what is read once is not a row's
    assert (cost(120) - cost(20)) / 100 < 400


def test_the_check_takes_what_the_encoding_takes():
    check = Refusals(tiny_view(), 200)
    record = row(0, "café 红色 \U0001f600", "It is 3")
    check(parse(record, 0), [])

"""The chat endpoint: OpenAI's own client, many requests at once, and what it refuses."""

from __future__ import annotations

import base64
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from factory.data.prompt import Prompt, Role, Segment
from factory.model.prefix import at_last, greedy, prefill
from factory.registry import lookup
from factory.steer import Steering, steer
from factory.steer.where import Where
from tests.tiny import tiny_view

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")

from eval_suite.serving.app import app_of
from eval_suite.serving.batches import Batches

COLORS = ("red", "green", "blue", "orange")
QUESTION = "Text context: it is blue.\nWhich color is the square?"


def static(seed):
    cls = lookup("steering", "static")
    vector = torch.randn(48, generator=torch.Generator().manual_seed(seed))
    return Steering(cls(cls.Params()), {"v": vector}, Where(layer=1), 1.0)


STEERINGS = {"vision": static(0), "text": static(1)}


@pytest.fixture(scope="module")
def served():
    """OpenAI's client of a running server, and the batches behind it."""
    batches = Batches(tiny_view(), STEERINGS, rows=16, pause=0.1)
    config = uvicorn.Config(app_of("tiny", batches, 8), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0), batches
    server.should_exit = True
    thread.join()


def url(color):
    data = io.BytesIO()
    Image.new("RGB", (48, 48), color).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def messages(color=None, text=QUESTION):
    picture = [{"type": "image_url", "image_url": {"url": url(color)}}] if color else []
    return [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]


def alone(color, name, strength, n):
    """The answer of a plain loop on this prompt alone."""
    view = tiny_view()
    picture = (Segment(Role.IMAGE, image=Image.new("RGB", (48, 48), color)),) if color else ()
    batch = view.encode([Prompt((*picture, Segment(Role.QUESTION, QUESTION)))])
    with torch.no_grad(), steer(view, [replace(STEERINGS[name], strength=strength)]):
        hidden, prefix = prefill(view, batch)
        tokens = greedy(view, prefix, view.logits(at_last(hidden, batch.attention_mask)), n)
    return view.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


def test_sixteen_at_once_answer_as_sixteen_alone(served):
    client, batches = served
    sizes = []
    counting = batches.view.layers[0].register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    cases = [(COLORS[i % 4] if i % 5 else None, ("vision", "text")[i % 2], 0.5 * (i % 6), 3 + i % 5) for i in range(16)]

    def ask(case):
        color, direction, strength, n = case
        extra = {"direction": direction, "strength": strength}
        made = client.chat.completions.create(model="tiny", messages=messages(color), max_tokens=n, extra_body=extra)
        return made.choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, cases))
    counting.remove()
    assert max(sizes) >= 8, "they were answered together"
    expected = [alone(*case) for case in cases]
    assert together == expected and len(set(expected)) > 4


def test_a_stream_says_piece_by_piece_what_a_whole_answer_says(served):
    client, _ = served
    ask = {"model": "tiny", "messages": messages("red"), "max_tokens": 7, "extra_body": {"direction": "text"}}
    whole = client.chat.completions.create(**ask)
    pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    texts = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert sum(bool(text) for text in texts) > 1 and len({piece.id for piece in pieces}) == 1
    assert pieces[-1].usage == whole.usage and whole.usage.completion_tokens == 7
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_strength_0_is_the_model_alone_and_the_artefacts_own_is_the_default(served):
    client, _ = served
    said = lambda **extra: (
        client.chat.completions.create(model="tiny", messages=messages("red"), max_tokens=6, extra_body=extra)
        .choices[0]
        .message.content
    )
    assert said(strength=0) == alone("red", "vision", 0.0, 6)
    assert said() == said(direction="vision", strength=1.0) == alone("red", "vision", 1.0, 6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "other"}, "there is: tiny"),
        ({"temperature": 0.7}, "temperature"),
        ({"extra_body": {"direction": "sound"}}, "there are: vision, text"),
        ({"extra_body": {"strength": "much"}}, "strength"),
        ({"extra_body": {"strenght": 1}}, "strenght"),
        ({"messages": []}, "messages"),
        ({"messages": messages(text="What is <image> here?")}, "<image>"),
        ({"messages": [{"role": "assistant", "content": "Blue."}]}, "the user's"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "none is fetched",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
                    }
                ]
            },
            "cannot be read",
        ),
    ],
)
def test_what_cannot_be_honoured_is_a_line(served, change, told):
    client, _ = served
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=told):
        client.chat.completions.create(**{"model": "tiny", "messages": messages("red"), "max_tokens": 2, **change})
    still = client.chat.completions.create(model="tiny", messages=messages("red"), max_tokens=2)
    assert still.choices[0].message.content is not None


def test_one_bad_prompt_harms_none_beside_it(served):
    client, _ = served

    def ask(text):
        try:
            made = client.chat.completions.create(model="tiny", messages=messages("red", text), max_tokens=4)
        except openai.BadRequestError as error:
            return str(error)
        return made.choices[0].message.content

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [QUESTION, "What is <image> here?", QUESTION, QUESTION]))
    assert "<image>" in found[1] and found[0] == found[2] == found[3] == alone("red", "vision", 1.0, 4)


def test_a_client_that_leaves_ends_its_answer(served):
    client, batches = served
    steps = []
    handle = batches.view.layers[0].register_forward_hook(lambda *_: steps.append(1))
    stream = client.chat.completions.create(model="tiny", messages=messages("red"), max_tokens=4000, stream=True)
    next(iter(stream))
    stream.close()
    client.chat.completions.create(model="tiny", messages=messages("red"), max_tokens=1)
    handle.remove()
    assert len(steps) < 300, "hundreds of tokens were made for nobody"


def test_an_answer_ends_where_the_models_positions_end(served):
    client, batches = served
    made = client.chat.completions.create(
        model="tiny", messages=messages(text="blue " * 90), max_tokens=4000, extra_body={"strength": 0}
    )
    assert made.usage.total_tokens == batches.view.positions and made.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="positions"):
        client.chat.completions.create(model="tiny", messages=messages(text="blue " * 400))

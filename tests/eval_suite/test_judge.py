"""A judge behind an OpenAI-compatible endpoint: asked once, remembered, and told of when it fails."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from eval_suite.judge import Judge, JudgeParams
from factory.errors import UserError
from factory.recipe.schema import read_node
from factory.registry import lookup
from tests.eval_suite.released_files import MAKERS


class Endpoint(BaseHTTPRequestHandler):
    asked: ClassVar[list] = []
    says = "0.5"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": self.says}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(Endpoint, "asked", [])
    monkeypatch.setattr(Endpoint, "says", "0.5")
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def benchmark(name, tmp_path, url):
    judge = {"url": url, "model": "strict", "cache": str(tmp_path / "judge.jsonl"), "key_env": "TEST_JUDGE_KEY"}
    node = read_node("benchmark", {**MAKERS[name](tmp_path / name), "judge": judge})
    return lookup("benchmark", name)(node.params)


def row(bench, text):
    return bench.rows([{**bench.record(i, text), "text": text, "prompt_digest": ""} for i in bench.items()], draws=5)[0]


def test_mmvet_is_graded_once_and_remembered(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "key")
    bench = benchmark("mmvet", tmp_path, endpoint)
    total = row(bench, "x = -1")
    assert total["metrics"] == {"score": 0.5} and total["scorer"] == "mmvet-judge/1 strict"
    path, key, body = Endpoint.asked[0]
    assert path == "/v1/chat/completions" and key == "Bearer key" and body["temperature"] == 0
    assert body["messages"][0]["content"].endswith("What is x? | -1 <AND> -5 | x = -1 |")
    assert len(Endpoint.asked) == 1  # both questions are worded alike, so one answer serves
    again = lookup("benchmark", "mmvet")(bench.params)
    assert row(again, "x = -1") == total and len(Endpoint.asked) == 1


def test_hallusionbench_can_be_judged(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Endpoint, "says", "incorrect")
    total = row(benchmark("hallusionbench", tmp_path, endpoint), "Maybe")
    assert total["metrics"]["aAcc"] == 0 and total["scorer"] == "hallusion-judge/1 strict"
    assert (
        "Reference answer: The bar is higher.\nPrediction answer:Maybe\nOutput:"
        in Endpoint.asked[0][2]["messages"][0]["content"]
    )


def test_an_unreadable_grade_counts_as_a_parse_failure(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(Endpoint, "says", "very good")
    total = row(benchmark("mmvet", tmp_path, endpoint), "x = -1")
    assert total["parse_failure_rate"] == 1 and total["metrics"] == {"score": 0.0}


def test_a_judge_that_cannot_be_reached_is_told(tmp_path):
    judge = Judge(JudgeParams(url="http://127.0.0.1:9/v1", model="m", cache=str(tmp_path / "judge.jsonl")))
    with pytest.raises(UserError, match="start again to go on"):
        judge.ask("?")

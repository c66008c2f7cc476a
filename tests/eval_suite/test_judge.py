"""A judge behind an OpenAI-compatible endpoint: asked at once, asked again, remembered, and told of when it fails."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval_suite.judge import Judge, JudgeParams
from eval_suite.scorers.judged import AGAIN, grade_of
from factory.cli import main
from factory.errors import UserError
from factory.recipe import load
from factory.recipe.schema import read_node
from factory.registry import lookup
from factory.run.questions.arms import Arm
from factory.run.questions.suite import Suite
from factory.run.rundir import RunDir
from tests.eval_suite.released_files import MAKERS
from tests.factory.ranks import as_ranks
from tests.tiny import saved_tiny, tiny_view

KEY = "sk-very-secret-0123456789"


def says(content, usage=None, **more):
    """A reply of the chat endpoint."""
    choices = [{"message": {"role": "assistant", "content": content}}]
    return 200, {"choices": choices, **({"usage": usage} if usage else {}), **more}, {}


class Endpoint:
    """A stand-in on this machine: ``replies`` are given in turn, the last one for ever."""

    def __init__(self, handler):
        self.asked, self.replies, self.together, self.most, self.slow = [], [says("0.5")], 0, 0, 0.0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"endpoint": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def prompts(self):
        return [body["messages"][0]["content"] for _, _, body in self.asked]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        point = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with point.lock:
            point.asked.append((self.path, self.headers.get("Authorization"), body))
            point.together += 1
            point.most = max(point.most, point.together)
            status, reply, headers = point.replies.pop(0) if len(point.replies) > 1 else point.replies[0]
        time.sleep(point.slow)
        with point.lock:
            point.together -= 1
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint():
    point = Endpoint(Handler)
    yield point
    point.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def options(tmp_path, endpoint, **more):
    judge = {"url": endpoint.url, "model": "strict", "cache": str(tmp_path / "judge.jsonl")}
    return {**judge, "key_env": "TEST_JUDGE_KEY", **more}


def benchmark(name, tmp_path, endpoint, **more):
    root = tmp_path / name
    node = {"type": name, "root": str(root)} if root.exists() else MAKERS[name](root)
    return lookup("benchmark", name)(
        read_node("benchmark", {**node, "judge": options(tmp_path, endpoint, **more)}).params
    )


def row(bench, text):
    bench.consult([(item, text) for item in bench.items()])
    return bench.rows([{**bench.record(i, text), "text": text, "prompt_digest": ""} for i in bench.items()], draws=5)[0]


def kept(tmp_path):
    path = tmp_path / "judge.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_mmvet_is_graded_once_and_remembered(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    bench = benchmark("mmvet", tmp_path, endpoint)
    total = row(bench, "x = -1")
    assert total["metrics"] == {"score": 0.5} and total["scorer"] == "mmvet-judge/2 strict"
    path, key, body = endpoint.asked[0]
    assert path == "/v1/chat/completions" and key == f"Bearer {KEY}" and body["temperature"] == 0
    # mm-vet_evaluator.py: the prompt, a line break, and question, truth, prediction and nothing joined by " | "
    assert body["messages"][0]["content"].endswith(" | 1.0\n\nWhat is x? | -1 <AND> -5 | x = -1 | ")
    assert len(endpoint.asked) == 1  # both questions are worded alike, so one answer serves
    again = lookup("benchmark", "mmvet")(bench.params)
    assert row(again, "x = -1") == total and len(endpoint.asked) == 1
    assert KEY not in (tmp_path / "judge.jsonl").read_text()


def test_hallusionbench_can_be_judged(endpoint, tmp_path):
    endpoint.replies = [says("incorrect")]
    total = row(benchmark("hallusionbench", tmp_path, endpoint), "Maybe")
    assert total["metrics"]["aAcc"] == 0 and total["scorer"] == "hallusion-judge/1 strict"
    assert "Reference answer: The bar is higher.\nPrediction answer:Maybe\nOutput:" in endpoint.prompts[0]


@pytest.mark.parametrize(
    ("said", "grade"),
    [
        ("0.5", 0.5),
        ("1.0", 1.0),
        ("0", 0.0),
        (".5", 0.5),
        ("0.7 as it says three of 4 things", 0.7),
        (" 0.5", 0.5),
        ("**0.6**", 0.6),
        ("Correctness: 0.6", 0.6),
        ("Correctness: **0.6**.", 0.6),
        ("`0.3`", 0.3),
        ("| 0.4 |", 0.4),
        ("0.6.", 0.6),
        ("1.5", None),
        ("-0.5", None),
        ("good", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("between 0.4 and 0.6", None),
        ("Score: 6/10", None),
        ("v1", None),
        ("70%", None),
    ],
)
def test_grades(said, grade):
    assert grade_of(said) == grade


@pytest.mark.parametrize(
    "bad",
    [
        says("very good"),
        says(None),
        says(["0.5"]),
        says([{"type": "text", "text": "0.5"}]),
        says({"text": "0.5"}),
        (200, {"choices": None}, {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [None]}, {}),
        (200, {"choices": [{"message": None}]}, {}),
        (200, {"error": {"message": "no"}}, {}),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_asked_for_again_and_never_kept(bad, endpoint, tmp_path):
    endpoint.replies = [bad, bad, says("0.8")]
    assert row(benchmark("mmvet", tmp_path, endpoint), "x = -1")["metrics"] == {"score": 0.8}
    assert [prompt.endswith(AGAIN) for prompt in endpoint.prompts] == [False, True, True]
    assert [body["temperature"] for _, _, body in endpoint.asked] == [0, 0, 0.5]
    assert [line["text"] for line in kept(tmp_path)] == ["0.8"]

    endpoint.asked.clear()
    endpoint.replies = [bad]
    total = row(benchmark("mmvet", tmp_path, endpoint), "x = -5")
    assert total["parse_failure_rate"] == 1 and total["metrics"] == {"score": 0.0}
    assert len(endpoint.asked) == 6 and len(kept(tmp_path)) == 1
    endpoint.replies = [says("0.9")]
    assert row(benchmark("mmvet", tmp_path, endpoint), "x = -5")["metrics"] == {"score": 0.9}


def test_what_an_older_version_kept_is_not_taken_for_an_answer(endpoint, tmp_path):
    bench = benchmark("mmvet", tmp_path, endpoint)
    row(bench, "x = -1")
    (line,) = kept(tmp_path)
    spoilt = [{**line, "text": None}, {**line, "text": "very good"}, [1], {"key": 3}]
    (tmp_path / "judge.jsonl").write_text("\n".join(map(json.dumps, spoilt)) + '\n{"key": "torn')
    assert row(lookup("benchmark", "mmvet")(bench.params), "x = -1")["metrics"] == {"score": 0.5}
    assert len(endpoint.asked) == 2


def test_a_run_asks_again_at_its_next_start_for_what_could_not_be_read(endpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lookup("benchmark", "mmvet"), "new_tokens", 4)
    endpoint.replies = [says(None)]
    recipe = tmp_path / "r.yaml"
    node = {**MAKERS["mmvet"](tmp_path / "mmvet"), "judge": options(tmp_path, endpoint)}
    recipe.write_text(
        f"name: r\nmodel: {{path: {saved_tiny(tmp_path / 'model')}}}\nbenchmarks: [{json.dumps(node)}]\n"
        f"run: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    scores = []
    for reply in (None, "0.25"):
        endpoint.replies = [says(reply)]
        assert main([str(recipe)]) == 0
        scores.append(json.loads((tmp_path / "runs/r/results.json").read_text())["rows"][0]["metrics"]["score"])
    assert scores == [0, 0.25]
    assert "could not be read and are asked again at the next start" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("lockstep", [False, True])
def test_of_several_ranks_one_asks_and_its_failures_are_asked_again_by_all(lockstep, endpoint, tmp_path, monkeypatch):
    """The judge is paid once, whoever answered and however many; at the next start what it could not say is asked."""
    monkeypatch.setattr(lookup("benchmark", "mmvet"), "new_tokens", 4)
    node = {**MAKERS["mmvet"](tmp_path / "mmvet"), "judge": options(tmp_path, endpoint)}
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: r\nmodel: {{path: {saved_tiny(tmp_path / 'model')}}}\nbenchmarks: [{json.dumps(node)}]\n"
        f"run: {{root: {tmp_path / 'runs'}}}\nevaluate: {{batch_size: 1}}\n"
    )
    recipe, view = load(path), tiny_view()
    questions = len(benchmark("mmvet", tmp_path, endpoint).items())

    def work(world):
        world.lockstep = lockstep
        with RunDir.open(tmp_path / "runs", "r", path, "", {"name": "r"}, world) as run:
            rows, *_ = Suite(recipe.asked[0], recipe, None).run(run, view, Arm())
        (tmp_path / f"{world.rank}.json").write_text(json.dumps(rows[0]["metrics"]["score"]))

    for reply, times, score in ((None, 6, 0), ("0.25", 1, 0.25), ("0.75", 0, 0.25)):
        endpoint.asked, endpoint.replies = [], [says(reply, {"prompt_tokens": 7, "completion_tokens": 1})]
        ended = as_ranks(2, work, tmp_path)
        assert (ended.codes, len(endpoint.asked)) == ([0, 0], times * questions), ended.err
        assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [score, score]
        spent = f"{times * questions:,} requests, {7 * times * questions:,} tokens read"
        assert ended.out.replace("\n", " ").count(spent) == (times > 0)


def test_a_busy_endpoint_is_waited_for(endpoint, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    endpoint.replies = [(503, {}, {}), (503, {}, {}), (429, {}, {"Retry-After": "17"}), says("0.5")]
    assert Judge(JudgeParams(**options(tmp_path, endpoint))).ask("?") == "0.5"
    pauses = [seconds for seconds in waited if seconds]
    assert len(endpoint.asked) == 4 and 0 < pauses[0] < 17 and pauses[-1] == 17


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 522, 529])
@pytest.mark.parametrize("pause", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_whatever_says_busy_is_asked_again_also_where_its_pause_is_no_number(status, pause, endpoint, tmp_path):
    endpoint.replies = [(status, {}, {"Retry-After": pause}), says("0.5")]
    assert Judge(JudgeParams(**options(tmp_path, endpoint))).ask("?") == "0.5" and len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("reply", "told", "times"),
    [
        ((500, {}, {}), "it answers 500", 2),
        ((401, {"error": f"wrong key {KEY}"}, {}), "it answers 401", 1),
        ((404, b"<html>", {}), "it answers 404", 1),
        ((200, b"<html>", {}), "no JSON object", 1),
        ((200, [1], {}), "no JSON object", 1),
        ((200, b"[" * 5000, {}), "no JSON object", 1),
    ],
)
def test_an_endpoint_that_refuses_is_told_in_one_line(reply, told, times, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    endpoint.replies = [reply]
    with pytest.raises(UserError, match="start again to go on") as error:
        Judge(JudgeParams(**options(tmp_path, endpoint, retries=1))).ask("?")
    assert told in str(error.value) and KEY not in str(error.value) and "\n" not in str(error.value)
    assert len(endpoint.asked) == times and not kept(tmp_path)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_does_not_follow_a_redirect(status, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    other = Endpoint(Handler)
    try:
        endpoint.replies = [(status, {}, {"Location": f"{other.url}/chat/completions"})]
        with pytest.raises(UserError, match="it sends us to another address"):
            Judge(JudgeParams(**options(tmp_path, endpoint))).ask("?")
        assert not other.asked and len(endpoint.asked) == 1
    finally:
        other.close()


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "AWS_SECRET_ACCESS_KEY", "SSH_KEY", "HF_TOKEN", "openai_api_key", KEY, "API_KEY=x", ""]
)
def test_only_variables_for_such_keys_are_sent(name, endpoint, tmp_path):
    with pytest.raises(ValueError, match="ends in API_KEY") as told:
        benchmark("mmvet", tmp_path, endpoint, key_env=name)
    assert KEY not in str(told.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "API_KEY", "MY_2ND_API_KEY", "REPLICATE_API_TOKEN", "JUDGE_TOKEN"])
def test_variables_for_such_keys(name, endpoint, tmp_path):
    assert benchmark("mmvet", tmp_path, endpoint, key_env=name).params.judge.key_env == name


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{KEY}@host/v1",
        f"https://{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        f"https://host/v1#{KEY}",
        "file:///etc/passwd",
        "host/v1",
        "https://host/v1\n",
        "https://ho st/v1",
        "https://host:99999/v1",
        "https://[host/v1",
        "",
    ],
)
def test_an_address_holds_no_secret(url, endpoint, tmp_path, capsys):
    judge = options(tmp_path, endpoint, url=url)
    with pytest.raises(ValueError, match="should (be an address|hold no user)"):
        JudgeParams(**judge)
    recipe = tmp_path / "r.yaml"
    node = {**MAKERS["mmvet"](tmp_path / "mmvet"), "judge": judge}
    recipe.write_text(f"name: r\nmodel: {{path: {tmp_path}}}\nbenchmarks: [{json.dumps(node)}]\n")
    assert main([str(recipe), f"run.root={tmp_path / 'runs'}"]) == 2
    told = "".join(capsys.readouterr())
    assert KEY not in told and "benchmarks.0.judge.url" in told and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", [f"{KEY}\nX-Evil: 1", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_cannot_be_sent_is_not_shown(key, endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", {"TEST_JUDGE_KEY": key})
    with pytest.raises(UserError, match="TEST_JUDGE_KEY holds what cannot be a key") as told:
        Judge(JudgeParams(**options(tmp_path, endpoint))).ask("?")
    assert KEY not in str(told.value) and not endpoint.asked


def test_several_are_asked_together_and_their_cost_is_shown(endpoint, tmp_path, capsys):
    endpoint.slow = 0.05
    endpoint.replies = [says("0.5", {"prompt_tokens": 1000, "completion_tokens": 2, "total_tokens": 1002})]
    judge = Judge(JudgeParams(**options(tmp_path, endpoint, at_once=4, price={"input": 30, "output": 60})))
    judge.consult(f"question {i % 20}" for i in range(40))
    assert len(endpoint.asked) == 20 and 2 <= endpoint.most <= 4 and len(kept(tmp_path)) == 20
    told = " ".join(capsys.readouterr().out.split())
    assert "judge strict: 20 answers, 20 requests, 20,000 tokens read and 40 written, 0.6024 USD" in told
    judge.consult(["question 3"])
    assert len(endpoint.asked) == 20 and capsys.readouterr().out == ""


def test_one_that_fails_ends_the_others_and_keeps_what_there_is(endpoint, tmp_path):
    endpoint.replies = [says("0.5"), says("0.5"), (400, {}, {})]
    judge = Judge(JudgeParams(**options(tmp_path, endpoint, at_once=1)))
    with pytest.raises(UserError, match="it answers 400"):
        judge.consult(f"question {i}" for i in range(40))
    assert len(kept(tmp_path)) == 2 and len(endpoint.asked) == 3


def test_a_dry_run_prints_no_character_that_a_terminal_obeys_or_cannot_show(endpoint, tmp_path, capfd):
    asked = ["half \ud800", "\x9b31m red", "红色"]
    Judge(JudgeParams(**options(tmp_path, endpoint, dry_run=True))).consult(asked)
    told = capfd.readouterr().out
    assert [json.loads(line)["body"]["messages"][0]["content"] for line in told.splitlines()] == asked
    assert "红色" in told and told.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["mmvet", "hallusionbench"])
def test_a_dry_run_prints_the_requests_and_sends_none(name, endpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    total = row(benchmark(name, tmp_path, endpoint, dry_run=True), "x = -1")
    told = capsys.readouterr().out
    requests = [json.loads(line) for line in told.splitlines()]
    assert not endpoint.asked and total["metrics"] == {} and "dry_run" in total["not_scored"] and KEY not in told
    assert requests[0]["url"] == f"{endpoint.url}/chat/completions"
    row(benchmark(name, tmp_path, endpoint), "x = -1")
    assert sorted(map(str, (r["body"] for r in requests))) == sorted(str(body) for _, _, body in endpoint.asked)


def test_a_judge_that_cannot_be_reached_is_told(tmp_path):
    judge = Judge(JudgeParams(url="http://127.0.0.1:9/v1", model="m", cache=str(tmp_path / "judge.jsonl")))
    with pytest.raises(UserError, match="start again to go on"):
        judge.ask("?")

"""What a number depends on: each thing is changed in turn, and exactly the stages that depend on it run again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from factory import files
from factory.recipe import load
from factory.run import pipeline, rundir
from tests.tiny import saved_tiny

RECIPE = """\
name: whole
model: {{path: {folder}, layer: 1}}
plugins: [{home}/mine.py]
data: {{type: filed, file: {home}/words.json, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
diagnostic: {{type: seen}}
collect: {{batch_size: 8}}
steering: [none, {{type: pushed}}, static, {{type: asked_for}}]
evaluate: {{controls: [], directions: [vision], strengths: [0.5], batch_size: 8, max_new_tokens: 2}}
benchmarks: [{{type: quiz, root: {home}}}]
run: {{root: {home}/runs}}
report: {{plots: false}}
"""
PLUGINS = '''
import json
from dataclasses import replace
from pathlib import Path

from eval_suite.benchmark import AnswerBenchmark, Item
from eval_suite.benchmarks.scenes import Scenes, ScenesParams
from eval_suite.released import asked
from eval_suite.scorers.reading import right_or_wrong
from factory.data.prompt import Role, Segment
from factory.diagnose import Diagnostic
from factory.registry import Params, register
from factory.steer import PromptMethod, Steerer

PUSH = 0.5
ASK = "Please."
LETTERS = 1.0
RULE = "quiz/1"


class FiledParams(ScenesParams):
    file: str


@register("benchmark", "filed")
class Filed(Scenes):
    Params = FiledParams

    def samples(self, split):
        words = json.loads(Path(self.params.file).read_text())
        return [replace(s, context=f"{words} {s.context}") for s in super().samples(split)]

    def judge(self, sample, form, text):
        return "vision" if LETTERS else "text"


@register("steering", "pushed")
class Pushed(Steerer):
    """Comment me."""

    def fit(self, states):
        return {"v": PUSH * states.toward.mean(0)}

    def delta(self, h, state, ctx):
        return state["v"].expand_as(h)


@register("steering", "asked_for")
class AskedFor(PromptMethod):
    def rewrite(self, prompt, direction, examples):
        return prompt.append(Segment(Role.INSTRUCTION, ASK))


@register("diagnostic", "seen")
class Seen(Diagnostic):
    def on_prefix(self, view, prefix, query, keys, hidden=None):
        width = 1 + 0 * len(query.ids)
        return [{"sample": k, "metric": "R_V", "layer": None, "head": None, "value": width / 2} for k in keys]


class QuizParams(Params):
    root: str


@register("benchmark", "quiz")
class Quiz(AnswerBenchmark):
    Params = QuizParams
    scorer = RULE

    def items(self):
        root = Path(self.params.root)
        rows = json.loads((root / "quiz.json").read_text())
        prompt = lambda r: asked(root / r["image"], (Role.QUESTION, r["question"]))
        return [Item(r["id"], prompt(r), r["answer"], images=(root / r["image"],)) for r in rows]

    def read(self, item, text):
        return right_or_wrong(text, text == item.gold)
'''
QUIZ = [{"id": f"{i}", "image": f"{i}.png", "question": f"What is {i}?", "answer": "red"} for i in range(3)]
ANSWERED = {"bench-quiz-none", "bench-quiz-static-vision", "bench-quiz-pushed-vision", "bench-quiz-asked_for-vision"}
STEERED = {"bench-quiz-static-vision", "bench-quiz-pushed-vision"}
SCORED = {"dev", "test", "random"}
STUDIED = {"collect", "diagnose", "fit", *SCORED}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a finished run and all that it was made from."""
    home = tmp_path_factory.mktemp("home")
    saved_tiny(home / "model")
    (home / "mine.py").write_text(PLUGINS)
    (home / "words.json").write_text('"Mind:"')
    (home / "quiz.json").write_text(json.dumps(QUIZ))
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 10, 10)).save(home / f"{i}.png")
    (home / "whole.yaml").write_text(RECIPE.format(folder=home / "model", home=home))
    pipeline.run(load(home / "whole.yaml"))
    return home


def edited(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(home: Path) -> None:
        text = (home / path).read_text(encoding="utf-8")
        assert old in text
        (home / path).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def mended(**change: str) -> Callable[[Path], None]:
    return lambda home: (home / "quiz.json").write_text(json.dumps([{**QUIZ[0], **change}, *QUIZ[1:]]))


def repainted(home: Path) -> None:
    Image.new("RGB", (40, 30), (1, 2, 3)).save(home / "0.png")


def ending_elsewhere(home: Path) -> None:
    path = home / "model" / "generation_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, "eos_token_id": 7}))


def reconfigured(*path: str, value: object) -> Callable[[Path], None]:
    """Another value in the model's configuration, under the same weights."""

    def edit(home: Path) -> None:
        config = json.loads((home / "model" / "config.json").read_text())
        inside = config
        for key in path[:-1]:
            inside = inside[key]
        assert inside[path[-1]] != value
        inside[path[-1]] = value
        (home / "model" / "config.json").write_text(json.dumps(config))

    return edit


def one_value(home: Path) -> None:
    """Another last value of one tensor of the weights, as of one token's row that was learnt."""
    path = home / "model" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][-1, -1] += 1
    save_file(tensors, path, {"format": "pt"})


def another_template(home: Path) -> None:
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer_config.json", "chat_template.json"):
        path = home / "model" / name
        if path.is_file() and "ASSISTANT" in path.read_text():
            path.write_text(path.read_text().replace("ASSISTANT", "HELPER"))


def worked_on(run: Path) -> set[str]:
    """Stages that the last start of a run began anew."""
    events = files.read_log(run / "events.jsonl")
    last = max(i for i, event in enumerate(events) if event["event"] == "run_opened")
    return {event["stage"] for event in events[last:] if event["event"] == "stage_started"}


CASES = {
    "nothing": (lambda home: None, (), set()),
    "a comment and a docstring": (edited("mine.py", '"""Comment me."""', '"""Commented."""  # so'), (), set()),
    "a touched file": (lambda home: (home / "0.png").touch(), (), set()),
    "the code of a steering method": (
        edited("mine.py", "PUSH = 0.5", "PUSH = 0.6"),
        (),
        {"fit", *SCORED, "bench-quiz-pushed-vision"},
    ),
    "the code of a prompt method": (
        edited("mine.py", '"Please."', '"Pray."'),
        (),
        {*SCORED, "bench-quiz-asked_for-vision"},
    ),
    "the code of the diagnostic": (edited("mine.py", "width / 2", "width / 3"), (), STUDIED),
    "a question": (mended(question="What is nought?"), (), ANSWERED),
    "a right answer": (mended(answer="blue"), (), ANSWERED),
    "an id": (mended(id="nought"), (), ANSWERED),
    "a picture": (repainted, (), ANSWERED),
    "a scorer's version": (edited("mine.py", "quiz/1", "quiz/2"), (), ANSWERED),
    "a scorer's code": (edited("mine.py", "text == item.gold", "text != item.gold"), (), ANSWERED),
    "the verdicts of the conflicts": (edited("mine.py", "LETTERS = 1.0", "LETTERS = 0.0"), (), SCORED),
    "the conflicts": (edited("words.json", "Mind:", "Beware:"), (), {"check", *STUDIED, *STEERED}),
    "the length of answers": (None, ("evaluate.max_new_tokens=3",), SCORED),
    "the strengths": (
        None,
        ("evaluate.strengths=[0.25]",),
        {*SCORED, *STEERED},
    ),
    "the end of answers": (ending_elsewhere, (), {*STUDIED, *ANSWERED}),
    "the rotary positions": (
        reconfigured("text_config", "rope_parameters", "rope_theta", value=100.0),
        (),
        {*STUDIED, *ANSWERED},
    ),
    "the activation of the tower": (
        reconfigured("vision_config", "hidden_act", value="relu"),
        (),
        {*STUDIED, *ANSWERED},
    ),
    "one value of the weights": (one_value, (), {*STUDIED, *ANSWERED}),
    "the template": (another_template, (), {"check", *STUDIED, *ANSWERED}),
    "parameters of a method": (None, ("steering.1.as=shoved",), {"fit", *SCORED, "bench-quiz-shoved-vision"}),
}


@pytest.mark.parametrize("what", CASES)
def test_exactly_the_dependent_stages_run_again(home, tmp_path, what):
    change, overrides, expected = CASES[what]
    shutil.copytree(home / "runs", tmp_path / "runs")
    kept = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and "runs" not in path.parts}
    try:
        if change:
            change(home)
        run = pipeline.run(load(home / "whole.yaml", [f"run.root={tmp_path / 'runs'}", *overrides]))
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert worked_on(run) == expected


def test_mended_gold_gives_new_scores_without_asking_again(home, tmp_path):
    shutil.copytree(home / "runs", tmp_path / "runs")
    text = files.read_jsonl(home / "runs/whole/predictions/quiz/none.jsonl")[0]["text"]
    try:
        mended(answer=text)(home)
        run = pipeline.run(load(home / "whole.yaml", [f"run.root={tmp_path / 'runs'}"]))
    finally:
        (home / "quiz.json").write_text(json.dumps(QUIZ))
    value = lambda run: files.read_jsonl(run / "predictions/quiz/none.jsonl")[0]["value"]
    assert (value(home / "runs/whole"), value(run)) == (0.0, 1.0)
    assert files.read_json(run / "costs.json")["quiz/none"]["generated"] == 0, "answers come from the cache"


def test_a_run_of_an_older_version_is_made_anew_and_says_so_once(home, tmp_path, capsys):
    shutil.copytree(home / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs" / "whole").glob("*/inputs.json"):
        record = files.read_json(path)
        files.write_json(path, {"digest": "0" * 64, "inputs": record["inputs"]})
    before = files.read_json(tmp_path / "runs/whole/results.json")
    run = pipeline.run(load(home / "whole.yaml", [f"run.root={tmp_path / 'runs'}"]))
    assert capsys.readouterr().err.count("older version") == 1
    assert worked_on(run) == {"check", *STUDIED, *ANSWERED}
    assert files.read_json(run / "results.json") == before


def test_a_stage_says_which_inputs_are_others(home, tmp_path, capsys):
    shutil.copytree(home / "runs", tmp_path / "runs")
    pipeline.run(load(home / "whole.yaml", [f"run.root={tmp_path / 'runs'}", "evaluate.max_new_tokens=3"]))
    assert "dev: computed anew: other max_new_tokens\n" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["changed", "cut", "shape", "checksum", "noise"])
def test_a_damaged_answer_is_told_counted_and_asked_again(home, tmp_path, capsys, damage):
    root = tmp_path / "runs"
    shutil.copytree(home / "runs" / ".responses", root / ".responses")
    path = min((root / ".responses").iterdir())
    lines = path.read_bytes().splitlines()
    row = json.loads(lines[1])
    lines[1] = {
        "changed": json.dumps({**row, "text": "forged"}).encode(),
        "cut": lines[1][:-9],
        "shape": b'["prompt", {"text": 1}]',
        "checksum": json.dumps({**row, "check": None}).encode(),
        "noise": b"\xff\xfe\x00",
    }[damage]
    path.write_bytes(b"\n".join(lines) + b"\n")
    run = pipeline.run(load(home / "whole.yaml", [f"run.root={root}"]))
    assert "1 damaged entries are not used" in capsys.readouterr().err
    [event] = [e for e in files.read_log(run / "events.jsonl") if e["event"] == "answers_damaged"]
    generated = [cost["generated"] for cost in files.read_json(run / "costs.json").values()]
    assert event["entries"] == 1 and sorted(generated) == [0, 0, 0, 1]
    assert files.read_json(run / "results.json") == files.read_json(home / "runs/whole/results.json")
    shutil.rmtree(run)
    pipeline.run(load(home / "whole.yaml", [f"run.root={root}"]))
    assert "damaged" not in capsys.readouterr().err, "told once"


def test_what_watches_a_run_sees_every_chunk_before_it_is_stored(tmp_path):
    seen = []

    def watcher(stage: rundir.Stage, key: str) -> None:
        seen.append((stage.name, key, bool(stage.missing([key]))))
        if key == "b":
            raise KeyboardInterrupt

    with rundir.RunDir.open(tmp_path, "r", tmp_path / "r.yaml", "", {}) as run:
        stage = run.stage("s", {})
        with pytest.raises(KeyboardInterrupt), rundir.watched_stores(watcher):
            stage.gather({"a": lambda: {"x": 1}, "b": lambda: {"x": 2}})
        assert seen == [("s", "a", True), ("s", "b", True)] and stage.missing(["a", "b"]) == ["b"]
        stage.gather({"a": lambda: {"x": 1}, "b": lambda: {"x": 2}})
    assert len(seen) == 2

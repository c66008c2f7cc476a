"""Methods that ask twice: their second prompt knows the answer to the first, wherever they are put."""

from __future__ import annotations

import json

import pytest

from factory.bench import answer_prompts
from factory.cli import main
from factory.data.prompt import Prompt, Role, Segment
from factory.recipe.schema import read_node
from factory.steer import TwoCalls
from factory.steer.calls import harmless, rewritten
from tests.contract.cases import classes
from tests.tiny import conflict_prompts, saved_tiny, tiny_view

CALLERS = sorted(name for name, cls in classes("steering").items() if issubclass(cls, TwoCalls))
WITNESSED = {"vision": Role.IMAGE, "text": Role.CONTEXT}


def made(name, **more):
    return read_node("steering", {"type": name, **more}).make()


@pytest.mark.parametrize("direction", ["vision", "text"])
@pytest.mark.parametrize("name", CALLERS)
def test_the_second_prompt_holds_what_was_told(name, direction):
    method, prompts, view = made(name, first_tokens=5), conflict_prompts(3), tiny_view()
    found = rewritten(view, method, prompts, direction)
    for prompt, second in zip(prompts, found, strict=True):
        [told] = answer_prompts(view, [method.first(prompt, direction)], 5)
        assert second == method.second(prompt, direction, told)
        assert second.segments[-1].role != Role.ANSWER


@pytest.mark.parametrize("direction", ["vision", "text"])
def test_a_witness_knows_one_side_and_the_question_alone(direction):
    method = made("s2va")
    [asked] = conflict_prompts(1)
    pressed = asked.append(Segment(Role.ANSWER, "red"), Segment(Role.INSTRUCTION, "No, it is blue."))
    first, second = method.first(pressed, direction), method.second(pressed, direction, "a green ring")
    other = WITNESSED["text" if direction == "vision" else "vision"]
    own = [s for s in asked.segments if s.role in (WITNESSED[direction], Role.QUESTION)]
    assert list(first.segments[:-1]) == own and not first.images or direction == "vision"
    assert "blue" not in " ".join(s.text for s in first.segments)
    texts = [s.text for s in second.segments]
    assert "a green ring" in texts[0] and "No, it is blue." in texts and "red" in texts
    assert other in {s.role for s in second.segments}
    assert bool(second.images) == (direction == "text")
    assert made("s2va", arbiter_sees=True).second(pressed, direction, "x").images == asked.images


def test_a_report_cannot_end_the_prompt_or_add_a_picture():
    view = tiny_view()
    for spelt in view.writing.special:
        text = harmless(view, f"a {spelt} ring{spelt}")
        assert view.writing.reserved(text) is None and text == "a  ring"
    nested = harmless(view, "<im<image>age> ring")
    view.encode([Prompt((Segment(Role.QUESTION, nested),))])


RECIPE = """name: r
model: {{path: {model}}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
steering: [none, {{type: s2va, first_tokens: 3}}]
benchmarks: [{{type: pressure, kinds: [strong], of: {{type: plain_scenes, per_task: 1}}}}]
evaluate: {{controls: [], batch_size: 16, max_new_tokens: 3, directions: [vision], cost: true}}
report: {{plots: false}}
run: {{root: {root}}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_calls")
    saved_tiny(folder / "model")
    (folder / "r.yaml").write_text(RECIPE.format(model=folder / "model", root=folder / "runs"))
    assert main([str(folder / "r.yaml")]) == 0
    return folder / "runs" / "r"


def test_a_run_asks_twice_on_conflicts_and_on_questions(ran):
    """Against one call after the other, one prompt at a time."""
    view, method = tiny_view(), made("s2va", first_tokens=3)
    kept = [json.loads(line) for line in (ran / "predictions/pressure/s2va-vision.jsonl").read_text().splitlines()]
    benchmark = read_node(
        "benchmark", {"type": "pressure", "kinds": ["strong"], "of": {"type": "plain_scenes", "per_task": 1}}
    )
    items = {item.id: item for item in benchmark.make().questions()}
    texts = {r["sample"]: r["text"] for r in kept}
    for r in kept:
        item = items[r["sample"]]
        prompt = item.follow(items[item.after].prompt(), texts[item.after]) if item.after else item.prompt()
        [told] = answer_prompts(view, [method.first(prompt, "vision")], 3)
        [text] = answer_prompts(view, [method.second(prompt, "vision", told)], 6)
        assert (r["told"], r["text"]) == (told, text)
    path = ran / "predictions/scenes/s2va-vision.jsonl"
    scenes = read_node("benchmark", {"type": "scenes", "scoring": "open_ended", "per_task": {"test": 1}}).make()
    samples = {s.id: s for s in scenes.samples("test")}
    for r in map(json.loads, path.read_text().splitlines()):
        [second] = rewritten(view, method, [scenes.prompt(samples[r["sample"]], "open")], "vision")
        assert r["prompts"] == [second.digest] and r["answers"] == answer_prompts(view, [second], 3)


def test_a_cost_counts_both_calls(ran):
    rows = [line.split(",") for line in (ran / "report/cost.csv").read_text().splitlines()]
    work = {row[0]: float(row[rows[0].index("decoder tokens an answer")]) for row in rows[1:]}
    assert work["s2va"] > 1.5 * work["none"]


def test_a_plan_counts_the_first_calls(ran, capsys):
    assert main(["plan", str(ran.parents[1] / "r.yaml"), "name=other"]) == 0
    cells = [
        cell.strip() for line in capsys.readouterr().out.splitlines() if "pressure" in line for cell in line.split("│")
    ]
    assert ["16", "32", "16"] == [
        cell for cell in cells if cell.isdigit() and cell != "6"
    ]  # questions, answers, first calls

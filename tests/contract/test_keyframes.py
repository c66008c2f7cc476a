"""Key frames on drawn films, the first k and k at random: which pictures are kept, and how often the right one."""

from __future__ import annotations

import json
from random import Random

import pytest

from factory.bench import answer_prompts
from factory.cli import main
from factory.data.prompt import Role, Segment
from factory.model.load import load
from factory.recipe.schema import ModelSpec, read_node
from plugins.steering.keyframes import chosen
from tests.tiny import saved_tiny, tiny_view

FILMS = {"type": "films", "per_task": 1, "frames": 5}


def made(name, **more):
    return read_node("steering", {"type": name, **more}).make()


@pytest.mark.parametrize(
    ("told", "n", "k", "kept"),
    [
        ("2, 5 and 7", 8, 3, [1, 4, 6]),
        ("picture five, then two, then one, then eight", 8, 3, [0, 1, 4]),
        ("3", 8, 1, [2]),
        ("9 and 0 and 3", 8, 1, [2]),  # there is no ninth, and none before the first
        ("", 9, 3, [1, 4, 7]),
        ("1", 3, 3, [0, 1, 2]),
        ("4 4 4", 8, 2, [3, 4]),
        ("someone", 2, 5, [0, 1]),
    ],
)
def test_the_pictures_that_an_answer_names(told, n, k, kept):
    assert chosen(told, n, k) == kept


def film():
    item = read_node("benchmark", FILMS).make().questions()[0]
    return item, item.prompt()


def test_the_first_call_knows_no_pressure_and_the_second_the_pictures_it_named():
    _, prompt = film()
    pressed = prompt.append(Segment(Role.ANSWER, "red"), Segment(Role.INSTRUCTION, "No, it is blue."))
    method = made("keyframes", k=2)
    first, second = method.first(pressed, "vision"), method.second(pressed, "vision", "pictures 5 and 2")
    assert first.images == prompt.images and "blue" not in " ".join(s.text for s in first.segments)
    assert second.images == [prompt.images[1], prompt.images[4]]
    assert [s for s in second.segments if s.image is None] == [s for s in pressed.segments if s.image is None]


@pytest.mark.parametrize("pick", ["first", "random"])
def test_frames_picked_without_looking(pick):
    _, prompt = film()
    found = made("some_frames", pick=pick, k=2).rewrite(prompt, "vision", [])
    places = [prompt.images.index(image) for image in found.images]
    assert places == ([0, 1] if pick == "first" else sorted(Random(f"0/{prompt.digest}").sample(range(5), 2)))
    assert made("some_frames", pick=pick, k=9).rewrite(prompt, "vision", []) == prompt


def test_a_film_has_its_evidence_where_it_says():
    from eval_suite.scenes.world import SceneSpec, scene

    benchmark = read_node("benchmark", {**FILMS, "per_task": 2}).make()
    for item in benchmark.questions():
        split, task, number = item.id.split("-") if item.id.count("-") == 2 else (None, None, None)
        assert (split, task) == ("test", item.tasks[0])
        own = scene(SceneSpec(task, "test", int(number), 0, 0)).load_image()
        images = item.prompt().images
        assert (
            len(images) == 5 and [image.tobytes() == own.tobytes() for image in images].index(True) == item.facts["at"]
        )
        assert item.prompt().digest == item.prompt().digest


RECIPE = """name: r
model: {{path: {model}}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
steering: [none, {{type: keyframes, k: 2, first_tokens: 4}}, {{type: some_frames, k: 2}}]
benchmarks: [{{type: films, per_task: 1, frames: 5}}]
evaluate: {{controls: [], batch_size: 16, max_new_tokens: 2, directions: [vision]}}
report: {{plots: false}}
run: {{root: {root}}}
"""


def test_recall_is_that_of_a_plain_loop_and_is_recomputed(tmp_path, capsys):
    saved_tiny(tmp_path / "model")
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=tmp_path / "model", root=tmp_path / "runs"))
    assert main([str(tmp_path / "r.yaml")]) == 0
    run, view = tmp_path / "runs" / "r", tiny_view()
    rows = {
        r["method"]: r
        for r in json.loads((run / "results.json").read_text())["rows"]
        if r.get("label") == "films" and r["task"] == "all"
    }
    items = read_node("benchmark", FILMS).make().questions()
    method = made("keyframes", k=2)
    hits = {"keyframes": 0, "some_frames": 0}
    for item in items:
        [told] = answer_prompts(view, [method.first(item.prompt(), "vision")], 4)
        hits["keyframes"] += item.facts["at"] in chosen(told, 5, 2)
        hits["some_frames"] += item.facts["at"] < 2
    for name, found in hits.items():
        assert rows[name]["metrics"]["frame_recall"] == pytest.approx(found / len(items))
    assert "frame_recall" not in rows["none"]["metrics"]
    capsys.readouterr()
    assert main(["verify", str(run)]) == 0
    assert "0 numbers differ" in capsys.readouterr().out


def test_a_first_call_that_names_the_picture_is_seen_in_recall_and_answers():
    """Planted: the true number is put in the place of the first call's answer. So a recall at chance is the model's."""
    view = load(ModelSpec(zoo="tiny2", device="cpu"))
    benchmark = read_node("benchmark", {"type": "films", "per_task": 2}).make()
    items, method = benchmark.questions(), made("keyframes", k=3)
    right = {}
    for planted in (True, False):
        told = [str(item.facts["at"] + 1) if planted else "" for item in items]
        prompts = [method.second(item.prompt(), "vision", said) for item, said in zip(items, told, strict=True)]
        places = [
            [i for i, image in enumerate(item.prompt().images) if image.tobytes() in {k.tobytes() for k in p.images}]
            for item, p in zip(items, prompts, strict=True)
        ]
        answers = answer_prompts(view, prompts, 6)
        records = [
            {**benchmark.record(item, text), "text": text, "prompt_digest": "", "pictures": kept}
            for item, text, kept in zip(items, answers, places, strict=True)
        ]
        whole = next(row["metrics"] for row in benchmark.rows(records, draws=0) if row["task"] == "all")
        right[planted] = whole["accuracy"]
        by_hand = sum(item.facts["at"] in kept for item, kept in zip(items, places, strict=True)) / len(items)
        assert whole["frame_recall"] == pytest.approx(by_hand) and (by_hand == 1) == planted
    assert right[True] > right[False]

"""Controls beside a steering table: which a benchmark can give, that every method is asked, and what verify makes of
them.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

from eval_suite.scenes.controls import controlled
from factory.cli import main
from factory.data.prompt import Role
from factory.errors import UserError
from factory.recipe import load
from factory.recipe.nodes import read_node
from factory.run.questions.controls import beside, controls
from tests.eval_suite.released_conflicts import chartqa_conflict, clash, phd, words_or_vision
from tests.tiny import saved_tiny

RECIPE = """\
name: beside
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 2}}}}
steering: [none, {{type: few_shot, shots: 1}}, static]
evaluate: {{strengths: [1], max_new_tokens: 2, batch_size: 16, directions: [vision], control_questions: 8{more}}}
run: {{root: {root}}}
report: {{plots: false}}
"""
NAMES = {"matching text": "vision", "irrelevant text": "vision", "blank picture": "text"}


def written(folder, root, more=""):
    path = root / "beside.yaml"
    path.write_text(RECIPE.format(folder=folder, root=root / "runs", more=more))
    return path


def test_every_method_is_asked_the_controls_and_they_stand_beside_its_table(tmp_path, capsys):
    recipe = written(saved_tiny(tmp_path / "model"), tmp_path)
    assert main(["plan", str(recipe)]) == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["controls"])
    assert told.split()[1:4] == [str(24 * 2), str(24 * 2 * 2), "24"] and "unknown" not in told  # passes, tokens
    assert main([str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "Controls beside it: no conflict, 8 questions each" in said and "Other benchmarks" not in said
    run = tmp_path / "runs/beside"
    rows = [r for r in json.loads((run / "results.json").read_text())["rows"] if "control" in r and r["task"] == "all"]
    # a method that shows worked examples of the conflicts is asked nothing else
    assert [(r["control"], r["main"], r["method"], r["n"]) for r in rows] == [
        (name, main, method, 8) for name, main in NAMES.items() for method in ("none", "static")
    ]
    assert {r["generation"]["max_new_tokens"] for r in rows} == {2}  # as many as the conflicts have
    assert len({r["protocol"] for r in rows}) == 3
    page = (run / "report/index.html").read_text()
    assert "matching text: image" in page and "blank picture: text" in page and ">Other benchmarks<" not in page
    assert len((run / "report/controls.csv").read_text().splitlines()) == 1 + 6 * len(rows[0]["metrics"])
    assert "#### Controls beside it" in (run / "report/table.md").read_text()
    assert main(["verify", str(run)]) == 0
    assert " 0 numbers differ" in capsys.readouterr().out


def test_controls_can_be_named_left_out_and_are_refused_where_there_are_none(tmp_path):
    folder = tmp_path / "nowhere"
    assert list(controls(load(written(folder, tmp_path)))) == list(NAMES)
    named = load(written(folder, tmp_path, ", controls: [blank picture]"))
    assert list(controls(named)) == ["blank picture"]
    assert controls(load(written(folder, tmp_path, ", controls: []"))) == {}
    with pytest.raises(UserError, match="'scenes' has no control 'blank'. Did you mean blank picture?"):
        controls(load(written(folder, tmp_path, ", controls: [blank]")))
    taken = ["benchmarks=[{type: plain_scenes, as: 'control: blank picture'}]"]
    with pytest.raises(UserError, match="a benchmark is called 'control: blank picture' too"):
        controls(load(written(folder, tmp_path), taken))
    tuned = ["data=null", "steering=[]", "benchmarks=[plain_scenes]"]
    assert controls(load(written(folder, tmp_path), tuned)) == {}


def test_scenes_without_a_conflict_say_what_they_should():
    b = read_node("benchmark", {"type": "scenes", "scoring": "open_ended"}).make()
    samples = b.samples("test")
    same = [(s.id, s.question, s.answer_vision, s.answer_text) for s in samples]
    for control in ("matching", "irrelevant", "blank"):
        asked = controlled(samples, control, "test")
        assert [(s.id, s.question, s.answer_vision, s.answer_text) for s in asked] == same
        for s, of in zip(asked, samples, strict=True):
            assert (s.load_image().getcolors() == [(48 * 48, (255, 255, 255))]) == (control == "blank")
            assert (s.context == of.context) == (control == "blank")
    direct = [s for s in controlled(samples, "matching", "test") if s.tags["text_tier"] == 0]
    assert direct and all(s.answer_vision in s.context and s.answer_text not in s.context for s in direct)
    by_context = {s.context: s for s in samples}
    for s in controlled(samples, "irrelevant", "test"):
        other = by_context[s.context]
        assert other.task != s.task and other.tags["subject"] != s.tags["subject"]


RELEASED = {
    "clash": (clash, ("no conflict", "blank picture")),
    "chartqa_conflict": (chartqa_conflict, ("blank picture",)),
    "words_or_vision": (words_or_vision, ("matching text", "irrelevant text", "blank picture")),
    "phd": (phd, ("no conflict", "irrelevant text", "blank picture")),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_benchmarks_give_the_controls_that_they_have(tmp_path, name):
    make, names = RELEASED[name]
    data = make(tmp_path, 12)
    recipe = load(written(tmp_path / "nowhere", tmp_path), [f"data={json.dumps(data)}", "model={zoo: tiny}"])
    asked = {s.control: s for s in beside(recipe, None)}
    assert tuple(asked) == names
    whole = {s.id: s for s in recipe.data.make().samples("test")}
    for control, suite in asked.items():
        for item in suite.items:
            prompt = item.prompt()
            (image,) = prompt.images
            said = " ".join(s.text for s in prompt.segments if s.role == Role.CONTEXT)
            own = whole[item.id]  # no picture of another split
            shown = own.load_image()
            white = Image.new("RGB", shown.size, "white")
            assert image.tobytes() == (white if control == "blank picture" else shown).tobytes()
            assert (own.context in said) == (control == "blank picture")
        assert suite.benchmark.main in ("vision", "index") or control == "blank picture"

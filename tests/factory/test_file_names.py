"""Labels, ids and keys as files: none leads out of its folder, no two meet, and a run under odd names is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_suite.compare.load import load as compared
from factory.cli import main
from factory.files import file_name
from factory.recipe import RecipeError, loads
from tests.tiny import saved_tiny

ODD = ["../../x", "/etc/passwd", "a:b", "A", "a", "CON", "nul.txt", "COM1", ".", "..", "~", "-rf"] + [
    "",
    " ",
    "a\0b",
    "\ud800",
    "图像",
    "x" * 5000,
]
NAMES = st.sampled_from(ODD) | st.text() | st.text(st.characters(), max_size=3) | st.from_regex(r"[A-Za-z./-]{1,4}")
RECIPE = """\
name: odd
model: {{path: {folder}, layer: 1}}
data: {{type: scenes, scoring: open_ended, per_task: {{train: 1, dev: 1, test: 1}}}}
benchmarks: [{{type: plain_scenes, as: ../../up, per_task: 1}}]
steering: [none, {{type: static, as: ../../x}}, {{type: static, as: "AMPS: ours / β"}}]
evaluate: {{controls: [], strengths: [1], directions: [vision], batch_size: 8, max_new_tokens: 1}}
run: {{root: {root}}}
report: {{plots: false}}
"""


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_name_is_one_part_of_a_path_that_every_file_system_takes(parts):
    name = file_name(*parts)
    assert Path(name).name == name and name not in (".", "..") and not name.startswith(".")
    assert len(name.encode()) <= 100 and name.isascii() and name.isprintable()
    assert name.split(".")[0].lower() not in ("con", "nul", "prn", "aux", "com1")
    assert not set(name) & set('<>:"/\\|?* ')


@given(st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.lists(NAMES, min_size=n, max_size=n)] * 2)))
def test_different_names_have_different_files(pair):
    one, other = pair
    assert (file_name(*one) == file_name(*other)) == (one == other)


def test_parts_that_read_alike_when_joined_are_told_apart():
    assert file_name("bench", "pope", "l2s-vision") == "bench-pope-l2s-vision"
    assert file_name("bench", "pope-l2s", "vision") != file_name("bench", "pope", "l2s-vision")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ('"a\\0b"', r"should be a name of visible characters alone, got 'a\x00b'"),
        ('"\\e[31mred"', r"should be a name of visible characters alone, got '\x1b[31mred'"),
        ('"a\\u202Eb"', r"should be a name of visible characters alone, got 'a\u202eb'"),
        ('" x"', "should be a name of visible characters alone, got ' x'"),
        ('" "', "should be a name"),
        ("x" * 5000, "should be a name of at most 80 characters, and has 5,000"),
    ],
)
def test_a_label_that_cannot_be_shown_is_refused_at_its_place(label, why):
    with pytest.raises(RecipeError) as error:
        loads(f"name: x\nmodel: {{zoo: tiny}}\ndata: scenes\nsteering: [{{type: static, as: {label}}}]\n", "x.yaml")
    assert str(error.value) == f"x.yaml:4:27 steering.0.as: {why}"


@pytest.mark.parametrize("pair", [("AMPS", "amps"), ("ﬁt", "fit"), ("é", "é")])
def test_labels_that_a_file_system_may_take_for_one_are_refused(pair):
    text = (
        "name: x\nmodel: {{zoo: tiny}}\ndata: scenes\nsteering: [{{type: static, as: {}}}, {{type: static, as: {}}}]\n"
    )
    with pytest.raises(RecipeError, match=f"another one is called '{pair[0]}' too"):
        loads(text.format(*pair))


def test_a_run_under_odd_names_stays_in_its_folder_and_compare_finds_its_answers(tmp_path, capsys):
    root = tmp_path / "a" / "b" / "runs"
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(RECIPE.format(folder=saved_tiny(tmp_path / "model"), root=root), encoding="utf-8")
    assert main([str(recipe)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "model", "odd.yaml"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"] and [p.name for p in root.parent.iterdir()] == ["runs"]
    assert sorted(p.name for p in root.iterdir()) == [".responses", "odd"]
    arms = {arm.method: arm for arm in compared([root / "odd"])}
    assert {"none", "../../x", "AMPS: ours / β"} <= set(arms)
    for arm in arms.values():
        assert all(score.samples for score in arm.scores.values() if score.main), arm.method
    assert arms["../../x"].parameters == 48


def test_two_saved_artefacts_of_one_folder_name_are_refused_before_the_run(tmp_path, capsys):
    for run in "ab":
        (tmp_path / run / "x-vision").mkdir(parents=True)
        (tmp_path / run / "x-vision" / "steering_config.json").write_text("{}")
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        f"name: two\nmodel: {{path: {saved_tiny(tmp_path / 'model')}}}\nbenchmarks: [fluency]\n"
        f"artefacts: [{tmp_path}/a/x-vision, {tmp_path}/b/x-vision]\nrun: {{root: {tmp_path}/runs}}\n"
    )
    assert main([str(recipe)]) == 2
    assert f"artefacts.1: {tmp_path}/b/x-vision is named after its folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

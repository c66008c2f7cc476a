"""VLind-Bench: its stages as they are asked, its scores against the released script's, its files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from factory.errors import UserError
from factory.recipe.nodes import read_node
from tests.eval_suite.released_conflicts import vlind_bench, vlind_entry
from tests.eval_suite.released_files import written

DRAWN = json.loads(Path(__file__).with_name("official").joinpath("vlind_pipeline.json").read_text())


def made(root, entries=None, **more):
    return read_node("benchmark", {**vlind_bench(root, entries=entries), **more}).make()


def said(item):
    return item.prompt().messages()[0]["content"][-1]["text"]


def test_the_four_stages_are_asked_as_released(tmp_path):
    items = {item.id: item for item in made(tmp_path, [vlind_entry(0)]).questions()}
    parts = ["a1", "a2", "b1", "b2", "c1", "c2", "d1/2", "d2/2", "d1/5", "d2/5"]
    assert list(items) == [f"100/{part}" for part in parts]
    assert {item.unit for item in items.values()} == {"100"} and {i.gold for i in items.values()} == {"True", "False"}
    only = "Only respond in True or False."
    whether = "is the given statement true or false?"
    forget = "Forget real-world common sense and just follow the information provided in the"
    odd, usual = "Statement: The cat is red.", "Statement: The cat is green."
    told = "Context: All things like a cat are red."
    assert said(items["100/a1"]) == f"{usual}\nBased on the common sense, {whether} {only}"
    assert said(items["100/a2"]) == f"{odd}\nBased on the common sense, {whether} {only}"
    assert said(items["100/b1"]) == f"Statement: There is cat in the given image.\nBased on the image, {whether} {only}"
    assert said(items["100/b2"]) == f"Statement: There is bus in the given image.\nBased on the image, {whether} {only}"
    assert said(items["100/c1"]) == f"{told}\n{odd}\nBased on the context, {whether} {forget} context. {only}"
    assert said(items["100/d2/5"]) == f"{usual}\nBased on the image, {whether} {forget} image. {only}"
    assert [items[f"100/{part}"].images[0].parts[-4] for part in ("a1", "b1", "d1/2")] == [
        *("factual", "counterfactual", "counterfactual"),
    ]
    assert [items[f"100/{part}"].images[0].name for part in ("a1", "b1", "d1/5")] == ["0.jpg", "2.jpg", "5.jpg"]
    turned = {item.id: item for item in made(tmp_path, [vlind_entry(0)], reversed=True).questions()}
    assert said(turned["100/a1"]) == f"{only}\n{usual}\nBased on common sense, {whether}"
    assert said(turned["100/c2"]) == f"{only}\n{told}\n{usual}\nBased on the context, {whether}"


def test_pictures_are_those_that_people_found_good_and_of_the_style(tmp_path):
    def pictures(**more):
        return [item.id.rpartition("/")[2] for item in made(tmp_path, **more).questions() if "/d1/" in item.id]

    assert pictures() == ["2", "5"] * 3 and pictures(votes=3) == ["2"] * 3
    assert pictures(style="illustration") == ["5"] * 3 and pictures(votes=1, style="photorealistic") == ["0", "2"] * 3
    with pytest.raises(UserError, match="no question in split cartoon"):
        pictures(style="cartoon")


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: drawn["style"])
def test_scores_are_those_of_the_released_script(drawn, tmp_path):
    """score_pipeline.py of klee972/VLind-Bench at 62bf96e, run on drawn answers."""
    votes = "aggregated_human_label_good_images"
    entries = [vlind_entry(i, concept=c, **{votes: good}) for i, (c, good, _) in enumerate(drawn["entries"])]
    written(tmp_path / "data.json", entries)
    bench = read_node("benchmark", {"type": "vlind_bench", "root": str(tmp_path), "style": drawn["style"]}).make()
    told = {f"{100 + i}/{part}": text for i, (_, _, of) in enumerate(drawn["entries"]) for part, text in of.items()}
    records = [
        {**bench.record(item, told[item.id]), "text": told[item.id], "prompt_digest": ""} for item in bench.questions()
    ]
    total = bench.rows(records, draws=0)[0]
    assert total["metrics"] == pytest.approx(drawn["scores"]) and total["main"] == "s_lp"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"global_id": 100}, "global_id 100 stands in"),
        ({"aggregated_human_label_good_images": ["2"]}, "fields with names should be"),
        ({"aggregated_human_label_good_images": {"2": "many"}}, "'2' should be a whole number"),
        ({"true_statement": ""}, "'true_statement' should be a text"),
        ({"non-existent_noun": None}, "'non-existent_noun' should be a text, and is None"),
        ({"best_img_id": None}, "'best_img_id' should be a name or a number"),
    ],
)
def test_a_damaged_instance_is_told_with_its_place(tmp_path, change, told):
    vlind_bench(tmp_path)
    written(tmp_path / "data.json", [vlind_entry(0), vlind_entry(1, **change)])
    with pytest.raises(UserError, match=f"data.json:2.*{told}"):
        read_node("benchmark", {"type": "vlind_bench", "root": str(tmp_path)}).make().questions()


def test_what_is_missing_is_told_with_where_it_is_had(tmp_path):
    with pytest.raises(UserError, match="klee972/VLind-Bench"):
        read_node("benchmark", {"type": "vlind_bench", "root": str(tmp_path / "none")}).make().questions()
    written(tmp_path / "data.json", {"rows": []})
    with pytest.raises(UserError, match="holds no list of entries"):
        read_node("benchmark", {"type": "vlind_bench", "root": str(tmp_path)}).make().questions()

"""Several data files as one source, each sample as often as its file's weight says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from factory.corpus.mixed import MixedFiles
from factory.corpus.source import ConversationFile
from factory.errors import UserError
from factory.recipe import loads
from factory.run.pipeline import run
from factory.run.plan.plan import plan
from factory.run.tuners.held_out import learnt_and_held
from factory.run.tuners.opening import digest_of, open_source
from tests.tiny import saved_tiny


def write(folder: Path, name: str, n: int) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"{name}{i}", "query": f"What is {i}?" + " more" * i, "response": f"{name} {i}"}
        | ({"query": "<image>What?", "image": f"{i}.png"} if i % 2 else {})
        for i in range(n)
    ]
    for i in range(1, n, 2):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    write(root / "a", "a", 10)
    write(root / "b", "b", 4)
    saved_tiny(root / "model")
    return root


def source(root: Path, name: str) -> ConversationFile:
    path = root / name / f"{name}.jsonl"
    return ConversationFile(path, path.parent, root / "index")


@settings(max_examples=25, deadline=None)
@given(weights=st.tuples(st.floats(0.2, 3.5), st.floats(0.3, 3.5)), seed=st.integers(0, 5))
def test_each_sample_is_there_as_often_as_its_weight_says(project, weights, seed):
    parts = [source(project, "a"), source(project, "b")]
    mixed = MixedFiles(parts, weights, None, seed)
    counts = Counter(mixed.name(i) for i in range(len(mixed)))
    for part, weight in zip(parts, weights, strict=True):
        own = [counts[part.name(i)] for i in range(len(part))]
        assert set(own) <= {int(weight), int(weight) + 1}
        assert sum(own) == int(weight) * len(part) + round((weight - int(weight)) * len(part))
    lengths = mixed.lengths(7)
    for i in range(len(mixed)):
        sample, images = mixed[i], len(mixed[i].prompt.images)
        assert sample.id == mixed.name(i)
        assert lengths[i] == sum(len(s.text) for s in sample.prompt.segments) + 7 * images
    assert all(
        (mixed.of[i] == mixed.of[j]) == (mixed.name(i) == mixed.name(j)) for i in range(len(mixed)) for j in (0, 1)
    )


def recipe(root: Path, runs: str, mix: list[dict], **changes):
    spec = {
        "name": "r",
        "model": {"path": str(root / "model")},
        "run": {"root": str(root / runs)},
        "report": {"plots": False},
        "tune": {"tuner": {"type": "lora", "rank": 2}, "data": {"mix": mix}, "batch_size": 4, "steps": 2, **changes},
    }
    return loads(json.dumps(spec), path=root / f"{runs}.yaml")


def of(name: str, **more) -> dict:
    return {"path": f"{name}/{name}.jsonl", **more}


def test_a_mix_is_trained_on_and_each_file_is_audited(project, capsys):
    mixed = recipe(project, "mixed", [of("a"), of("b", weight=2)], micro_batch=2)
    plan(mixed)
    assert "data: 18 samples" in capsys.readouterr().out
    run(mixed)
    told = capsys.readouterr().out
    assert told.count("rows") >= 2 and "a.jsonl" in told and "b.jsonl" in told and "18 samples" in told
    with pytest.raises(UserError, match="a training with other values is there"):
        run(recipe(project, "mixed", [of("a"), of("b", weight=3)], micro_batch=2))


def test_what_is_shown_twice_is_held_out_of_both(project):
    held = recipe(project, "held", [of("a"), of("b", weight=2.5)], held_out={"share": 0.4})
    opened = open_source(held, held.tune.data, 4, None, quiet=True)
    learnt, out = learnt_and_held(held.tune, opened)
    names = lambda numbers: {opened.name(i) for i in numbers}
    assert not names(learnt) & names(out) and len(names(out)) == len(out) == round(0.4 * 14)
    assert names(learnt) | names(out) == names(range(len(opened)))


def test_another_weight_and_another_content_are_another_source(project):
    digests = set()
    for mix in ([of("a"), of("b")], [of("a"), of("b", weight=2)], [of("b"), of("a")], [of("a")]):
        made = recipe(project, "digest", mix)
        digests.add(digest_of(open_source(made, made.tune.data, 4, None, quiet=True)))
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"mix": [{"path": "nowhere.json"}]}, r"tune.data.mix.0.path 'nowhere.json': no such file"),
        ({"mix": [of("b", weight=0.01)]}, "tune.data.mix.0.weight: 0.01 of 4 samples is none of them"),
        ({"mix": [], "path": None}, "tune.data.mix"),
        ({"mix": [of("a")], "path": "a/a.jsonl"}, "needs one of path, mix, hub, photos and lessons"),
        ({"mix": [of("a")], "images": "a"}, "tune.data.images: with mix each file names the folder"),
        ({"mix": [of("a", wieght=1)]}, "tune.data.mix.0.wieght: unknown key"),
    ],
)
def test_what_is_wrong_with_a_mix_is_told_with_its_place(project, data, why):
    text: dict = {
        "name": "r",
        "model": {"path": str(project / "model")},
        "run": {"root": str(project / "wrong")},
        "report": {"plots": False},
    }
    for do in (plan, run):
        with pytest.raises(UserError, match=why):
            do(
                loads(
                    json.dumps(text | {"tune": {"tuner": "mores", "data": data, "steps": 1}}), path=project / "w.yaml"
                )
            )

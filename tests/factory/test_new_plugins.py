"""What ``new-plugin`` writes, for every kind there is: sound as it stands, clean, and used as it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from factory import cli, registry
from factory.model.load import load
from factory.recipe import load as read_recipe
from factory.recipe.schema import ModelSpec
from factory.registry import KINDS, load_plugins, lookup
from factory.steer import Steering, Where, artefact
from tests.compose import TEXT, VIT, composed, encoder, llm
from tests.tiny import conflict_prompts, saved_tiny, tiny_view
from tests.tiny_families import BUILDERS

ROOT = Path(__file__).parents[2]
NAMES = {kind: f"written_{kind}" for kind in KINDS}
TINY = """
from tests.tiny_families import BUILDERS

BUILDERS["written_family"] = BUILDERS["structural"]  # ViP-LLaVA
"""
CONTRACT = ("steering", "diagnostics", "tuners", "families")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder with a file of every kind, all of them loaded; what was told of each lies beside it."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        from factory.new_plugin import write_plugin

        for kind, name in NAMES.items():
            (folder / f"{name}.told").write_text(write_plugin(kind, name, folder))
            load_plugins([f"{name}.py"])
        yield folder
    for kind, name in NAMES.items():
        registry.forget(kind, name)


def program(*words: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *map(str, words)], check=False, cwd=ROOT, text=True, **options)


def test_they_are_formatted_and_clean(written):
    for check in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = program("ruff", *check, "--config", ROOT / "pyproject.toml", written, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_they_pass_the_contract_suite_as_they_stand(written):
    (written / "written_tiny.py").write_text(TINY)
    info = written / "written-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: written\nVersion: 1.0\n")
    points = "".join(f"{name} = {name}\n" for name in NAMES.values())
    (info / "entry_points.txt").write_text(f"[steering_factory.plugins]\n{points}")
    report, env = written / "report.xml", {**os.environ, "PYTHONPATH": os.pathsep.join([str(written), str(ROOT)])}
    tests = [f"tests/contract/test_{name}.py" for name in CONTRACT]
    options = ["-q", "-p", "no:cacheprovider", "-p", "written_tiny", "-k", "written_ and not mcr"]
    done = program("pytest", *options, f"--junitxml={report}", *tests, env=env, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case.get("name") for case in ElementTree.parse(report).iter("testcase")]
    for kind in ("steering", "diagnostic", "tuner", "family"):
        assert sum(NAMES[kind] in name for name in cases) > 4, kind


def said_of_recipe(written: Path, kind: str) -> str:
    """The lines for a recipe that were printed for a kind."""
    told = (written / f"{NAMES[kind]}.told").read_text()
    first, second = re.findall(r"^(?:in a recipe:  | {14}) (\S.*)$", told, re.MULTILINE)[:2]
    return f"{first}\n{second}\n"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("scorer", "command", "converter", "format")])
def test_the_lines_for_a_recipe_are_a_recipes(written, tmp_path, kind):
    said = said_of_recipe(written, kind)
    parts = {
        "vision_encoder": "{type: clip, config: {}}",
        "connector": "linear",
        "llm": "{type: llama, config: {}}",
    }
    for key, node in parts.items():
        said = said.replace(f"{key}: …", f"{key}: {node}")
    beside = {
        "steering": "model: {zoo: tiny}\ndata: scenes\n",
        "diagnostic": "model: {zoo: tiny}\ndata: scenes\nsteering: [static]\n",
        "tuner": "model: {zoo: tiny}\n",
        "benchmark": "model: {zoo: tiny}\nsteering: [static]\n",
        "report": "model: {zoo: tiny}\ndata: scenes\nsteering: [static]\n",
    }.get(kind, "data: scenes\nsteering: [static]\n")
    (tmp_path / "said.yaml").write_text(f"name: said\n{said}{beside}")
    recipe = read_recipe(tmp_path / "said.yaml")
    assert NAMES[kind] in json.dumps(recipe.model_dump(mode="json"))


def test_a_method_a_diagnostic_and_a_benchmark_make_a_run_and_a_command_reads_it(written, tmp_path, capsys):
    model, kinds = saved_tiny(tmp_path / "model"), ("benchmark", "steering", "diagnostic", "report", "command")
    recipe = tmp_path / "written.yaml"
    files = ", ".join(f"{written / NAMES[kind]}.py" for kind in kinds)
    recipe.write_text(
        f"name: written\nmodel: {{path: {model}, layer: 1}}\nplugins: [{files}]\n"
        f"data: {NAMES['benchmark']}\ndiagnostic: {NAMES['diagnostic']}\nsteering: [{NAMES['steering']}]\n"
        "evaluate: {controls: [], strengths: [1], max_new_tokens: 2}\n"
        f"report: {{plots: false, also: [{NAMES['report']}]}}\n"
        f"run: {{root: {tmp_path / 'runs'}}}\n"
    )
    assert cli.main([str(recipe), "--limit", "4"]) == 0
    capsys.readouterr()
    (run,) = (tmp_path / "runs").iterdir()
    told = (run / "report" / f"{NAMES['report']}.txt").read_text()
    chosen = [
        r for r in json.loads((run / "results.json").read_text())["rows"] if r["task"] == "all" and r.get("chosen")
    ]
    assert [line.split()[1] for line in told.splitlines()] == [r["method"] for r in chosen] and len(chosen) > 2
    assert (run / "report" / "index.html").is_file()
    assert cli.main([f"{written / NAMES['command']}.py", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [
        f"{r['method']} {r['direction']} {r['metrics']['follow']:.1%} of {r['n']}"
        for r in json.loads((run / "results.json").read_text())["rows"]
        if r["split"] == "test" and r["task"] == "all" and r.get("chosen")
    ]
    assert [" ".join(line.split()) for line in lines] == rows and any(NAMES["steering"] in row for row in rows)


def test_its_samples_are_conflicts_drawn_again_alike(written):
    cls = lookup("benchmark", NAMES["benchmark"])
    splits = {split: cls(cls.Params()).samples(split) for split in ("train", "dev", "test")}
    samples = [s for each in splits.values() for s in each]
    assert len({s.id for s in samples}) == len(samples) == 180
    for s in samples:
        assert s.answer_vision != s.answer_text and s.answer_text in s.context and s.answer_vision not in s.context
    again = cls(cls.Params()).samples("dev")
    assert [s.load_image().tobytes() for s in again[:5]] == [s.load_image().tobytes() for s in splits["dev"][:5]]
    assert not {s.context.replace(s.answer_text, "") for s in splits["train"]} & {
        s.context.replace(s.answer_text, "") for s in splits["test"]
    }


@pytest.mark.parametrize("kind", ["vision_encoder", "connector", "llm"])
def test_a_model_is_composed_with_each_part(written, kind):
    parts = {
        "vision_encoder": {"type": NAMES["vision_encoder"], "config": VIT} if kind == "vision_encoder" else encoder(),
        "connector": NAMES["connector"] if kind == "connector" else "linear",
        "llm": {"type": NAMES["llm"], "config": TEXT} if kind == "llm" else llm(),
    }
    view = composed(parts["vision_encoder"], parts["connector"], parts["llm"])
    prompts = conflict_prompts(2)
    batch = view.encode(prompts)
    tokens = 4 if kind == "connector" else 16
    assert (batch.input_ids == view.image_token_id).sum(-1).tolist() == [tokens, tokens]
    with torch.no_grad():
        seen = view.model(**batch).logits[:, -1]
        blind = view.model(**{**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}).logits[:, -1]
    assert torch.isfinite(seen).all() and not torch.allclose(seen, blind)


def test_the_connector_takes_means_of_neighbours(written):
    from factory.components.connect import Widths

    cls = lookup("connector", NAMES["connector"])
    built = cls(cls.Params()).build(Widths([3], [16], 5))
    features = torch.randn(2, 16, 3)
    token = features[:, [2, 3, 6, 7]].mean(1)  # the upper right of a grid of four by four
    assert torch.allclose(built([features])[:, 1], built.map(token), atol=1e-6)


def test_the_language_model_writes_a_conversation_as_it_knows_it(written):
    from jinja2 import Template

    text = lambda role, words: {"role": role, "content": [{"type": "text", "text": words}]}
    turns = [text("system", "Be brief."), text("user", "Hi"), text("assistant", "Hello"), text("user", "Why?")]
    said = Template(lookup("llm", NAMES["llm"]).template).render(messages=turns, bos_token="<s>", eos_token="</s>")
    assert said == "<s>[INST] Be brief.\n\nHi [/INST] Hello</s>[INST] Why? [/INST]"


def test_the_converter_is_run_from_its_file(written, tmp_path, capsys):
    item = {"id": 7, "image": "7.png", "question": "What is it?", "answer": "a cat"}
    (tmp_path / "train.json").write_text(json.dumps([item]))
    out = tmp_path / "out.jsonl"
    assert cli.main(["convert", f"{written / NAMES['converter']}.py", str(tmp_path), str(out)]) == 0
    asked, answered = json.loads(out.read_text())["conversations"]
    assert asked["value"].startswith("<image>\nWhat is it?\n") and answered["value"] == "a cat"
    assert cli.main(["convert", f"{written / NAMES['converter']}.py", str(tmp_path / "no"), str(out)]) == 2
    assert "not found" in capsys.readouterr().err


def test_the_format_is_written_and_read_from_its_file(written, tmp_path, capsys):
    model, vector = saved_tiny(tmp_path / "model"), torch.randn(48, generator=torch.Generator().manual_seed(0))
    static = lookup("steering", "static")
    kept, form = tmp_path / "kept", str(written / f"{NAMES['format']}.py")
    artefact.save(kept, Steering(static(static.Params()), {"v": vector}, Where(layer=1), 1.5), tiny_view())
    out = tmp_path / "vector.txt"
    assert cli.main(["export", str(kept), str(out), form, "--model", str(model)]) == 0
    assert f"their-tool --vector {out}" in capsys.readouterr().out
    assert out.read_text().split() == [repr(number) for number in (1, 1.5, *vector.tolist())]
    assert cli.main(["import", str(out), str(tmp_path / "back"), form, "--model", str(model)]) == 0
    again = artefact.load(tmp_path / "back" / "block-1", tiny_view())
    assert torch.equal(again.state["v"], vector) and (again.where.layer, again.strength) == (1, 1.5)
    out.write_text("1 1.5 many\n")
    assert cli.main(["import", str(out), str(tmp_path / "no"), form, "--model", str(model)]) == 2
    assert f"{out}:1: not a line of numbers" in capsys.readouterr().err


def test_the_scorer_scores(written):
    score = lookup("scorer", NAMES["scorer"]).score
    found = score({"a": "A red box.", "b": "no"}, {"a": ["the red box", "a red ball, a red box"], "b": ["yes"]})
    assert found == {"F1": pytest.approx((2 * 3 / 9 + 0) / 2)}


def test_the_family_loads_its_model(written, tmp_path):
    model, processor = BUILDERS["structural"]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    view = load(ModelSpec(path=str(tmp_path), device="cpu"))
    assert view.family.name == NAMES["family"]
    assert torch.isfinite(view.model(**view.encode(conflict_prompts(2))).logits).all()

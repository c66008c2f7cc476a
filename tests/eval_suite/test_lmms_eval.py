"""lmms-eval through a stand-in package: what is asked of it, what is believed of it, and the model class it is
given.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from types import SimpleNamespace

import pytest
from PIL import Image

from factory.errors import UserError
from factory.recipe.schema import ModelSpec
from factory.registry import lookup
from factory.run.questions.harness import Job
from factory.steer import Steering, artefact
from factory.steer.where import Where
from tests.tiny import saved_tiny

MAIN = """
import json, os, sys
from pathlib import Path

args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
Path(os.environ["SEEN"]).write_text(json.dumps(sys.argv[1:]))
if os.environ["DOES"] == "works":
    out = Path(args["--output_path"], "model")
    out.mkdir(parents=True, exist_ok=True)
    results = {"toy": {"alias": "toy", "exact_match,none": 0.25, "exact_match_stderr,none": 0.1}}
    asked = {"doc_hash": "d", "input": "what?", "target": "red", "filtered_resps": "blue"}
    samples = [{"doc_id": str(i), **asked, "exact_match": str(float(i == 2))} for i in range(4)]
    (out / "x_samples_toy.jsonl").write_text("\\n".join(map(json.dumps, samples)) + "\\n")
    counted = {"toy": {"original": 8, "effective": 4}}
    (out / "x_results.json").write_text(json.dumps({"results": results, "versions": {"toy": 1}, "n-samples": counted}))
else:
    print("Error during evaluation: no such dataset", file=sys.stderr)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package lmms_eval that notes its arguments and always exits with 0, as the real one does."""
    site = tmp_path / "site"
    (site / "lmms_eval").mkdir(parents=True)
    (site / "lmms_eval" / "__init__.py").write_text("")
    (site / "lmms_eval" / "__main__.py").write_text(MAIN)
    (site / "lmms_eval-0.7.3.dist-info").mkdir()
    (site / "lmms_eval-0.7.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lmms-eval\nVersion: 0.7.3\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    monkeypatch.setenv("DOES", "works")
    return tmp_path


def static(strength=3.0):
    import torch

    cls = lookup("steering", "static")
    return Steering(
        cls(cls.Params()), {"v": torch.randn(48, generator=torch.Generator().manual_seed(0))}, Where(layer=1), strength
    )


def harness(stand_in, steering=None):
    from factory.model.load import load

    spec = ModelSpec(path=str(saved_tiny(stand_in / "model")))
    cls = lookup("benchmark", "lmms_eval")
    return cls(cls.Params(tasks=("toy",))).harness(Job(load(spec), spec, steering, stand_in / "stage", 4, 0))


def test_results_are_read_from_its_file(stand_in):
    (result,) = harness(stand_in, static())
    assert (
        result["metrics"] == {"exact_match": 0.25}
        and result["n"] == 4
        and result["protocol"] == "lmms-eval/0.7.3/toy/v1"
    )
    assert result["ci"]["exact_match"] == pytest.approx([0.0456, 0.6994], abs=1e-3), "Wilson's, of one right of four"
    assert [(r["sample"], r["value"]) for r in result["records"]] == [("0", 0.0), ("1", 0.0), ("2", 1.0), ("3", 0.0)]
    seen = json.loads((stand_in / "seen.json").read_text())
    assert seen[seen.index("--tasks") + 1] == "toy" and seen[seen.index("--limit") + 1] == "4"
    assert f"artefact={stand_in / 'stage' / 'artefact'}" in seen[seen.index("--model_args") + 1]
    assert (stand_in / "stage" / "artefact" / artefact.MANIFEST).is_file()


def test_exit_code_zero_without_a_result_is_a_failure(stand_in, monkeypatch):
    harness(stand_in)
    monkeypatch.setenv("DOES", "fails")  # an older results file is there and must not be taken for this run's
    with pytest.raises(UserError, match="no result for toy .its exit code was 0.: .*no such dataset"):
        harness(stand_in)


def test_an_environment_without_it_is_told(monkeypatch):
    cls = lookup("benchmark", "lmms_eval")
    with pytest.raises(UserError, match="has no lmms-eval"):
        cls(cls.Params(tasks=("toy",), python="/nowhere/python"))


@pytest.fixture
def bridge(monkeypatch):
    """The bridge's module over a stand-in base class."""
    api = types.ModuleType("lmms_eval.api.model")
    api.lmms = type("lmms", (), {"__init__": lambda self: setattr(self, "task_dict", {})})
    for name, module in (
        ("lmms_eval", types.ModuleType("lmms_eval")),
        ("lmms_eval.api", types.ModuleType("lmms_eval.api")),
        ("lmms_eval.api.model", api),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "eval_suite.bridges.lmms_model", raising=False)
    yield importlib.import_module("eval_suite.bridges.lmms_model")
    sys.modules.pop("eval_suite.bridges.lmms_model", None)


def requests(n, **settings):
    def messages(doc):
        content = [
            {"type": "image", "url": Image.new("RGB", (30, 30), "red")},
            {"type": "text", "text": f"what colour is object {doc}?"},
        ]
        return [{"role": "user", "content": content}]

    return [
        SimpleNamespace(
            args=("", messages, {"max_new_tokens": 3 + i % 2, "until": ["\n"], **settings}, i, "toy", "test")
        )
        for i in range(n)
    ]


def test_the_model_class_answers_every_request_in_order_and_steered(bridge, tmp_path):
    folder = str(saved_tiny(tmp_path / "model"))
    plain, batched = (
        bridge.SteeringFactory(folder, device="cpu"),
        bridge.SteeringFactory(folder, device="cpu", batch_size=3),
    )
    artefact.save(tmp_path / "a", static(40.0), plain.view)
    artefact.save(tmp_path / "zero", static(0.0), plain.view)
    steered, zero = (
        bridge.SteeringFactory(folder, artefact=str(tmp_path / name), device="cpu", batch_size=2)
        for name in ("a", "zero")
    )
    for model in (plain, batched, steered, zero):
        model.task_dict = {"toy": {"test": list(range(5))}}
    answers = plain.generate_until(requests(5))
    assert len(answers) == 5 and batched.generate_until(requests(5)) == answers == zero.generate_until(requests(5))
    assert steered.generate_until(requests(5)) != answers


def test_sampling_is_refused(bridge, tmp_path):
    model = bridge.SteeringFactory(str(saved_tiny(tmp_path / "model")), device="cpu")
    with pytest.raises(ValueError, match="greedily"):
        model.generate_until(requests(1, temperature=0.7))

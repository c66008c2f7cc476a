"""What `import factory` offers: each name in a fresh process, the example as printed, each result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from textwrap import dedent

import pytest
import torch

import factory
from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.prefix import prefill
from factory.registry import lookup
from factory.steer import Steering, artefact
from tests.tiny import conflict_prompts, saved_tiny

OURS = ("factory", "plugins", "eval_suite")


def imported_anew(code: str) -> None:
    """Run ``code`` in a process that has the libraries, whose import takes seconds, and nothing of this project."""
    out, to = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
                del sys.modules[name]
            exec(dedent(code), {"__name__": "__main__"})  # noqa: S102
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked child must never return into pytest
            os.write(to, traceback.format_exc()[-4000:].encode())
            os._exit(1)
    os.close(to)
    with os.fdopen(out) as told:
        said = told.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return factory.load(saved_tiny(tmp_path_factory.mktemp("model")))


def test_every_name_is_there_before_and_after_all_subpackages_are_imported():
    code = """
    import pkgutil, factory
    names = factory.__all__
    first = {name: getattr(factory, name) for name in names}
    for found in pkgutil.walk_packages(factory.__path__, "factory."):
        if found.ispkg:
            __import__(found.name)
    assert {name: getattr(factory, name) for name in names} == first
    assert not {module.name for module in pkgutil.iter_modules(factory.__path__)} & set(names)
    assert all(callable(value) for value in first.values())
    """
    after = """
    import pkgutil, factory
    for found in pkgutil.walk_packages(factory.__path__, "factory."):
        if found.ispkg:
            __import__(found.name)
    assert all(callable(getattr(factory, name)) and name in dir(factory) for name in factory.__all__)
    """
    for each in (code, after):
        imported_anew(each)


def test_the_import_alone_brings_no_library():
    code = "import sys, factory; print([m for m in ('torch', 'transformers', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.strip() == "[]"


def test_the_example_runs_as_printed():
    example = re.search(r"    import factory\n.*?(?=\n\n\w)", factory.__doc__, re.DOTALL).group()
    imported_anew(dedent(example) + "\nassert turned.shape == (8, 2, view.width), turned.shape")


def test_what_another_package_of_that_name_would_offer_is_told():
    with pytest.raises(AttributeError, match="factory_boy's, and this `factory` is Steering Factory's"):
        factory.Faker  # noqa: B018


@pytest.mark.parametrize(("name", "said"), [("tinny", "Did you mean tiny"), ("./gone", "no folder")])
def test_a_model_that_is_not_there_is_one_line(name, said):
    with pytest.raises(UserError, match=said):
        factory.load(name)


def test_states_are_the_blocks_outputs_at_the_place_asked_for(view):
    prompts = conflict_prompts(3)
    batch = view.encode(prompts)
    seen = []
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in view.layers]
    with torch.no_grad():
        prefill(view, batch)
    for handle in handles:
        handle.remove()
    last = factory.states(view, prompts)
    image = factory.states(view, prompts, 1, "image", batch_size=2)
    for i in range(3):
        kept = batch.attention_mask[i].bool()
        rows = torch.stack([out[i][kept] for out in seen])
        assert torch.allclose(last[i], rows[:, -1], atol=1e-5)
        assert torch.allclose(image[i, 0], rows[1][batch.roles[i][kept] == Role.IMAGE].mean(0), atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "positions", "said"), [([9], "last", "decoder blocks 0 to"), (0, "lats", "Did you mean last")]
)
def test_states_of_what_is_not_there_are_refused(view, layers, positions, said):
    with pytest.raises(UserError, match=said):
        factory.states(view, conflict_prompts(1), layers, positions)


def test_a_vector_fitted_on_own_prompts_is_their_mean_difference(view):
    prompts = conflict_prompts(4)
    fitted = factory.fit(view, "static", prompts, "text", layer=1)
    wording = {d: factory.data.instructions.instruction("amps_eq9", d) for d in ("vision", "text")}
    to, fro = (factory.states(view, [p.append(wording[d]) for p in prompts], 1)[:, 0] for d in ("text", "vision"))
    assert torch.allclose(fitted.state["v"], (to - fro).mean(0), atol=1e-4)


@pytest.mark.parametrize("method", ["pixel", {"type": "dsas", "of": "pixel"}])
def test_tails_are_collected_for_methods_that_read_them(view, method, monkeypatch):
    fits, fit = [], lookup("steering", "pixel").fit
    monkeypatch.setattr(lookup("steering", "pixel"), "fit", lambda self, s: fits.append(s) or fit(self, s))
    scenes = {"type": "scenes", "per_task": {"train": 1, "dev": 1, "test": 1}}
    factory.fit(view, method, scenes, layer=1)
    assert all(tail.shape == fits[0].base.shape and not torch.equal(tail, fits[0].base) for tail in fits[0].tails)


def test_a_fitted_vector_steers_alike_in_hand_and_as_an_artefact(view, tmp_path):
    prompts = conflict_prompts(2)
    fitted = factory.fit(view, "static", prompts, layer=1)
    folder = artefact.save(tmp_path / "kept", fitted, view)
    plain = factory.states(view, prompts, 1)
    with factory.steered(view, fitted, strength=2.0):
        held = factory.states(view, prompts, 1)
    with factory.steered(view, str(folder), strength=2.0):
        kept = factory.states(view, prompts, 1)
    assert torch.allclose(held, plain + 2 * fitted.state["v"], atol=1e-4)
    assert torch.equal(held, kept)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("instruction", "nothing to fit"),
        ("amps", "chooses among beta="),
        ({"type": "dose", "of": "static"}, "give a benchmark as data"),
    ],
)
def test_a_method_that_cannot_be_fitted_so_says_why(view, method, said):
    with pytest.raises(UserError, match=said):
        factory.fit(view, method, conflict_prompts(2))


SCENES = {"type": "scenes", "per_task": {"train": 1, "dev": 1, "test": 1}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda view: factory.fit(view, "ampss", conflict_prompts(1)), "Did you mean amps"),
        (lambda view: factory.fit(view, {"type": "l2s", "nett": 1}, SCENES), "'l2s': nett: .* Did you mean net"),
        (lambda view: factory.fit(view, "static", "scens"), "Did you mean scenes"),
        (lambda view: factory.fit(view, "static", {**SCENES, "per_tas": 1}), "Did you mean per_task"),
        (lambda view: factory.fit(view, "static", SCENES, diagnostic="mcrr"), "Did you mean mcr"),
        (lambda view: factory.fit(view, "static", SCENES, diagnostic={"type": "mcr", "drews": 1}), "draws"),
        (lambda view: factory.fit(view, "static", SCENES, "visoin"), "Did you mean vision"),
        (lambda view: factory.fit(view, "static", SCENES, layer=-1), "collect.layer: should be greater"),
        (lambda view: factory.fit(view, "static", conflict_prompts(1), layer=99), "decoder blocks 0 to"),
        (lambda view: factory.fit(view, "static", []), "no prompts"),
        (lambda view: factory.states(view, "scens"), "Did you mean scenes"),
        (lambda view: factory.states(view, {**SCENES, "sead": 1}), "Did you mean seed"),
        (lambda view: factory.states(view, []), "no prompts"),
        (lambda view: factory.load("tiny", dtyp="float32"), "Did you mean dtype"),
    ],
)
def test_what_a_recipe_would_refuse_is_refused_in_one_line(view, asked, said):
    with pytest.raises(UserError, match=said) as refused:
        asked(view)
    assert "\n" not in str(refused.value)


def test_a_run_is_read_back(tmp_path, view):
    recipe = tmp_path / "small.yaml"
    saved_tiny(tmp_path / "model")
    recipe.write_text(
        f"name: small\nmodel: {{path: {tmp_path / 'model'}, layer: 1}}\n"
        "data: {type: scenes, scoring: open_ended, per_task: {train: 1, dev: 1, test: 1}}\n"
        "steering: [none, static]\nevaluate: {controls: [], strengths: [1], directions: [vision], max_new_tokens: 2}\n"
        f"run: {{root: {tmp_path / 'runs'}}}\nreport: {{plots: false}}\n"
    )
    done = factory.run_recipe(recipe, "seed=3")
    again = factory.read(tmp_path / "runs" / "small")
    assert done.results == again.results
    assert {row["method"] for row in done.rows} >= {"none", "static"}
    assert {p["method"] for p in again.predictions} >= {"none", "static"}
    [sample] = again.samples[:1]
    assert set(sample["answers"]) == {"none-vision", "static-vision"} == set(sample["outcomes"])
    assert (
        sample["question"] in again.predictions[0]["asked"][0] and sample["context"] in again.predictions[0]["asked"][0]
    )
    assert again.report.is_file() and list(again.artefacts) == ["static-vision"]
    assert isinstance(artefact.load(again.artefacts["static-vision"], view), Steering)


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        factory.read(tmp_path)
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(UserError, match="not the results of a run"):
        factory.read(tmp_path)


def test_a_question_of_ones_own_is_a_prompt(view):
    prompt = Prompt((Segment(Role.QUESTION, "What is it?"),))
    assert factory.states(view, [prompt]).shape == (1, view.depth, view.width)

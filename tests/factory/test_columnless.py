"""Models in some of whose blocks not every token is a column: what works gives what whole forwards of transformers
give, and what cannot is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from factory.data.prompt import Prompt, Role
from factory.diagnose import Diagnostic
from factory.errors import UserError
from factory.model.prefix import extend, prefill
from factory.model.view import ModelView
from factory.new_plugin import write_plugin
from factory.recipe import loads
from factory.registry import load_plugins, lookup
from factory.run.pipeline import run
from factory.steer.logits import contrasted
from tests.anchor import scenes_bench
from tests.contract import cases
from tests.contract.cases import Case, close, recompute, steering
from tests.tiny import mixed_prompts
from tests.tiny_families import SEEING, family_view

COLUMNLESS = sorted(name for name in SEEING if lookup("family", name).columnless)
RUNNING = [name for name in COLUMNLESS if family_view(name).running]
WHY = r"keeps? (one|a) running state|enter by cross-attention"
HEADS = Case("heads", cases.SPECIAL["heads"])  # it steers those of a block with attention
WORKING = [HEADS] + [
    case for case in cases.steerer_cases(with_options=True) if not (made := cases.make(case)).needs_columns(made.params)
]


@pytest.fixture(params=COLUMNLESS)
def view(request) -> ModelView:
    return family_view(request.param)


def alone(view: ModelView, prompt: Prompt) -> torch.Tensor:
    """Next-token logits [1, vocabulary] of a prompt by the model's own forward."""
    with torch.no_grad():
        return view.model(**view.encode([prompt])).logits[:, -1].float()


@pytest.mark.parametrize("name", RUNNING)
def test_padding_between_tokens_would_count_and_is_refused(name):
    """Without the refusal a right-padded prompt would be gone on with wrongly."""
    view, prompts = family_view(name), mixed_prompts()
    ids = torch.full((len(prompts), 1), 7)
    roles = ids * 0 + int(Role.ANSWER)
    for side in ("left", "right"):
        with torch.no_grad():
            _, prefix = prefill(view, view.encode(prompts, side))
            hidden, _ = extend(view, replace(prefix, padded=False).fork(), ids, ids * 0 + 1, roles)
        whole = [view.encode([prompt]) for prompt in prompts]
        with torch.no_grad():
            own = [
                view.model(
                    **{**each, **{k: torch.nn.functional.pad(v, (0, 1)) for k, v in each.of_tokens.items()}}
                    | {"input_ids": torch.cat([each.input_ids, ids[:1]], 1)}
                    | {"attention_mask": torch.nn.functional.pad(each.attention_mask, (0, 1), value=1)}
                ).logits[0, -1]
                for each in whole
            ]
        assert prefix.padded == (side == "right")
        assert close(view.logits(hidden[:, -1]), torch.stack(own).float(), 1e-4) == (side == "left")
    with pytest.raises(UserError, match="keeps a running state, in which padding between tokens would count"):
        extend(view, prefix, ids, ids * 0 + 1, roles)
    with torch.no_grad():
        _, prefix = prefill(view, view.encode(prompts))
        pair, mask = ids.repeat(1, 2), torch.ones(len(prompts), 2, dtype=torch.long)
        mask[0, 0] = 0
    with pytest.raises(UserError, match="run rows that go on by unlike lengths apart"):
        extend(view, prefix, pair, mask, pair * 0 + int(Role.ANSWER))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("case", WORKING, ids=str)
def test_steering_is_what_recomputing_gives(view, case, layer):
    """In a batch, of prompts of unlike lengths, cached, on a block of either kind."""
    if case == HEADS and layer in view.running:
        with pytest.raises(UserError, match="block 0 keeps a running state and has no attention; take one of 1"):
            cases.logits(view, mixed_prompts()[:1], steering(case, layer))
        return
    prompts = mixed_prompts()
    batch = view.encode(prompts)
    with torch.no_grad():
        plain = view.model(**batch).logits
    with torch.no_grad(), cases.steer(view, steering(case, layer, 0.0)):
        assert torch.equal(view.model(**batch).logits, plain)
    with torch.no_grad(), cases.steer(view, steering(case, layer)):
        out = view.model.generate(
            **batch,
            do_sample=False,
            min_new_tokens=3,
            max_new_tokens=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
    moved = []
    for i, prompt in enumerate(prompts[:2]):
        found = torch.stack([step[i] for step in out.logits])
        assert close(found, recompute(view, prompt, out.sequences[i, -3:], [steering(case, layer)]), 1e-4)
        moved.append(float((found - recompute(view, prompt, out.sequences[i, -3:], [])).abs().max()))
    assert max(moved) > 1e-2


def test_a_diagnostic_of_ones_own_that_is_given_the_end_of_a_prompt_needs_columns(tmp_path):
    """As a new one from the template is."""
    write_plugin("diagnostic", "toy_columns", tmp_path)
    load_plugins([str(tmp_path / "toy_columns.py")])
    cls = lookup("diagnostic", "toy_columns")
    assert cls.needs_columns(cls.Params())


def test_diagnostics_measure_or_are_refused_by_name(view):
    """What says that it needs columns is refused wherever it is asked, and nothing else is."""
    bench, samples = scenes_bench(view)
    refused = set()
    for name, cls in cases.classes("diagnostic").items():
        if cls.of_tuners or name == "influence":
            continue
        diagnostic = cls(cls.Params(**cases.SMALL.get(name, {})))
        try:
            if cls.on_samples is Diagnostic.on_samples:
                diagnostic.measure(view, view.encode(mixed_prompts()[:2]), "ab")
            else:
                diagnostic.on_samples(bench, samples[:2])
        except UserError as error:
            assert cls.needs_columns(diagnostic.params), (name, error)
            assert re.search(WHY, str(error)) and "\n" not in str(error)
            refused.add(name)
        else:
            # regret reads nothing where no first answer counts
            assert not cls.needs_columns(diagnostic.params) or name == "regret", name
    assert {"mcr", "knockout", "heads", "circuit", "iaf"} <= refused and "relative_uncertainty" not in refused


def test_decoding_methods_contrast_or_are_refused_by_name(view):
    prompts = mixed_prompts()[:2]
    own = [text for prompt in prompts for text in contrasted(view, *_logits("vcd"), [prompt], "vision", [0.0], 3)[0]]
    assert contrasted(view, *_logits("vcd"), prompts, "vision", [0.0], 3)[0] == own
    assert contrasted(view, *_logits("vcd"), prompts, "vision", [3.0], 3)[0] == [
        text for prompt in prompts for text in contrasted(view, *_logits("vcd"), [prompt], "vision", [3.0], 3)[0]
    ]
    for name, direction in (("dleaf", "vision"), ("causalmm", "text")):
        with pytest.raises(UserError, match=WHY):
            contrasted(view, *_logits(name), prompts, direction, [1.0], 3)


def _logits(name: str) -> tuple:
    cls = lookup("steering", name)
    return (cls(cls.Params()),)


RECIPE = """\
name: whole
model: {{path: {model}, device: cpu}}
data: {{type: scenes, scoring: {scoring}, per_task: {{train: 2, dev: 1, test: 1}}}}
collect: {{layer: {layer}}}
{rest}
evaluate: {{controls: [], strengths: [1, 8], max_new_tokens: 3}}
report: {{plots: false}}
run: {{root: {runs}}}
"""
REFUSED = {
    "mcr": "diagnostic: mcr\nsteering: [amps]",
    "knockout": "diagnostics: [knockout]\nsteering: [none]",
    "dose": "steering: [{type: dose, alone: last}]",
    "dleaf": "steering: [dleaf]",
    "causalmm": "steering: [causalmm]",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, str]:
    folders = {name: tmp_path_factory.mktemp(name) for name in COLUMNLESS}
    for name, folder in folders.items():
        family_view(name).model.save_pretrained(folder)
        family_view(name).processor.save_pretrained(folder)
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", COLUMNLESS)
@pytest.mark.parametrize("what", REFUSED)
def test_a_recipe_that_needs_columns_is_refused_in_one_line_before_anything_is_read(saved, name, what, tmp_path):
    recipe = RECIPE.format(model=saved[name], scoring="open_ended", layer=1, rest=REFUSED[what], runs=tmp_path / "runs")
    with pytest.raises(UserError, match=f"'{what}' needs every token in every block, and of .*({WHY})") as error:
        run(loads(recipe))
    assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()

"""What looks inside a model that reads text alone, against whole runs of its prompts one by one."""

from __future__ import annotations

import pytest
import torch

from eval_suite.benchmarks.scenes import Scenes
from factory.bench import Bench
from factory.data.prompt import Prompt, Role
from factory.data.sample import ConflictSample
from factory.errors import UserError
from factory.instruments.answers import Dictionary, DictionaryParams
from factory.instruments.instructed import InstructedParams, ask_and_look, instructed
from factory.instruments.silence import silenced
from factory.registry import lookup
from plugins.diagnostics.heads import head_margins, knockout_map
from plugins.diagnostics.knockout import effects
from plugins.diagnostics.logit_lens import beliefs
from tests.anchor import role_sets, slow_forward
from tests.plugins.test_knockout import slow_nssd
from tests.plugins.test_readouts import Slow
from tests.tiny_families import family_view
from tests.tiny_texts import TEXTS

SCALED = ("gemma2", "gemma3_text")  # they scale what attention and MLP add
PATHWAYS = ("context->instruction", "instruction->generated")


class Told(Scenes):
    """Scenes without their pictures."""

    pictured = False

    def prompt(self, sample: ConflictSample, form: str) -> Prompt:
        return super().prompt(sample, form).without(Role.IMAGE)


def told(name: str, n: int = 2) -> tuple[Bench, list[ConflictSample]]:
    params = {"scoring": "open_ended", "per_task": {"train": 1, "dev": 1, "test": 1}}
    benchmark = Told(Told.Params.model_validate(params))
    return Bench(family_view(name), benchmark, 1, 3), list(benchmark.samples("test"))[:n]


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in SCALED])
def test_lens_heads_and_cuts_of_text_models_equal_whole_runs(name):
    """Prompts of two lengths in one batch, each in the slow way alone."""
    bench, samples = told(name)
    view, k = bench.view, 3
    items, _ = instructed(bench, samples, InstructedParams(), Dictionary(view.tokenizer, DictionaryParams()))
    items = [items[0], items[-1]]  # of either direction
    asked, anchor = ask_and_look(bench, items)
    lens, margins = beliefs(view, asked, anchor, k), head_margins(view, asked, anchor, k)
    states, silence = silenced(view, asked.stem), knockout_map(view, asked)
    cut = effects(view, asked, PATHWAYS, 1).by_pathway
    for i, item in enumerate(items):
        slow, batch = Slow(view, item, k, "max"), view.encode([item.prompt])
        last, sets = batch.input_ids.shape[1] - 1, role_sets(batch, item.direction)
        before = view.logits(slow_forward(view, batch, lambda *_: False)[-1])
        changed = lambda h, item=item, before=before: slow_nssd(
            before, view.logits(h), item.answers.comply, item.answers.compete, "before_after"
        )
        source, target = (sets[role] for role in PATHWAYS[i].split("->"))
        for layer in range(view.depth):
            comply, compete = slow.f(slow.after[layer], slow.instruction)
            assert float(lens["f_comply"][layer, i]) == pytest.approx(comply, abs=1e-4)
            assert float(lens["f_compete"][layer, i]) == pytest.approx(compete, abs=1e-4)
            bias, h = getattr(view.o_proj(layer), "bias", None), slow.before[layer]
            o = slow.head(layer, 1) - (0 if bias is None else bias)
            assert float(margins[i, layer, 1]) == pytest.approx(slow.margin(h + o) - slow.margin(h), abs=1e-4)
            state = slow_forward(view, batch, lambda *_: False, {(layer, 1, last)})[-1]
            assert torch.allclose(states[i, layer, 1], state, atol=1e-5 * float(state.abs().max()))
            assert float(silence[i, layer, 1]) == pytest.approx(changed(state), abs=1e-5)
            severed = lambda at, q, key, layer=layer, s=source, t=target: at == layer and q in t and key in s
            expected = changed(slow_forward(view, batch, severed)[-1])
            assert float(cut[PATHWAYS[i]][0][i, layer]) == pytest.approx(expected, abs=1e-5)
    assert states.shape == (len(items), view.depth, view.heads, view.width) and float(silence.abs().max()) > 1e-6


@pytest.mark.parametrize("name", SCALED)
def test_models_that_scale_what_they_add_are_refused_by_name(name):
    bench, samples = told(name, 1)
    heads = lookup("diagnostic", "heads")
    with pytest.raises(UserError, match="Gemma[23]DecoderLayer changes what attention and MLP add"):
        heads(heads.Params()).on_samples(bench, samples)

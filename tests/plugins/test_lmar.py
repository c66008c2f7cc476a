"""LMAR against the attention maps of the eager model, and against its own definition."""

from __future__ import annotations

import math

import matplotlib.figure
import pytest
import torch

from factory.data.prompt import Role
from factory.model.prefix import prefill
from plugins.diagnostics.lmar import OTHERS, WORDS, Lmar, LmarParams
from tests.compose import composed, llm
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts, no_image, tiny_view


def measured(view, prompts, side="left", **options):
    rows = Lmar(LmarParams(**options)).measure(view, view.encode(prompts, side), [str(i) for i in range(len(prompts))])
    return {(int(r["sample"]), r["metric"], r["layer"]): r["value"] for r in rows}


def eager(view, prompt, roles_of_text, tokens=1):
    """LMAR by layer of one prompt, from the whole attention maps of prompt and greedy answer."""
    batch = view.encode([prompt])
    ids, n = batch.input_ids, batch.input_ids.shape[1]
    view.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            for _ in range(tokens):
                out = view.model(
                    **dict(batch) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                    output_attentions=True,
                    use_cache=False,
                )
                token = out.logits[:, -1].argmax(-1)
                if ids.shape[1] - n + 1 == tokens or token in view.eos_ids:
                    break
                ids = torch.cat([ids, token[:, None]], 1)
    finally:
        view.model.set_attn_implementation("sdpa")
    roles = batch.roles[0]
    image, text = roles == Role.IMAGE, torch.isin(roles, torch.tensor([int(r) for r in roles_of_text]))
    found = []
    for attention in out.attentions:
        rows = attention[0, :, n - 1 :, :n].mean((0, 1))
        found.append((float(rows[image].mean() / rows[text].mean()), float(rows[image].sum()), float(rows[text].sum())))
    return found


@pytest.mark.parametrize("text, roles", [("others", OTHERS), ("words", WORDS)])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_what_the_eager_attention_maps_say(text, roles, tokens, side):
    view = tiny_view(
        dtype=torch.float64
    )  # so that what differs is the method, and not the rounding of two attention kernels
    prompts = mixed_prompts()[:3]
    found = measured(view, prompts, side, text=text, tokens=tokens)
    for i, prompt in enumerate(prompts):
        for layer, expected in enumerate(eager(view, prompt, roles, tokens)):
            mine = [found[i, metric, layer] for metric in ("lmar", "attention_image", "attention_text")]
            assert mine == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_maps_of_the_written_answer_are_the_eager_rows_of_each_of_its_tokens():
    view = fresh_view()
    prompt, bins = conflict_prompts(1)[0], 4
    found = measured(view, [prompt], tokens=3, bins=bins)
    batch = view.encode([prompt])
    ids, roles, n = batch.input_ids, batch.roles[0], batch.input_ids.shape[1]
    image = (roles == Role.IMAGE).nonzero()[:, 0]
    stretches = (
        image.tensor_split(bins)
        if len(image) % bins == 0
        else pytest.fail("choose bins that divide the image's tokens")
    )
    view.model.set_attn_implementation("eager")
    tenth, on_top = -(-len(image) // 10), torch.zeros(view.depth)
    for step in range(3):
        with torch.no_grad():
            out = view.model(
                **dict(batch) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                output_attentions=True,
                use_cache=False,
            )
        for layer, attention in enumerate(out.attentions):
            row = attention[0, :, -1, :n].mean(0)
            on_top[layer] += row[image].sort().values[-tenth:].sum() / row[image].sum() / 3
            for j, stretch in enumerate(stretches):
                assert found[0, f"step_{step}_image_{j}", layer] == pytest.approx(float(row[stretch].mean()), rel=1e-4)
        ids = torch.cat([ids, out.logits[:, -1].argmax(-1)[:, None]], 1)
    assert [found[0, "image_top_tenth", i] for i in range(view.depth)] == pytest.approx(on_top.tolist(), rel=1e-4)


def test_it_holds_for_a_composed_model_too():
    view = composed(text=llm("phi"))
    prompt = conflict_prompts(1)[0]
    found = measured(view, [prompt])
    for layer, expected in enumerate(eager(view, prompt, OTHERS)):
        assert found[0, "lmar", layer] == pytest.approx(expected[0], rel=1e-5)


def test_attention_is_a_share_and_its_stretches_are_the_image():
    view = tiny_view()
    found = measured(view, mixed_prompts(), bins=4)
    for i in range(3):
        for layer in range(view.depth):
            assert found[i, "attention_image", layer] + found[i, "attention_text", layer] == pytest.approx(1, abs=1e-5)
            image = sum(found[i, f"attention_image_{j}", layer] for j in range(4)) * (4 if i < 2 else 8)
            assert image == pytest.approx(found[i, "attention_image", layer], abs=1e-5), (
                "16 image tokens an image in 4 stretches"
            )
    assert math.isnan(found[3, "lmar", 0]) and found[3, "attention_image", 0] == 0, "the last prompt has no image"


def test_no_attention_map_is_made():
    view, prompts = tiny_view(), conflict_prompts(2)
    batch = view.encode(prompts)
    T, largest = batch.input_ids.shape[1], []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.ndim == 4:
                    largest.append(tuple(tensor.shape))
            return out

    with Watch():
        Lmar(LmarParams()).measure(view, batch, ["a", "b"])
    maps = [shape for shape in largest if shape[-2:] == (T, T)]
    assert largest and all(shape[1] == 1 for shape in maps), "of that size there is the mask alone, which has no heads"


def test_prompts_that_lie_in_a_cache_give_the_same():
    view, prompts, diagnostic = tiny_view(), mixed_prompts(), Lmar(LmarParams(tokens=3))
    batch = view.encode(prompts, "right")
    with torch.no_grad():
        hidden, whole = prefill(view, batch)
    found = {
        (r["sample"], r["metric"], r["layer"]): r["value"]
        for r in diagnostic.on_whole(view, batch.input_ids, whole, hidden, list("abcd"))
    }
    for row in diagnostic.measure(view, batch, list("abcd")):
        assert found[row["sample"], row["metric"], row["layer"]] == pytest.approx(row["value"], abs=1e-5, nan_ok=True)


def draw(summary):
    for figure in summary.figures:
        canvas = matplotlib.figure.Figure(layout="constrained")
        figure.draw(canvas)
        assert canvas.axes


def test_models_side_by_side_keep_their_numbers_apart():
    view, diagnostic = tiny_view(), Lmar(LmarParams(tokens=2))
    rows = diagnostic.measure(view, view.encode(conflict_prompts(2)), ["a", "b"])
    doubled = [{**row, "value": 2 * row["value"] if row["metric"] == "lmar" else row["value"]} for row in rows]
    summary = diagnostic.beside({"none": rows, "mores": doubled}, {"mores": 100})
    none, mores = ([row[column] for row in summary.tables[1].rows] for column in (1, 2))
    assert mores == pytest.approx([2 * value for value in none]) and len(none) == view.depth
    assert [row[:2] for row in summary.tables[0].rows] == [("none", None), ("mores", 100)]
    assert summary.findings[0].values["mores"] == pytest.approx(2 * summary.findings[0].values["none"])
    draw(summary)
    alone = diagnostic.summary([{**row, "split": "test"} for row in rows])
    draw(alone)
    tops = [row[-1] for row in alone.tables[0].rows]
    assert alone.findings[1].values["layers_mostly_on_a_tenth"] == sum(top > 0.5 for top in tops)
    assert "lmar_steps" in {figure.name for figure in diagnostic.summary(rows).figures}
    assert diagnostic.beside({"none": []}, {}) is None


def test_its_summary_has_numbers_a_table_and_figures():
    view = tiny_view()
    prompts = [*conflict_prompts(3), no_image(conflict_prompts(1)[0])]
    diagnostic = Lmar(LmarParams())
    rows = [{**row, "split": "test"} for row in diagnostic.measure(view, view.encode(prompts), list("abcd"))]
    summary = diagnostic.summary(rows)
    found = measured(view, prompts[:3])
    by_layer = [sum(found[i, "lmar", layer] for i in range(3)) / 3 for layer in range(view.depth)]
    assert [row[1] for row in summary.tables[0].rows] == pytest.approx(by_layer, rel=1e-4)
    assert summary.findings[0].values["median_lmar"] == pytest.approx(sorted(by_layer)[1], rel=1e-4)
    alpha = [
        [sum(found[i, f"alpha_{m}", layer] for i in range(3)) for m in ("image", "text")] for layer in range(view.depth)
    ]
    assert [row[2] for row in summary.tables[0].rows] == pytest.approx(
        [image / text for image, text in alpha], rel=1e-4
    )
    draw(summary)
    assert diagnostic.summary([row for row in rows if row["sample"] == "d"]) is None

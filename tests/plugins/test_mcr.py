"""The batched diagnosis against Algorithm 1 written out, and what the metric must obey."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DynamicCache

from factory.data.prompt import USER_TEXT, Prompt, Role, Segment
from factory.data.sources import two_texts
from factory.diagnose import Query, hold_back
from factory.errors import UserError
from factory.model.families.llava import Llava
from factory.model.prefix import prefill
from factory.model.view import ModelView
from factory.registry import lookup
from plugins.diagnostics.mcr.perturb import noise_seed
from plugins.diagnostics.mcr.sigma import default_k_sigma
from tests.contract.cases import fresh_view
from tests.tiny import conflict_prompts, mixed_prompts, no_image, text_first, tiny_view, two_images
from tests.tiny_families import family_view

Mcr = lookup("diagnostic", "mcr")
K_SIGMA = 1.0  # AMPS, appendix A.1, of a LLaVA model, which the tiny one is
TEXT = {"user": set(USER_TEXT), "context_only": {Role.CONTEXT}, "all_non_image": set(Role) - {Role.PAD, Role.IMAGE}}


def run(
    view: ModelView, prompts: list[Prompt], keys: str | list[str] | None = None, side: str = "left", **params
) -> dict[str, dict[str, float]]:
    """Metrics by key."""
    keys = list(keys or "abcdefgh"[: len(prompts)])
    found: dict[str, dict[str, float]] = {}
    for row in Mcr(Mcr.Params(**params)).measure(view, view.encode(prompts, side), keys):
        assert row["layer"] is None and row["head"] is None
        found.setdefault(row["sample"], {})[row["metric"]] = row["value"]
    return found


def written_out(
    view: ModelView, prompt: Prompt, key: str, ranges: tuple[set[Role], set[Role]] | None = None, **options
) -> dict[str, float]:
    """Algorithm 1 for one prompt: no batch, no padding, every gradient of its own forward on its own cache. ``ranges``
    are the roles of R[V] and R[T], where these are not the image's and the text's.
    """
    p = Mcr.Params(**options)
    published = K_SIGMA if view.family.name in ("llava", "steering_factory_composed") else 0.1  # AMPS, appendix A.1
    batch = view.encode([prompt])
    roles, T = batch.roles[0].tolist(), batch.input_ids.shape[1]
    cut = (
        max(i for i, r in enumerate(roles) if r == Role.QUESTION and roles[i - 1] != r)
        if p.query_tokens == "question_suffix"
        else T - 1
    )
    ids = batch.input_ids

    def tail(cache: DynamicCache, ids: torch.Tensor) -> torch.Tensor:
        further = torch.arange(1, ids.shape[1] - T + 1) + batch.position_ids.max()
        at = torch.cat([batch.position_ids[..., cut:], further.expand(*batch.position_ids.shape[:-1], -1)], -1)
        return (
            view.model(input_ids=ids[:, cut:], position_ids=at, past_key_values=cache, use_cache=True).logits[0].float()
        )

    def kv(cache: DynamicCache) -> list[list[torch.Tensor]]:
        return [[layer.keys, layer.values] for layer in cache.layers]

    def restore(tensors: list[list[torch.Tensor]]) -> DynamicCache:
        cache = DynamicCache()
        for index, (k, v) in enumerate(tensors):
            cache.update(k, v, index)
        return cache

    with torch.no_grad():
        past = kv(view.model(**batch, past_key_values=DynamicCache(), use_cache=True).past_key_values)
        past = [[x[:, :, :cut] for x in layer] for layer in past]
        if p.query_tokens == "first_k_generated":
            for _ in range(p.first_k - 1):
                token = tail(restore(past), ids)[-1].argmax()
                if token in view.eos_ids:
                    break
                ids = torch.cat([ids, token.view(1, 1)], -1)
        P_x = tail(restore(past), ids).softmax(-1)
    seen, read = ranges or ({Role.IMAGE}, TEXT[p.text_tokens])
    R = {"V": [i for i in range(cut) if roles[i] in seen], "T": [i for i in range(cut) if roles[i] in read]}
    places = [
        (at, j)
        for at in (range(view.depth) if p.layers == "all" else p.layers)
        for j in {"both": (0, 1), "k": (0,), "v": (1,)}[p.kv]
    ]
    scope = {"layer_slice": None, "layer_all": range(cut), "global": range(cut)}[p.sigma_scope]
    C: dict[str, float] = {}
    for m, tokens in R.items():
        over = list(scope) if scope is not None else sorted(R["V"] + R["T"]) if p.sigma_shared else tokens
        n, C[m] = (len(tokens) if p.grad_scope == "slice" else cut), 0.0
        for i in range(p.draws if tokens else 0):
            z, sigma = [[x.clone() for x in layer] for layer in past], {}
            for at, j in places:
                spread = (
                    torch.cat([x.flatten() for layer in past for x in layer])
                    if p.sigma_scope == "global"
                    else past[at][j][:, :, over]
                )
                sigma[at, j] = (published if p.k_sigma is None else p.k_sigma) * float(spread.double().std())
                g = torch.Generator().manual_seed(noise_seed(p.seed, key, m, at, "KV"[j]))
                heads, d = z[at][j].shape[1], z[at][j].shape[3]
                z[at][j][:, :, tokens] += sigma[at, j] * torch.randn(heads, p.draws, len(tokens), d, generator=g)[:, i]
            leaves = [z[at][j].requires_grad_() for at, j in places]
            P_z = tail(restore(z), ids).softmax(-1)
            f = {
                "ce_xz": lambda a, b: -(a * b.log()).sum(-1),
                "ce_zx": lambda a, b: -(b * a.log()).sum(-1),
                "kl_xz": lambda a, b: (a * (a / b).log()).sum(-1),
            }
            f = f[p.divergence](P_x, P_z).mean()
            total = 0.0
            for place, grad in zip(places, torch.autograd.grad(f, leaves), strict=True):
                part = grad[:, :, tokens] if p.grad_scope == "slice" else grad
                total += float(part.double().square().sum()) * (
                    sigma[place] ** 2 / 2 if p.sobolev_factor == "sigma2_half" else 1
                )
            C[m] += total / max(float(f.detach()), p.eps) / p.draws / (n if p.reduce == "mean_per_token" else 1)
    return {"C_V": C["V"], "C_T": C["T"], "R_V": C["V"] / (C["V"] + C["T"])}


OPTIONS = [
    {},
    {"divergence": "ce_zx"},
    {"divergence": "kl_xz"},
    {"grad_scope": "all"},
    {"grad_scope": "all", "reduce": "mean_per_token"},
    {"layers": (0, 2)},
    {"kv": "k"},
    {"kv": "v"},
    {"reduce": "mean_per_token"},
    {"draws": 1},
    {"draws": 4},
    {"k_sigma": 0.3},
    {"sigma_scope": "layer_all"},
    {"sigma_scope": "global"},
    {"sigma_shared": True},
    {"sobolev_factor": "sigma2_half"},
    {"query_tokens": "question_suffix"},
    {"query_tokens": "first_k_generated", "first_k": 3},
    {"query_tokens": "first_k_generated", "first_k": 1},
    {"text_tokens": "context_only"},
    {"text_tokens": "all_non_image"},
    {"eps": 100.0},
    {"seed": 7},
    {"row_chunk": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()) or "defaults")
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_equals_algorithm_1_written_out(options, side):
    view, prompts = tiny_view(dtype=torch.float64), mixed_prompts()[:3]
    found = run(view, prompts, side=side, **options)
    for key, prompt in zip("abc", prompts, strict=True):
        for metric, value in written_out(view, prompt, key, **options).items():
            assert found[key][metric] == pytest.approx(value, rel=1e-5), (key, metric)


MEMO = two_texts("memo", "email")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_of_two_texts_each_ones_own_tokens_are_perturbed(name):
    view, asked = family_view(name), Segment(Role.QUESTION, "What color is the box?")
    contexts = [("Memo: The box is red.", "Email: It is blue, they say."), ("Memo: Blue.", "Email: A red one.")]
    prompts = [Prompt((Segment(Role.CONTEXT_A, one), Segment(Role.CONTEXT, two), asked), MEMO) for one, two in contexts]
    options = {"k_sigma": 0.5, "draws": 2}
    rows = Mcr(Mcr.Params(**options)).between(MEMO).measure(view, view.encode(prompts), ["a", "b"])
    found = {(row["sample"], row["metric"]): row["value"] for row in rows}
    for key, prompt in zip("ab", prompts, strict=True):
        wanted = written_out(view, prompt, key, ({Role.CONTEXT_A}, {Role.CONTEXT}), **options)
        assert found[key, "C_A"] == pytest.approx(wanted["C_V"], rel=1e-4)
        assert found[key, "C_B"] == pytest.approx(wanted["C_T"], rel=1e-4)
        assert found[key, "R_A"] == pytest.approx(wanted["R_V"], abs=1e-5)
        assert found[key, "R_A"] + found[key, "R_B"] == 1
    assert not [metric for _, metric in found if metric.startswith(("R_V", "C_V"))]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 48), (6, 1, 60)])
def test_other_attention_geometries(heads, kv_heads, width):
    view, (prompt,) = tiny_view(heads=heads, kv_heads=kv_heads, width=width, dtype=torch.float64), conflict_prompts(1)
    for options in ({}, {"query_tokens": "question_suffix"}):
        expected = written_out(view, prompt, "a", **options)
        assert run(view, [prompt], **options)["a"]["R_V"] == pytest.approx(expected["R_V"], rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 7, 13])
def test_chunks_order_and_neighbours_do_not_matter(chunk):
    view, prompts = tiny_view(dtype=torch.float64), mixed_prompts()
    whole = run(view, prompts, "abcd")
    backwards = run(view, prompts[::-1], "dcba", row_chunk=chunk)
    alone = run(view, prompts[1:2], "b", side="right")
    for key in "abcd":
        assert backwards[key] == pytest.approx(whole[key], rel=1e-5)
    assert alone["b"] == pytest.approx(whole["b"], rel=1e-5)


def test_ratios_add_up_and_every_reduction_is_reported():
    for reduce in ("sum", "mean_per_token"):
        for metrics in run(tiny_view(), mixed_prompts(), reduce=reduce).values():
            assert metrics["R_V"] + metrics["R_T"] == pytest.approx(1)
            assert metrics["R_V"] == metrics[f"R_V_{reduce}"]
            assert 0 <= metrics["R_V"] <= 1
    assert metrics["R_V_sum"] == metrics["R_V_mean_per_token"] == 0  # the last has no image


def test_the_same_seed_gives_the_same_bytes_and_another_seed_or_key_does_not():
    view, prompts = tiny_view(), conflict_prompts(2)
    assert run(view, prompts) == run(view, prompts)
    assert run(view, prompts)["a"]["R_V"] != run(view, prompts, seed=1)["a"]["R_V"]
    assert run(view, prompts, "ab")["a"]["R_V"] != run(view, prompts, "xb")["x"]["R_V"]


def test_the_callers_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    run(tiny_view(), conflict_prompts(1))
    assert torch.equal(before, torch.get_rng_state())


def test_the_noise_is_the_recipes_else_the_cards_else_the_familys():
    view, prompts = fresh_view(), conflict_prompts(1)
    of_family = run(view, prompts)
    assert of_family == run(view, prompts, k_sigma=K_SIGMA)
    view.defaults = {"mcr": {"k_sigma": 0.3}, "lmar": {"k_sigma": 0.2}}
    assert run(view, prompts) == run(view, prompts, k_sigma=0.3) != of_family
    assert run(view, prompts, k_sigma=K_SIGMA) == of_family
    derived = type("Derived", (Llava,), {"name": "derived"})()
    assert default_k_sigma(ModelView(view.model, view.processor, derived)) == K_SIGMA
    view.family, view.defaults = lookup("family", "qwen2_vl")(), {}
    assert default_k_sigma(view) == 0.1


@pytest.mark.parametrize(
    ("params", "rows"), [({}, 4 + 12), ({"draws": 5}, 4 + 20), ({"row_chunk": 6}, 4 + 3), ({"row_chunk": 99}, 4 + 12)]
)
def test_the_plan_is_told_of_the_noise_that_waits_for_the_backward_pass(params, rows):
    assert Mcr(Mcr.Params(**params)).rows_held(4) == rows


def test_small_noise_scales_ce_by_its_square_and_leaves_kl():
    view, prompts = tiny_view(dtype=torch.float64), conflict_prompts(2)
    small, double = (run(view, prompts, k_sigma=k) for k in (0.002, 0.004))
    kl_small, kl_double = (run(view, prompts, k_sigma=k, divergence="kl_xz", eps=1e-12) for k in (0.002, 0.004))
    for key in "ab":
        for metric in ("C_V", "C_T"):
            assert double[key][metric] / small[key][metric] == pytest.approx(4, rel=0.1)
            assert kl_double[key][metric] / kl_small[key][metric] == pytest.approx(1, rel=0.1)


def test_prompts_that_lack_a_modality():
    view, (prompt,) = tiny_view(), conflict_prompts(1)
    bare = prompt.without(*USER_TEXT)
    for divergence in ("ce_xz", "ce_zx"):
        for scope in ("slice", "all"):
            found = run(
                view,
                [no_image(prompt), bare, prompt],
                divergence=divergence,
                grad_scope=scope,
                sobolev_factor="sigma2_half",
            )
            assert found["a"]["C_V"] == 0 and found["a"]["R_V"] == 0 and found["a"]["R_T"] == 1
            assert found["b"]["C_T"] == 0 and found["b"]["R_V"] == 1
            assert 0 < found["c"]["R_V"] < 1
    neither = run(view, [Prompt((Segment(Role.INSTRUCTION, "Answer from the image."),))])["a"]
    assert neither["C_V"] == neither["C_T"] == 0 and math.isnan(neither["R_V"])
    assert run(view, [no_image(prompt)])["a"]["R_V"] == 0


def test_a_shared_prefix_gives_what_whole_prompts_give_and_stays_as_it_is():
    view, prompts = tiny_view(), mixed_prompts()
    batch, diagnostic = view.encode(prompts), Mcr(Mcr.Params())
    with torch.no_grad():
        hidden, whole = prefill(view, batch)
        prefix, query, hidden = hold_back(view, batch.input_ids, hidden, whole, diagnostic.queried(whole, "abcd"))
    before = [(layer.keys, layer.keys.clone()) for layer in prefix.cache.layers]
    whole = diagnostic.measure(view, batch, "abcd")
    for given in (hidden, None):
        rows = diagnostic.on_prefix(view, prefix, query, "abcd", given)
        assert [r["value"] for r in rows] == pytest.approx([r["value"] for r in whole], rel=1e-4)
    assert all(
        layer.keys is k and torch.equal(k, copy) for layer, (k, copy) in zip(prefix.cache.layers, before, strict=True)
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_any_gradient_mode_and_no_gradient_left(mode):
    view, prompts = tiny_view(), conflict_prompts(1)
    expected = run(view, prompts)
    for weight in view.model.parameters():
        weight.requires_grad_(True)
    try:
        with mode():
            assert run(view, prompts) == expected
        assert all(weight.grad is None for weight in view.model.parameters())
    finally:
        view.model.requires_grad_(False)


def test_a_failure_in_mid_pass_leaves_the_model_usable():
    view, prompts = tiny_view(), conflict_prompts(2)
    expected, config = run(view, prompts), view.text_config._attn_implementation
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:  # the first forward is the prefill
            raise RuntimeError("out of memory")

    hook = view.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(view, prompts)
    hook.remove()
    assert view.text_config._attn_implementation == config and view.step is None
    assert run(view, prompts) == expected


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.02)])
def test_half_precision_is_near_single_precision(dtype, tolerance):
    prompts = conflict_prompts(3)
    exact, half = run(tiny_view(spread=1.5), prompts), run(tiny_view(spread=1.5, dtype=dtype), prompts)
    for key in exact:
        assert half[key]["R_V"] == pytest.approx(exact[key]["R_V"], abs=tolerance)


def test_mistakes_are_told():
    view, prompts = tiny_view(), conflict_prompts(2)
    with pytest.raises(UserError, match="layers 0 to 2, not 3"):
        run(view, prompts, layers=(0, 3))
    with pytest.raises(UserError, match="'b' has an image after its last question"):
        late = Prompt((*no_image(prompts[1]).segments, prompts[1].segments[0]))
        run(view, [prompts[0], late], query_tokens="question_suffix")
    with pytest.raises(UserError, match="'a' has no question"):
        run(view, [prompts[0].without(Role.QUESTION)], query_tokens="question_suffix")
    batch, diagnostic = view.encode(prompts), Mcr(Mcr.Params(query_tokens="question_suffix"))
    with torch.no_grad():
        held = hold_back(view, batch.input_ids, *prefill(view, batch), batch.mask(Role.OPTIONS))
    with pytest.raises(UserError, match="ends before the question"):
        diagnostic.on_prefix(view, *held[:2], "ab")
    with pytest.raises(ValueError, match="different keys"):
        run(view, prompts, ["a", "a"])


def test_held_back_tokens_are_padded_right_and_leave_the_prefix():
    view, prompts = tiny_view(), [text_first(conflict_prompts(1)[0]), two_images(*conflict_prompts(2))]
    batch = view.encode(prompts)
    queried = batch.mask(Role.OPTIONS)
    with torch.no_grad():
        prefix, query, hidden = hold_back(view, batch.input_ids, *prefill(view, batch), queried)
    assert isinstance(query, Query)
    assert (
        query.mask.sum(-1).tolist() == queried.sum(-1).tolist() == (batch.attention_mask - prefix.mask).sum(-1).tolist()
    )
    for row, keep in enumerate(queried):
        n = int(keep.sum())
        assert query.ids[row, :n].tolist() == batch.input_ids[row, keep].tolist() and (query.mask[row, n:] == 0).all()
    assert hidden.shape[:2] == query.ids.shape and not (prefix.roles == Role.OPTIONS).any()

"""The steering runtime on a toy method with a known vector: strengths, controllers, places, refusals, gradients."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from fractions import Fraction

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from factory.errors import UserError
from factory.model.prefix import Step, at_last, extend, greedy, prefill
from factory.model.view import ModelView
from factory.registry import Params
from factory.steer import Context, Steerer, Steering, Where, steer
from tests.contract.cases import close, fresh_view
from tests.tiny import conflict_prompts, mixed_prompts, tiny_view

V = torch.linspace(-1, 1, 48)


class Push(Steerer):
    """Adds v to every chosen token and remembers what it was asked."""

    def __init__(self, reads: str = "last_prompt") -> None:
        super().__init__(Params())
        self.reads, self.seen, self.contexts = reads, [], []

    def delta(self, h, state, ctx: Context):
        self.seen.append(h.clone())
        self.contexts.append(ctx)
        return state["v"].expand_as(h)


class Gained(Push):
    """Controls its own strength by what it reads."""

    def gain(self, h, state, ctx):
        return 0.5 + 0.4 * torch.sin(h[:, 0])


def push(layer: int = 1, strength=1.0, method: Steerer | None = None, v: torch.Tensor = V, **where) -> Steering:
    return Steering(method or Push(), {"v": v}, Where(layer=layer, **where), strength)


def states(view, prompts, steerings, layer: int, side: str = "left"):
    """Output of a block [B, T, d] as the next block gets it, and the batch."""
    batch, seen = view.encode(prompts, side), []
    with torch.no_grad(), steer(view, steerings):
        handle = view.layers[layer].register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            prefill(view, batch)
        finally:
            handle.remove()
    return seen[0], batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_strength_times_vector_is_added_to_the_chosen_tokens(side):
    view = tiny_view()
    plain, batch = states(view, mixed_prompts(), [], 1, side)
    steered, _ = states(view, mixed_prompts(), push(strength=-2.5, role="context"), 1, side)
    expected = plain + Where(role="context").mask(batch.roles)[..., None] * -2.5 * V
    assert torch.allclose(steered, expected, atol=1e-6)


def test_the_vector_is_read_at_the_last_prompt_token():
    view = tiny_view()
    for side in ("left", "right"):
        method = Push()
        plain, batch = states(view, mixed_prompts(), [], 1, side)
        states(view, mixed_prompts(), push(method=method), 1, side)
        assert len(method.seen) == 1 and torch.equal(method.seen[0], at_last(plain, batch.attention_mask))


def test_a_per_token_method_is_given_each_chosen_token():
    view, method = tiny_view(), Push("per_token")
    plain, batch = states(view, mixed_prompts(), [], 1)
    states(view, mixed_prompts(), push(method=method, role="image"), 1)
    assert torch.equal(method.seen[-1], plain[Where(role="image").mask(batch.roles)])


def test_a_method_knows_its_layer_and_whether_it_generates():
    view, method = tiny_view(), Push("per_token")
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad(), steer(view, push(2, method=method)):
        view.model.generate(**batch, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    assert method.contexts == [Context(2, False), Context(2, True), Context(2, True)]
    assert [len(h) for h in method.seen] == [int(batch.attention_mask.sum()), 2, 2]


def test_generated_false_leaves_the_answer_alone():
    view, method = tiny_view(), Push("per_token")
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad(), steer(view, push(method=method, generated=False)):
        view.model.generate(**batch, min_new_tokens=3, max_new_tokens=3, do_sample=False)
    assert len(method.contexts) == 1


def test_a_controller_gives_each_row_its_strength():
    view, asked = tiny_view(), []

    def controller(h, ctx):
        asked.append((h.shape, ctx.layer, ctx.generated))
        return torch.tensor([0.0, 1.0, 2.0, -1.0])

    steered, _ = states(view, mixed_prompts(), push(strength=controller), 1)
    expected, _ = states(view, mixed_prompts(), push(strength=torch.tensor([0.0, 1.0, 2.0, -1.0])), 1)
    assert torch.equal(steered, expected) and asked == [((4, 48), 1, False)]


@pytest.mark.parametrize("made", [torch.ones(2, 1), torch.ones(3), None, float("nan"), [1.0, 1.0], "1"])
def test_what_a_controller_makes_is_a_number_or_one_per_prompt(made):
    view = tiny_view()
    with pytest.raises(UserError, match=r"controller should return a number or a tensor \[2\]"):
        states(view, conflict_prompts(2), push(strength=lambda h, ctx: made), 1)
    for fits in (2.0, torch.tensor(2.0), torch.tensor([2.0, 2.0])):
        steered, _ = states(view, conflict_prompts(2), push(strength=lambda h, ctx, fits=fits: fits), 1)
        assert torch.equal(steered, states(view, conflict_prompts(2), push(strength=Fraction(2)), 1)[0])


def test_gain_multiplies_the_strength_row_by_row():
    view = tiny_view()
    plain, batch = states(view, mixed_prompts(), [], 1)
    gain = 0.5 + 0.4 * torch.sin(at_last(plain, batch.attention_mask)[:, 0])
    assert len(set(gain.tolist())) == 4, "the prompts must differ"
    steered, _ = states(view, mixed_prompts(), push(strength=3.0, method=Gained()), 1)
    expected, _ = states(view, mixed_prompts(), push(strength=3.0 * gain), 1)
    assert torch.equal(steered, expected)


def test_infinite_vectors_at_strength_zero_do_no_harm():
    view = tiny_view()
    plain, _ = states(view, conflict_prompts(2), [], 1)
    steered, _ = states(view, conflict_prompts(2), push(strength=0.0, v=torch.full((48,), torch.nan)), 1)
    assert torch.equal(steered, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reads", ["last_prompt", "per_token"])
def test_strength_zero_keeps_every_bit_of_a_state(dtype, reads):
    h = torch.tensor([0.0, -0.0, 1e-7, -3e4, 1.0, float("inf")], dtype=dtype).repeat(2, 3, 8)
    for strength in (0.0, torch.zeros(2)):
        out = push(strength=strength, method=Push(reads), v=V).apply(h, Step(torch.ones(2, 3, dtype=torch.long)))
        assert out.dtype == dtype and torch.equal(out.view(torch.uint8), h.view(torch.uint8))


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
    ],
)
def test_generation_modes_run_steered(options):
    view = tiny_view()
    torch.manual_seed(0)
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad(), steer(view, push(strength=torch.tensor([0.5, 4.0]))):
        out = view.model.generate(**batch, max_new_tokens=3, **options)
    assert out.shape[0] == 2 * options.get("num_return_sequences", 1)


def test_one_forward_after_another_and_of_another_size():
    view, s = tiny_view(), push(strength=2.0)
    outs = []
    with torch.no_grad(), steer(view, s):
        for n in (1, 3, 1):
            batch = view.encode(conflict_prompts(n))
            outs.append(view.model(**batch).logits)
    assert torch.equal(outs[0], outs[2]) and outs[1].shape[0] == 3


@pytest.mark.parametrize(
    "strength",
    [float("nan"), float("inf"), torch.tensor([1.0, float("nan")]), "strong", None, True, [1.0, 2.0], 10**400],
)
def test_strengths_that_are_not_finite_numbers_are_refused(strength):
    with pytest.raises(UserError, match="not a finite number"), steer(tiny_view(), push(strength=strength)):
        pass


@pytest.mark.parametrize("strength", [torch.ones(3, 1), torch.ones(4, 1, 48), torch.ones(4, dtype=torch.bool)])
def test_strengths_of_another_shape_are_refused(strength):
    with pytest.raises(UserError, match=r"one number, or a tensor \[B\]"), steer(tiny_view(), push(strength=strength)):
        pass


def cast(dtype: torch.dtype) -> ModelView:
    shared = tiny_view()
    return ModelView(copy.deepcopy(shared.model).to(dtype), shared.processor, shared.family)


@pytest.mark.parametrize("dtype, strength", [(torch.float16, 1e5), (torch.float16, -3e4), (torch.float32, 3e38)])
@pytest.mark.parametrize("role", ["all", "context"])
def test_states_driven_out_of_a_dtype_are_told_at_the_end(dtype, strength, role):
    view = cast(dtype)
    batch = view.encode(conflict_prompts(2))
    told = rf"steering 'Push' at strength {strength:g} drives the model's states out of what {str(dtype)[6:]} can hold"
    with (
        pytest.raises(UserError, match=told.replace("+", r"\+")),
        steer(view, push(strength=strength, role=role, v=9 * V)),
    ):
        view.model.generate(**batch, max_new_tokens=2, do_sample=False)
    with steer(view, push(strength=1.0, role=role)):
        view.model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert not view.norm._forward_hooks


@pytest.mark.parametrize("layer", [None, 3, 99])
def test_layers_out_of_range_are_refused(layer):
    with pytest.raises(UserError, match="blocks 0 to 2"), steer(tiny_view(), push(layer)):
        pass


def test_a_number_of_strengths_that_fits_no_row_is_refused():
    view = tiny_view()
    batch = view.encode(conflict_prompts(4))
    with (
        pytest.raises(UserError, match="3 strengths do not fit 4 prompts"),
        torch.no_grad(),
        steer(view, push(strength=torch.ones(3))),
    ):
        view.model(**batch)


def test_half_as_many_strengths_as_prompts_are_refused():
    view = tiny_view()
    batch = view.encode(conflict_prompts(4))
    with pytest.raises(UserError), torch.no_grad(), steer(view, push(strength=torch.tensor([1.0, 2.0]))):
        view.model(**batch)


def test_a_strength_may_be_a_tensor_without_dimensions():
    view = tiny_view()
    expected, _ = states(view, conflict_prompts(2), push(strength=2.0), 1)
    steered, _ = states(view, conflict_prompts(2), push(strength=torch.tensor(2.0)), 1)
    assert torch.equal(steered, expected)


def test_tokens_of_unknown_roles_are_refused():
    view = tiny_view()
    batch = view.encode(conflict_prompts(2))
    with pytest.raises(UserError, match="view.encode"), torch.no_grad(), steer(view, push()):
        view.model(input_ids=batch.input_ids.flip(-1), attention_mask=batch.attention_mask)
    embeds = view.model.get_input_embeddings()(batch.input_ids)
    with pytest.raises(UserError, match="input_ids"), torch.no_grad(), steer(view, push()):
        view.model(inputs_embeds=embeds, attention_mask=batch.attention_mask)


def test_entering_in_the_middle_of_a_generation_is_refused():
    view = tiny_view()
    batch = view.encode(conflict_prompts(2))
    with torch.no_grad():
        hidden, prefix = prefill(view, batch)
        logits = view.logits(at_last(hidden, batch.attention_mask))
        with pytest.raises(UserError, match="before the prompt is run"), steer(view, push()):
            greedy(view, prefix, logits, 2)


def test_a_gradient_passes_from_the_logits_to_the_vector_and_to_the_strength():
    view, v, strength = tiny_view(), V.clone().requires_grad_(), torch.tensor([1.0, 0.5], requires_grad=True)
    batch = view.encode(conflict_prompts(2))

    def loss(v, strength):
        with steer(view, push(v=v, strength=strength)):
            return view.model(**batch).logits[:, -1].double().logsumexp(-1).sum()

    loss(v, strength).backward()
    eps, direction = 1e-2, torch.randn(48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        numeric = (loss(v + eps * direction, strength) - loss(v - eps * direction, strength)) / (2 * eps)
        at = torch.tensor([1.0, 0.0])
        of_strength = (loss(v, strength + eps * at) - loss(v, strength - eps * at)) / (2 * eps)
    assert float(v.grad @ direction) == pytest.approx(float(numeric), rel=5e-2, abs=5e-3)
    assert float(strength.grad[0]) == pytest.approx(float(of_strength), rel=5e-2, abs=5e-3)


def test_checkpointing_with_two_forwards_before_one_backward():
    view = fresh_view()
    first, second = conflict_prompts(2), conflict_prompts(4)[2:]

    def gradient() -> torch.Tensor:
        v = V.clone().requires_grad_()
        with steer(view, push(v=v, role="context")):
            losses = [
                view.model(**view.encode(p), use_cache=False).logits[:, -1].logsumexp(-1).sum() for p in (first, second)
            ]
            sum(losses).backward()
        return v.grad

    plain = gradient()
    view.model.train()
    view.model.activation_checkpointing_enable({"use_reentrant": False})
    assert close(gradient(), plain)


def test_a_prompt_in_two_pieces_reads_its_last_token_last():
    """Prefix and query, as collection and diagnosis run them: the answer is steered by the end of the prompt."""
    view, method = tiny_view(), Push()
    batch = view.encode(conflict_prompts(2))
    head = view.collate(
        [type(e)(e.ids[:-3], e.roles[:-3], "") for e in view.tokens(conflict_prompts(2), [["<image>" * 16]] * 2)],
        batch.images,
    )
    with torch.no_grad(), steer(view, push(method=method, role="none", generated=False)):
        _, prefix = prefill(view, head)
        extend(view, prefix, batch.input_ids[:, -3:], batch.attention_mask[:, -3:], batch.roles[:, -3:])
    plain, _ = states(view, conflict_prompts(2), [], 1)
    assert len(method.seen) == 2 and close(method.seen[-1], plain[:, -1])


def test_a_steering_that_is_used_again_knows_no_earlier_prompt():
    view, steering = tiny_view(), push(strength=4.0)
    first, second = conflict_prompts(2)

    def run(prompt, s) -> torch.Tensor:
        batch = view.encode([prompt])
        with torch.no_grad(), steer(view, s):
            return view.logits(prefill(view, batch)[0][:, -1])

    run(first, steering)
    assert steering.prompt is steering.vector is steering.gain is None, "no states are kept alive"
    _, prefix = prefill(view, view.encode([second]))
    one = torch.ones(1, 1, dtype=torch.long)
    with steer(view, steering), pytest.raises(UserError, match="in the middle of a generation"):
        extend(view, prefix, one, one, one * 8, generated=True)
    assert torch.equal(run(second, steering), run(second, push(strength=4.0)))
    with pytest.raises(ZeroDivisionError), steer(view, steering):
        prefill(view, view.encode([first]))
        raise ZeroDivisionError
    assert steering.prompt is None


class Kernels(TorchDispatchMode):
    """Counts the operations that reach a device, views of tensors among them."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_a_steered_token_costs_three_small_operations_more_than_a_bare_hooks_at_most():
    """Most of them say whether its state is finite: what is added is made once an answer, and the token's roles too."""
    view = tiny_view()
    batch = view.encode(conflict_prompts(2))

    def counted(steered: bool, tokens: int) -> int:
        @contextmanager
        def bare():
            add = view.layers[1].register_forward_hook(lambda module, args, output: output + V)
            yield
            add.remove()

        with torch.no_grad(), Kernels() as kernels, steer(view, push()) if steered else bare():
            view.model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return kernels.n

    ours, bare = (counted(steered, 8) - counted(steered, 4) for steered in (True, False))
    assert 0 <= ours - bare <= 4 * 3

"""Roles belong to the batch: equal ids, copies, threads, streamers, and what is refused by its name."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor

from factory.data.prompt import Prompt, Role, Segment
from factory.errors import UserError
from factory.model.encode import Batch
from factory.registry import lookup
from factory.steer import Steering, Where, steer
from factory.steer.artefact import save
from tests.factory.by_hand import bend
from tests.tiny import conflict_prompts, fresh_view, mixed_prompts, no_image, tiny_view


def greedy(view, batch: Batch, **options) -> list[list[int]]:
    out = view.model.generate(**{**batch, **options}, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    return out[:, batch.input_ids.shape[1] :].tolist()


def steered(view, batch: Batch, **where) -> list[list[int]]:
    with torch.no_grad(), steer(view, bend(**where)):
        return greedy(view, batch)


def twins(view) -> tuple[Batch, Batch]:
    """Two batches of the same ids, whose words are a context's and a question's."""
    texts = [Segment(role, "the ball is red and to the left") for role in (Role.CONTEXT, Role.QUESTION)]
    a, b = (view.encode([Prompt((text,))]) for text in texts)
    assert torch.equal(a.input_ids, b.input_ids) and not torch.equal(a.roles, b.roles)
    return a, b


def test_batches_encoded_ahead_and_with_equal_ids_keep_their_roles():
    view = tiny_view()
    a, b = twins(view)
    context = {"role": "context", "generated": False, "strength": 20.0}
    moved, left, plain = steered(view, a, **context), steered(view, b, **context), greedy(view, a)
    assert left == plain != moved
    with torch.no_grad(), steer(view, bend(**context)):
        for _ in range(2):
            assert (greedy(view, a), greedy(view, b)) == (moved, plain)
            logits = [view.model(**each).logits for each in (a, b)]
            assert not torch.equal(*logits)
        assert greedy(view, a.to(view.device, view.dtype)) == greedy(view, a.to("cpu")) == moved
    with pytest.raises(UserError, match="a batch is cut into no rows"):
        a[:1]


def test_a_copy_of_the_ids_is_known_where_it_can_be_one_of_a_single_batch():
    view = tiny_view()
    (prompt,) = conflict_prompts(1, seed=7)
    batch = view.encode([prompt])
    right = steered(view, batch)
    with torch.no_grad(), steer(view, bend()):
        assert greedy(view, batch, input_ids=batch["input_ids"].clone()) == right
        a, b = twins(view)
        of_a = a.input_ids.clone()
        with pytest.raises(UserError, match="copy, and 2 batches with other roles"):
            greedy(view, b, input_ids=of_a)
        del a
        gc.collect()  # what was raised holds it
        with pytest.raises(UserError, match="copy, and 2 batches with other roles"):
            greedy(view, b, input_ids=of_a)
        with pytest.raises(UserError, match="the very tensors of a batch of view.encode"):
            greedy(view, b, input_ids=b.input_ids.flip(-1))


def test_a_loop_of_ones_own_is_steered_and_a_turn_of_unknown_roles_is_refused():
    view, batch = tiny_view(), tiny_view().encode(conflict_prompts(1))
    right = steered(view, batch)[0]
    with torch.no_grad(), steer(view, bend()):
        out, said = view.model(**batch, use_cache=True), []
        for _ in range(6):
            said.append(int(out.logits[0, -1].argmax()))
            out = view.model(input_ids=torch.tensor([said[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        assert said == right
        with pytest.raises(UserError, match="follow a kept cache"):
            view.model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=out.past_key_values)


def test_an_answer_to_an_earlier_prompt_is_not_steered_as_that_of_the_last_one():
    view = tiny_view()
    first, second = (view.encode([prompt]) for prompt in conflict_prompts(2))
    with torch.no_grad(), steer(view, bend()):
        caches = [view.model(**batch, use_cache=True).past_key_values for batch in (first, second)]
        said = torch.tensor([[5]])
        view.model(input_ids=said, past_key_values=caches[1])
        for cache in (caches[0], copy.deepcopy(caches[0])):
            with pytest.raises(UserError, match="run a prompt's answer before the next prompt"):
                view.model(input_ids=said, past_key_values=cache)
        view.model(input_ids=said, past_key_values=copy.deepcopy(caches[1]))


def test_an_answer_on_a_cache_that_was_filled_outside_the_block_is_refused():
    view = tiny_view()
    first, second = (view.encode([prompt]) for prompt in conflict_prompts(2))
    more = view.encode([conflict_prompts(1)[0].append(Segment(Role.ANSWER, "It is red"))])
    with torch.no_grad():
        cache = view.model(**first, use_cache=True).past_key_values
        with steer(view, bend()):
            view.model(**second)
            for ids in (torch.tensor([[5]]), more.columns(first.input_ids.shape[1]).input_ids):
                with pytest.raises(UserError, match="run a prompt's answer before the next prompt"):
                    view.model(input_ids=ids, past_key_values=copy.deepcopy(cache))


class Gate:
    """A streamer that lets its generation go on only when it is told to."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def put(self, value) -> None:
        if value.numel() == 1:
            self.begun.set()
            assert self.open.wait(60)

    def end(self) -> None:
        pass


def test_a_thread_that_outlives_the_block_is_steered_to_its_end():
    view, batch, gate, said = fresh_view(), tiny_view().encode(conflict_prompts(1)), Gate(), []
    right, plain = steered(view, batch), greedy(view, batch)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())
    with steer(view, bend()):
        thread = threading.Thread(target=lambda run: said.append(run(view, batch, streamer=gate)), args=(greedy,))
        thread.start()
        assert gate.begun.wait(60)
    other = steered(view, batch, role="image")
    assert greedy(view, batch) == plain != right, "what begins after the block is not steered"
    gate.open.set()
    thread.join()
    assert said == [right] and other != right
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in view.model.modules())
    assert "generate" not in vars(view.model)


def test_a_generation_taken_inside_the_block_is_steered_when_it_begins_after_it():
    view, batch = fresh_view(), tiny_view().encode(conflict_prompts(1))
    with steer(view, bend()):
        taken = view.model.generate
    out = taken(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert out.tolist() == steered(view, batch) != greedy(view, batch)


def test_two_threads_have_a_batch_each():
    view = tiny_view()
    batches = [*twins(view), view.encode(conflict_prompts(3)), view.encode(conflict_prompts(2, seed=5))]
    right = [steered(view, batch, role="context") for batch in batches]
    found: dict[tuple[int, int], list] = {}
    gate = threading.Barrier(len(batches))

    def run(i: int) -> None:
        for n in range(3):
            gate.wait(60)
            with torch.no_grad():
                found[i, n] = greedy(view, batches[i])

    with steer(view, bend(role="context")):
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {(i, n): right[i] for i in range(len(batches)) for n in range(3)}


def test_a_controller_that_looks_ahead_is_refused_beside_another_threads_generation():
    """It leaves blocks out of the decoder for a moment."""
    view, batch, gate, said = fresh_view(), tiny_view().encode(conflict_prompts(1)), Gate(), []
    looking = bend()
    looking.strength = lambda h, ctx: ctx.probe(torch.zeros(len(h))).amax(-1) * 0 + 1
    alone = greedy(view, batch)
    with steer(view, looking):
        right = greedy(view, batch)
    thread = threading.Thread(target=lambda: said.append(greedy(view, batch, streamer=gate)))
    with steer(view, bend("per_token", role="none", generated=False)):
        thread.start()
        assert gate.begun.wait(60)
        with pytest.raises(UserError, match="generate in one thread at a time"), steer(view, looking):
            greedy(view, batch)
        gate.open.set()
        thread.join()
    with steer(view, looking):
        assert said == [alone] and greedy(view, batch) == right


def test_a_block_in_another_thread_is_refused():
    view, found = tiny_view(), []

    def enter() -> None:
        try:
            with steer(view, bend()):
                pass
        except UserError as error:
            found.append(str(error))

    with steer(view, bend()):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(found) == 1 and "another thread steers this model" in found[0]


@pytest.mark.parametrize(
    "options, named",
    [({"guidance_scale": 1.5}, "classifier-free guidance"), ({"custom_generate": "x/y"}, "custom_generate")],
)
def test_what_has_no_meaning_is_refused_by_its_name(options, named):
    view = tiny_view()
    with pytest.raises(UserError, match=named), steer(view, bend()):
        view.model.generate(**view.encode(conflict_prompts(1)), max_new_tokens=2, **options)


@pytest.mark.parametrize("unconditional", [None, 40])
def test_guidance_by_a_processor_is_refused_by_its_name(unconditional):
    view, batch = tiny_view(), tiny_view().encode([no_image(conflict_prompts(1)[0])])
    other = None if unconditional is None else torch.full((1, batch.input_ids.shape[1] + unconditional), 7)
    guide = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, view.model, unconditional_ids=other)
    with pytest.raises(UserError, match="classifier-free guidance"), steer(view, bend()):
        view.model.generate(**batch, logits_processor=[guide], max_new_tokens=2)


def test_another_prompt_that_is_run_inside_of_a_generation_is_refused():
    """It has no roles: those of the generation's own prompt were taken for it."""
    view, batch = tiny_view(), tiny_view().encode([no_image(conflict_prompts(1)[0])])
    other = lambda ids, scores: scores + view.model(input_ids=ids[:, :7]).logits[:, -1]
    with pytest.raises(UserError, match="inside of generate"), steer(view, bend()):
        view.model.generate(**batch, logits_processor=[other], max_new_tokens=2)


def test_generation_from_right_padding_is_refused():
    view = tiny_view()
    with pytest.raises(UserError, match="padded on the right"), steer(view, bend()):
        greedy(view, view.encode(mixed_prompts(), "right"))
    masked = view.encode(conflict_prompts(1))
    masked["attention_mask"][:, -1] = 0
    with pytest.raises(UserError, match="padded on the right"), steer(view, bend()):
        view.model.generate(**masked, max_new_tokens=2)
    with torch.no_grad(), steer(view, bend()):
        greedy(view, view.encode(mixed_prompts()[:1], "right"))


def test_a_method_that_adds_no_vectors_is_refused_in_one_line(tmp_path):
    view, cls = tiny_view(), lookup("steering", "vcd")
    vcd = cls(cls.Params())
    for given in (Steering(vcd, {}, Where(layer=1)), vcd):
        with pytest.raises(UserError, match="'vcd' adds no vectors to states"), steer(view, given):
            pass
        with pytest.raises(UserError, match="'vcd' adds no vectors to states"), steer(view, [given]):
            pass
        with pytest.raises(UserError, match="'vcd' adds no vectors to states"):
            save(tmp_path, given, view)

"""Where a benchmark forces a letter, its answer is decided at the prompt's last token and nothing is run after it."""

from __future__ import annotations

import torch

from eval_suite.speed.timing import conflicts
from factory.bench import answer_prompts
from factory.recipe.nodes import read_node
from tests.tiny import tiny_view


def test_a_forced_letter_needs_no_further_token():
    view, prompts, calls = tiny_view(), conflicts(3), []
    among = torch.tensor([5, 9])
    handle = view.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    try:
        answers = answer_prompts(view, prompts, 16, among)
        assert len(calls) == 1 and calls[0] == view.encode(prompts).input_ids.shape[1]
        answer_prompts(view, prompts, 3)
        assert calls[2:] == [1, 1]
    finally:
        handle.remove()
    with torch.no_grad():
        batch = view.encode(prompts)
        last = view.model(**batch, position_ids=batch.position_ids).logits[:, -1]
    assert answers == [view.tokenizer.decode([among[i]]).strip() for i in last[:, among].argmax(-1)]


def test_a_choice_in_two_orders_is_read_to_its_end():
    """So that its answers cannot be cut at the letter: what follows one changes what conflict/2 reads."""
    both, forced = (
        read_node("benchmark", {"type": "scenes", "scoring": s}).make() for s in ("both_orders", "loglik_forced")
    )
    assert forced.letters == ("A", "B") and not both.letters
    sample = both.samples("test")[0]
    read = {text: both.judge(sample, "order1", text) for text in ("A", "A or B", "A. No, B.")}
    assert read["A"] in ("vision", "text") and read["A or B"] != read["A"] and read["A. No, B."] != read["A"]

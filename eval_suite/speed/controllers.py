"""A prompt's pass under a controller that looks ahead, over the pass under the vectors alone that it doses.

    python -m eval_suite.speed.controllers --width 384 --layers 8 --doses 9

``dose`` runs the blocks above the steered one again for each dose, and the whole prompt twice with one source hidden.
Where the prompt's last token alone is steered and looked at, each of these is one token's pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval_suite.speed import timing
from eval_suite.speed.generation import endless, random_states, steered
from factory.model.encode import Batch
from factory.model.prefix import at_last, prefill
from factory.model.view import ModelView
from factory.recipe.nodes import read_node
from factory.steer import Steerer, Steering, Trials
from factory.steer.sweep import look_ahead, run_trunk

TARGETS = {"dose, last token alone": 1.1}
INNER = {"l2s": {"type": "l2s"}, "l2s, last token alone": {"type": "l2s", "apply_to": "last_and_generated"}}


def controllers(doses: Sequence[float]) -> dict[str, dict]:
    """The methods to time, as a recipe names them."""
    whole, last = INNER.values()
    return {
        **INNER,
        "dose": {"type": "dose", "of": whole, "doses": doses},
        "dose, last token alone": {"type": "dose", "of": last, "doses": doses, "alone": "last"},
    }


def ready(view: ModelView, batch: Batch, node: dict, layer: int) -> Steering:
    """A method fitted on random states and, where it chooses, calibrated on random outcomes of what it sees."""
    method: Steerer = read_node("steering", node).make()
    states = random_states(view)
    state = method.fit(states)
    if method.trial_strengths:
        where = method.placed(state, layer)
        looks = look_ahead(view, run_trunk(view, batch, layer), Steering(method, state, where))
        drawn = torch.rand(looks.shape[:2], generator=torch.Generator().manual_seed(0))
        n = len(looks)
        trials = Trials(drawn < 0.5, drawn > 0.9, looks, states.base[:n], {}, torch.arange(n))
        state = method.calibrate(state, trials)
    return Steering(method, state, method.placed(state, layer), 1.0)


@torch.no_grad()
def prompt_pass(view: ModelView, batch: Batch, steerings: Sequence[Steering]) -> torch.Tensor:
    with steered(view, steerings, begins=True):
        hidden, _ = prefill(view, batch)
        return view.logits(at_last(hidden, batch.attention_mask))


def measure(view: ModelView, batch: int = 8, repeats: int = 9, doses: int = 9) -> timing.Result:
    layer = view.depth // 2
    with endless(view):
        inputs = view.encode(timing.conflicts(batch))
        nodes = controllers([(i + 1) / 2 for i in range(doses)])
        kinds = {"plain": [], **{name: [ready(view, inputs, node, layer)] for name, node in nodes.items()}}
        jobs = {name: lambda s=s: prompt_pass(view, inputs, s) for name, s in kinds.items()}
        times = timing.interleaved(jobs, repeats, view.device)
    ratios = [timing.ratio(times, name, "plain", TARGETS.get(name)) for name in nodes]
    setting = {
        "doses": doses,
        "layer": f"{layer} of {view.depth}",
        "batch": batch,
        "tokens": inputs.input_ids.shape[1],
        "repeats": repeats,
    }
    return timing.result("controllers", view, setting, times, ratios)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = timing.parser(".controllers", __doc__)
    parser.add_argument("--doses", type=int, default=9, help="strengths to look at (default 9)")
    a = parser.parse_args(arguments)
    timing.finish([measure(view, **timing.options(a), doses=a.doses) for view in timing.models(a)], a.json)


if __name__ == "__main__":
    main()

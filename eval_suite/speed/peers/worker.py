"""One way to steer a generation, in a process of its own: it reads a line for each run and answers with a line.

    python -m eval_suite.speed.peers.worker NAME FOLDER

``FOLDER`` holds the model, ``inputs.safetensors`` (what the model is given, and the vector ``v`` that is added to the
output of one block at every token) and ``job.json`` (the block, how many tokens are written). Each answer is JSON: the
seconds of the processor, and the tokens. What a tool's environment lacks is imported only where it is needed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Generate = Callable[[], Tensor]


@dataclass(frozen=True)
class Job:
    """What is generated: ``inputs`` are what the model takes, ``known`` the roles and positions [B, T] of the tokens
    (ours alone asks for them), ``v`` [d] the vector, ``how`` the arguments of the model's own ``generate``.
    """

    model: Any
    inputs: Inputs
    known: Inputs
    v: Tensor
    block: int
    how: dict[str, Any]


Contender = Callable[[Job], Generate]


def layers_of(model: Any) -> Any:
    return model.get_decoder().layers


def plain(job: Job) -> Generate:
    return lambda: job.model.generate(**job.inputs, **job.how)


def bare_hook(job: Job) -> Generate:
    def run() -> Tensor:
        handle = layers_of(job.model)[job.block].register_forward_hook(lambda module, args, output: output + job.v)
        try:
            return job.model.generate(**job.inputs, **job.how)
        finally:
            handle.remove()

    return run


def steering_vectors(job: Job) -> Generate:
    from steering_vectors import SteeringVector

    first = next(name for name, module in job.model.named_modules() if module is layers_of(job.model)[0])
    vector, places = SteeringVector({job.block: job.v}), {"decoder_block": first.removesuffix("0") + "{num}"}

    def run() -> Tensor:
        with vector.apply(job.model, layer_config=places):
            return job.model.generate(**job.inputs, **job.how)

    return run


def repeng(job: Job) -> Generate:
    from repeng import ControlModel

    controlled = ControlModel(job.model, [job.block])

    def run() -> Tensor:
        controlled.set_raw_control({job.block: job.v})
        try:
            return controlled.generate(**job.inputs, **job.how)
        finally:
            controlled.reset()

    return run


def nnsight(job: Job) -> Generate:
    from nnsight import NNsight

    blocks = seen = NNsight(job.model)
    for part in next(name for name, module in job.model.named_modules() if module is layers_of(job.model)).split("."):
        blocks = getattr(blocks, part)
    block, v, steps = blocks[job.block], job.v, job.how["max_new_tokens"]

    def run() -> Tensor:
        with seen.trace(fn="generate", **job.inputs, **job.how) as tracer:
            for _ in tracer.iter[:steps]:
                block.output[:] += v
            tokens = tracer.result.save()
        return tokens

    return run


def ours(job: Job) -> Generate:
    """The project's own runtime, on the same model, entered anew for every generation."""
    from factory.model.encode import Batch
    from factory.model.source import family_of
    from factory.model.view import ModelView
    from factory.registry import lookup
    from factory.steer import Steering, steer

    family, static = family_of(job.model.config), lookup("steering", "static")
    view = ModelView(job.model, family.load_processor(Path(job.model.name_or_path)), family)
    images = {key: value for key, value in job.inputs.items() if key not in ("input_ids", "attention_mask")}
    ids, mask, known = job.inputs["input_ids"], job.inputs["attention_mask"], job.known
    batch = Batch(ids, mask, known["roles"], known["position_ids"], images)
    method = static(static.Params())
    where = method.where().model_copy(update={"layer": job.block})
    steering = Steering(method, {"v": job.v}, where, 1.0)

    def run() -> Tensor:
        with steer(view, steering):
            return job.model.generate(**batch, **job.how)

    return run


CONTENDERS: dict[str, Contender] = {
    "plain": plain,
    "bare hook": bare_hook,
    "steering-vectors": steering_vectors,
    "repeng": repeng,
    "nnsight": nnsight,
    "ours": ours,
}
UNSTEERED = "plain"


def made(name: str, folder: Path) -> Generate:
    """The generation that ``name`` makes of what ``folder`` holds."""
    import transformers
    from safetensors.torch import load_file

    told = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    model = getattr(transformers, told["class"]).from_pretrained(folder, dtype=torch.float32)
    inputs, n = load_file(folder / "inputs.safetensors"), told["new_tokens"]
    v, known = inputs.pop("v"), {key: inputs.pop(key) for key in ("roles", "position_ids")}
    how = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False}
    return CONTENDERS[name](Job(model.eval().requires_grad_(False), inputs, known, v, told["block"], how))


def main(name: str, folder: str) -> None:
    torch.set_num_threads(1)
    answer, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    with torch.no_grad():
        run = made(name, Path(folder))
        print(json.dumps({"ready": name}), file=answer, flush=True)
        for _ in sys.stdin:
            began = time.process_time()
            tokens = run()
            seconds = time.process_time() - began
            print(json.dumps({"seconds": seconds, "tokens": tokens.tolist()}), file=answer, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""When a training that was begun may be gone on with: which keys of a recipe change what is learnt, and which do not.

Every key of ``tune:``, ``train:`` and ``launch:`` stands in one of the lists below. A stage's inputs hold the keys that
change what is learnt; where one differs from the training whose checkpoint or result is there, it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from factory import files
from factory.errors import UserError
from factory.recipe.nodes import Spec
from factory.recipe.sections.launch import LaunchSpec
from factory.recipe.sections.training import TrainSpec, TuneDataSpec, TuneSpec
from factory.run.rundir import Stage
from factory.terminal import Console
from factory.train import checkpoint

CHECKPOINTS = "checkpoints"  # in the folder of a stage that trains

SAME: dict[type[Spec], set[str]] = {  # to the byte, or where floats are summed in another order, to rounding
    TuneSpec: {"micro_batch", "gradient_checkpointing", "save_every", "keep_checkpoints", "threads", "exam"},
    TuneDataSpec: {
        "workers",
        "max_skipped",
        "decode",
        "pack",
    },  # a sample left out anew is another source, which "data" tells
    TrainSpec: {"save_every", "threads"},
    LaunchSpec: {"hostfile"},
}
TOLD: dict[type[Spec], dict[str, str]] = {  # by another entry of the inputs, or by a checkpoint's manifest
    TuneSpec: {"steps": "steps", "epochs": "steps", "data": "tune.data and data", "held_out": "held_out"}
    | {"initial": "initial"},
    TuneDataSpec: dict.fromkeys(("path", "mix", "hub", "subset", "split", "revision", "images", "photos"), "data"),
    TrainSpec: {},
    LaunchSpec: {"processes": "ranks", "zero": "zero", "offload": "offload"},
}
OTHER: dict[type[Spec], set[str]] = {  # another result
    TuneSpec: {"stage", "tuner", "learning_rate", "beside", "batch_size", "schedule", "warmup", "weight_decay"}
    | {"new_tokens", "max_grad_norm", "bf16", "fp16", "optimizer", "rho", "learning_rates", "neftune"},
    TuneDataSpec: {
        "question",
        "lessons",
        "take",
        "seed",
        "max_tokens",
        "group_by_length",
        "cache_features",
        "mask_history",
        "streaming",
        "buffer",
    },
    TrainSpec: {"steps", "vision_steps", "text_steps", "connector_steps", "batch_size", "learning_rate", "warmup"}
    | {"weight_decay", "text_weight"},
    LaunchSpec: set(),
}


def learnt(spec: TuneSpec | TrainSpec) -> dict[str, Any]:
    """The keys of a training that change what is learnt, JSON-able."""
    kept = spec.model_dump(mode="json", include=OTHER[type(spec)])
    if isinstance(spec, TuneSpec):
        kept["data"] = learnt_of(spec.data)
    return kept


def learnt_of(data: TuneDataSpec) -> dict[str, Any]:
    """The keys of training data that change what is read of them, JSON-able."""
    return data.model_dump(mode="json", include=OTHER[TuneDataSpec])


def refuse_other(stage: Path, inputs: Mapping[str, Any]) -> None:
    """Raises ``UserError`` where the stage in folder ``stage`` is finished, or has a checkpoint, and learnt from other
    values than ``inputs`` has; these may be some of them, known before a model is loaded.
    """
    if not ((stage / "summary.json").is_file() or checkpoint.present(stage / CHECKPOINTS)):
        return
    try:
        old = dict(_flat(files.decode_json(files.plain_bytes(stage / "inputs.json"))["inputs"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{stage}: what this training learnt from cannot be read in its inputs.json; start afresh with name=OTHER"
        ) from None
    new = dict(_flat(files.decode_json(files.encode_json(inputs))))
    if changed := [_told(key, old.get(key), new[key]) for key in new if old.get(key) != new[key]]:
        raise UserError(
            f"{stage}: a training with other values is there, and is kept: {', '.join(changed)}. Go on with the former"
            " values, or start afresh with name=OTHER"
        )


def is_kept(out: Path, sums: Mapping[str, str] | None) -> bool:
    """Whether the folder of a finished training still holds the files that ``sums_of`` found."""
    told = sums or {}
    return bool(told) and all((out / n).is_file() and files.digest_file(out / n) == sum_ for n, sum_ in told.items())


def sums_of(out: Path, names: Iterable[str]) -> dict[str, str]:
    """The checksums of files in ``out``, for a stage's summary."""
    return {name: files.digest_file(out / name) for name in names}


def last_of(stage: Stage, out: Path) -> Path:
    """The checkpoint that a finished training ended with, to write its result ``out`` anew from.

    Raises ``UserError`` where that is gone or damaged too.
    """
    last = stage.path / CHECKPOINTS / checkpoint.folder_name(stage.summary.get("kept", stage.summary["steps"]))
    try:
        checkpoint.check(last)
    except checkpoint.Damaged:
        raise UserError(
            f"{out}: what was trained is damaged or gone, and so is its checkpoint, {last.name} in {stage.path}. Remove"
            " that folder to train again, or start afresh with name=OTHER"
        ) from None
    Console().print(f"{out}: damaged or gone; written again from {last}", highlight=False, soft_wrap=True)
    return last


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _told(key: str, old: Any, new: Any) -> str:
    """What was changed, for a person: a digest says nothing to one."""
    if key == "data" and isinstance(new, str):
        return "the data (a row, or the name or content of a picture, is not what it was)"
    return f"{key} {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."

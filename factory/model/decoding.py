"""What a model's own generation settings would do to its answers, and ours, which are plainly greedy, do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from factory.errors import UserError

NEVER = "never write some tokens"
ALWAYS = "write some tokens whatever the prompt says"
LEFT_OUT: dict[str, tuple[tuple[Any, ...], str]] = {
    "repetition_penalty": ((1,), "disfavour every token of the prompt, and so the text's answer"),
    "encoder_repetition_penalty": ((1,), "favour every token of the prompt, and so the text's answer"),
    "no_repeat_ngram_size": ((0,), "never write a run of words twice"),
    "encoder_no_repeat_ngram_size": ((0,), "never write a run of words of the prompt, and so the text's answer"),
    "bad_words_ids": ((), NEVER),
    "suppress_tokens": ((), NEVER),
    "begin_suppress_tokens": ((), "never begin with some tokens"),
    "forced_bos_token_id": ((), ALWAYS),
    "forced_eos_token_id": ((), ALWAYS),
    "forced_decoder_ids": ((), ALWAYS),
    "force_words_ids": ((), ALWAYS),
    "constraints": ((), ALWAYS),
    "sequence_bias": ((), "favour or disfavour some tokens"),
    "exponential_decay_length_penalty": ((), "end long answers early"),
    "min_length": ((0,), "not end before that many tokens"),
    "min_new_tokens": ((0,), "not end before that many tokens"),
    "stop_strings": ((), "end at those words"),
    "num_beams": ((1,), "search with beams"),
    "penalty_alpha": ((0,), "search by contrast"),
    "dola_layers": ((), "contrast its layers"),
    "guidance_scale": ((1,), "contrast the prompt with none"),
    "watermarking_config": ((), "favour some tokens, to mark its answers"),
}
"""Settings of ``transformers.GenerationConfig`` that change a greedy answer: the values that do nothing (beside none at
all), and what the others make ``generate`` do. Settings of sampling are not among them: greedy decoding has none."""


def left_out(folder: Path) -> list[str]:
    """A word on each such setting of a model's folder: ``generation_config.json``, or ``config.json`` without it.

    Raises ``UserError`` for a file that cannot be read.
    """
    path = next((p for p in (folder / "generation_config.json", folder / "config.json") if p.is_file()), None)
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path else {}
        found = {name: settings.get(name) for name in LEFT_OUT}
    except (ValueError, OSError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    file = path.name if path else "settings"
    return [
        f"model: the {name} of {_short(value)} in its {file} is left out: answers are plainly greedy. Its own"
        f" generate() would {LEFT_OUT[name][1]}"
        for name, value in found.items()
        if value not in (None, [], {}, *LEFT_OUT[name][0])
    ]


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list | dict) and len(value) > 1 else str(value)

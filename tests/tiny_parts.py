"""What the small models of every family are made of: sizes, templates, tokenizers."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_tokenizer

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}{{ 'IMAGE' if c['type']"
    " == 'image' else c['text'] }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = (  # the shape of most others: a name before each turn, an end after it
    "{{ 'BEGIN' }}{% for m in messages %}{{ 'ASKED' if m['role'] != 'assistant' else 'GIVEN' }}"
    "{% for c in m['content'] %}{{ 'IMAGE' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ 'END' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GIVEN' }}{% endif %}"
)


def written(template: str, **words: str) -> str:
    for name, word in words.items():
        template = template.replace(name, word)
    return template


def tokenizer(
    *special: str, bos: str | None = None, eos: str = "</s>", named: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with other special tokens; ``named`` ones can be asked for by name."""
    trained = Tokenizer.from_str(tiny_tokenizer(400).backend_tokenizer.to_str())
    if bos is None:
        trained.post_processor = None
    named = {"image_token": "<image>", **(named or {})}
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens=named,
        padding_side="left",
    )
    tokens.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return tokens


def text_config(kind: str, tokens: PreTrainedTokenizerFast, **keys: Any) -> dict[str, Any]:
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    return {**TEXT, **ids, "model_type": kind, "vocab_size": len(tokens), "initializer_range": 0.3, **keys}


def image_id(tokens: PreTrainedTokenizerFast) -> int:
    return tokens.convert_tokens_to_ids(tokens.image_token)

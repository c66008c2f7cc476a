"""A small model of random weights for every family that reads text alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedTokenizerFast

from factory.model.parts import Parts
from tests.tiny_parts import TURNS, text_config, tokenizer, written

Built = tuple[Any, Any]
TEXTS: dict[str, Callable[[], Built]] = {}
CHATML = (  # of a text model: a turn is one text
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ITEMS = "{% for c in m['content'] %}{{ 'IMAGE' if c['type'] == 'image' else c['text'] }}{% endfor %}"
PLAIN_TURNS = TURNS.replace(ITEMS, "{{ m['content'] }}")
INST = (
    "<s>{% for m in messages %}{{ ' ' + m['content'] + eos_token if m['role'] == 'assistant' else '[INST] ' +"
    " m['content'] + ' [/INST]' }}{% endfor %}"
)
GEMMA = written(
    PLAIN_TURNS,
    BEGIN="<s>",
    ASKED="<start_of_turn>user\n",
    GIVEN="<start_of_turn>model\n",
    END="<end_of_turn>\n",
)


def text(build: Callable[[], Built]) -> Callable[[], Built]:
    TEXTS[build.__name__] = build
    return build


def made(kind: str, config: Any, tokens: PreTrainedTokenizerFast, template: str | None = None, **keys: Any) -> Built:
    """A model of the class that transformers has for ``config``, and its tokenizer with a chat template or none."""
    told = {key: value for key, value in text_config(kind, tokens, **keys).items() if key != "model_type"}
    tokens.chat_template = template
    model = transformers.AutoModelForCausalLM.from_config(config(**told))
    return model, Parts(None, tokens, template)


def chatml_tokens() -> PreTrainedTokenizerFast:
    return tokenizer("<|im_start|>", "<|im_end|>", eos="<|im_end|>")


@text
def llama() -> Built:
    return made("llama", transformers.LlamaConfig, tokenizer(bos="<s>"), INST)


@text
def qwen2() -> Built:
    return made("qwen2", transformers.Qwen2Config, chatml_tokens(), CHATML)


@text
def qwen3() -> Built:
    return made("qwen3", transformers.Qwen3Config, chatml_tokens(), CHATML, head_dim=12)


@text
def mistral() -> Built:
    return made("mistral", transformers.MistralConfig, tokenizer(bos="<s>"), INST, sliding_window=None)


def gemma_tokens() -> PreTrainedTokenizerFast:
    return tokenizer("<start_of_turn>", "<end_of_turn>", bos="<s>", eos="<end_of_turn>")


@text
def gemma() -> Built:
    return made("gemma", transformers.GemmaConfig, gemma_tokens(), GEMMA, head_dim=12)


@text
def gemma2() -> Built:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    narrow = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12, "layer_types": kinds}
    return made("gemma2", transformers.Gemma2Config, gemma_tokens(), GEMMA, **narrow)


@text
def gemma3_text() -> Built:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    narrow = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 12, "layer_types": kinds}
    return made("gemma3_text", transformers.Gemma3TextConfig, gemma_tokens(), GEMMA, **narrow)


@text
def gpt2() -> Built:
    """Without a chat template, as OPT."""
    return made("gpt2", transformers.GPT2Config, tokenizer(), n_positions=512, n_inner=64)


@text
def phi() -> Built:
    return made("phi", transformers.PhiConfig, chatml_tokens(), CHATML, tie_word_embeddings=False)


@text
def opt() -> Built:
    sizes = {"ffn_dim": 64, "word_embed_proj_dim": 48, "max_position_embeddings": 512, "init_std": 0.3}
    return made("opt", transformers.OPTConfig, tokenizer(bos="<s>"), **sizes)


@text
def structural_text() -> Built:
    """GPT-NeoX, as Pythia, which has no family of its own."""
    return made("gpt_neox", transformers.GPTNeoXConfig, tokenizer(bos="<s>"), INST)

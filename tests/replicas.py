"""Tokenizers built as those of released models are, on a small vocabulary of their own; and released chat templates."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from factory.model.families.llava import Llava
from factory.model.family import frozen
from factory.model.view import ModelView
from factory.train.scratch.build import TinyLlava, build_llava
from tests.tiny import SMALL, conflict_prompts

# chat_template of llava-hf/llava-1.5-*: each turn's images first, then its texts, each with a space after it.
LLAVA_HUB = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}{%"
    " for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% if"
    " message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text')"
    " %}{{ content['text'] + ' '}}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type',"
    " 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

# The shape of chat_template of llava-hf/llava-onevision-*: an answered turn has a line break more than its prompt.
ONEVISION_HUB = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}{% for content in message['content'] |"
    " selectattr('type', 'equalto', 'image') %}{{ '\n<image>' }}{% endfor %}{% if message['role'] != 'assistant' %}{%"
    " for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{%"
    " endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation"
    " %}{{ '\n\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if"
    " add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As google/gemma-3-*-it: texts are trimmed, a system turn joins the first question.
GEMMA_HUB = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'][0]['text'] + '\n\n'"
    " %}{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{% for message"
    " in turns %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' +"
    " (first if loop.first else '') }}{% for item in message['content'] %}{{ '<image>' if item['type'] == 'image' else"
    " item['text'] | trim }}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<start_of_turn>model\n' }}{% endif %}"
)
# The shape of chat_template of deepseek-community/deepseek-vl-*: a turn is trimmed, the last one is not ended.
DEEPSEEK_HUB = (
    "Be brief.\n\n{% for message in messages %}{{ 'User: ' if message['role'] == 'user' else 'Assistant: ' }}{% for"
    " content in message['content'] %}{% if content['type'] == 'image' %}<image>{% else %}{% set text ="
    " content['text'] %}{% set text = text.lstrip() if loop.first else text %}{{ text.rstrip() if loop.last else text"
    " }}{% endif %}{% endfor %}{% if not loop.last or add_generation_prompt %}{{ '\n\n' if message['role'] == 'user'"
    " else eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@cache
def llama_tokenizer(size: int = 500) -> PreTrainedTokenizerFast:
    """As Llama 2's: a word begins with a mark, a piece of text is given one in front, and what no piece spells falls
    apart into bytes.
    """
    texts = [s.text for p in conflict_prompts(40) for s in p.segments] + ["USER: ASSISTANT:"] * 100 + ["A B"] * 100
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = [normalizer.normalize_str(word) for text in texts for word in text.split()]
    base = Tokenizer(models.BPE())
    base.train_from_iterator(words, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    learnt = json.loads(base.to_str())["model"]
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        *sorted(learnt["vocab"], key=learnt["vocab"].get),
    ]
    model = models.BPE(
        {p: i for i, p in enumerate(pieces)},
        [tuple(m) for m in learnt["merges"]],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


@cache
def llava_on_llama() -> ModelView:
    """A tiny LLaVA-1.5 with the tokenizer and the chat template of the released ones."""
    tokenizer = llama_tokenizer()
    model, processor = build_llava(TinyLlava(**{**SMALL, "vocabulary": len(tokenizer)}), tokenizer, 0)
    processor.chat_template = LLAVA_HUB
    return ModelView(frozen(model), processor, Llava())

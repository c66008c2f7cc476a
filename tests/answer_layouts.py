"""Tokenizers of every kind, and chat templates with what they write, told by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from factory.components.templates import CHATML, GEMMA, VICUNA
from factory.model.families.llava import Llava
from factory.model.families.paligemma import PaliGemma
from factory.model.family import frozen
from factory.model.view import ModelView
from factory.train.scratch.build import CHAT_TEMPLATE, TinyLlava, build_llava
from tests.replicas import DEEPSEEK_HUB, GEMMA_HUB, LLAVA_HUB, ONEVISION_HUB, llama_tokenizer
from tests.tiny import IN_ORDER, SMALL, conflict_prompts, tiny_tokenizer

SPECIAL = ["<s>", "</s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
PICTURE = Image.new("RGB", (48, 48), "red")
ANSWERS = [
    "red",
    "3",
    "42",
    "红色",
    "🙂",
    ")",
    "...",
    "- a list",
    "A dog, so B",
    "é",
    "'s",
    " red",
    "\nred",
    "red ",
    " 3\n",
]
QUESTION = "what color is the ball?"


@dataclass(frozen=True)
class Layout:
    """What a template writes: before all turns, a picture, around a question; what a generation goes on from; what
    stands between that and an answer, and after an answer, where ``end`` says whether an end token comes first in it.
    """

    template: str
    image: str
    asked: tuple[str, str]
    given: str
    after: str
    begin: str = ""
    parted: str = ""
    end: str = ""


TURN = "<start_of_turn>"
LAYOUTS = {
    "vicuna": Layout(VICUNA, "<image>\n", ("USER: ", " "), "ASSISTANT:", "</s>", parted=" ", end="</s>"),
    "in_order": Layout(IN_ORDER, "<image>\n", ("USER: ", " "), "ASSISTANT:", "</s>", parted=" ", end="</s>"),
    "tiny": Layout(CHAT_TEMPLATE, "<image>\n", ("USER: ", " "), "ASSISTANT:", "</s>", parted=" ", end="</s>"),
    "llava_hub": Layout(LLAVA_HUB, "<image>\n", ("USER: ", " "), "ASSISTANT:", " ", parted=" "),
    "chatml": Layout(
        CHATML,
        "<image>\n",
        ("<|im_start|>user\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        end="<|im_end|>",
    ),
    "gemma": Layout(
        GEMMA,
        "<image>\n",
        (f"{TURN}user\n", "<end_of_turn>\n"),
        f"{TURN}model\n",
        "<end_of_turn>\n",
        begin="<s>",
        end="<end_of_turn>",
    ),
    "paligemma": Layout(PaliGemma.chat_template, "<image><s>", ("", "\n"), "", "\n"),
    "onevision_hub": Layout(
        ONEVISION_HUB,
        "<image>\n",
        ("<|im_start|>user\n", "<|im_end|>"),
        "<|im_start|>assistant\n",
        "<|im_end|>",
        end="<|im_end|>",
    ),
    "gemma_hub": Layout(
        GEMMA_HUB,
        "<image>",
        (f"{TURN}user\n", "<end_of_turn>\n"),
        f"{TURN}model\n",
        "<end_of_turn>\n",
        begin="<s>",
        end="<end_of_turn>",
    ),
    "deepseek_hub": Layout(
        DEEPSEEK_HUB, "<image>", ("User: ", "\n\n"), "Assistant:", "</s>", begin="Be brief.\n\n", parted=" ", end="</s>"
    ),
}
DIFFERENT = {  # an answered turn as the hub's template writes it, and the same turn as the prompt that it continues
    "llava_hub": (" red ", "USER: q ASSISTANT:  red  ", "USER: q ASSISTANT:  red </s>"),
    "onevision_hub": (
        "red",
        "<|im_start|>user\nq<|im_end|><|im_start|>assistant\n\nred<|im_end|>",
        "<|im_start|>user\nq<|im_end|><|im_start|>assistant\nred<|im_end|>",
    ),
    "gemma_hub": (
        " red ",
        f"<s>{TURN}user\nq<end_of_turn>\n{TURN}model\nred<end_of_turn>\n",
        f"<s>{TURN}user\nq<end_of_turn>\n{TURN}model\n red <end_of_turn>",
    ),
    "deepseek_hub": (" red ", "Be brief.\n\nUser: q\n\nAssistant: red", "Be brief.\n\nUser: q\n\nAssistant:  red </s>"),
    "paligemma": ("red", "<s>q\nred", "<s>q\nred</s>"),
}


def corpus() -> list[str]:
    words = [s.text for p in conflict_prompts(30) for s in p.segments]
    return [*words, *["USER: ASSISTANT: user assistant model ASSISTANT:"] * 50, "3 42 a list of 3 dogs \n\n" * 20]


def wrapped(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def metaspace(scheme: str, model: Any, trainer: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.train_from_iterator(corpus(), trainer)
    return wrapped(backend)


def unigram() -> PreTrainedTokenizerFast:
    alphabet = [*"▁abcdefghijklmnopqrstuvwxyz0123456789\n.:,-)'?", "红", "色", "🙂", "é"]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, show_progress=False, unk_token="<unk>", special_tokens=["<unk>"], initial_alphabet=alphabet
    )
    return metaspace("always", models.Unigram(), trainer)


def pieces(scheme: str) -> PreTrainedTokenizerFast:
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["<unk>", *bytes_])
    return metaspace(scheme, models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainer)


def byte_level(prefix: bool) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(tiny_tokenizer(400).backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.post_processor = None
    return wrapped(backend)


def composing() -> PreTrainedTokenizerFast:
    backend = byte_level(False).backend_tokenizer
    backend.normalizer = normalizers.NFC()
    return wrapped(backend)


def llama() -> PreTrainedTokenizerFast:
    return wrapped(Tokenizer.from_str(llama_tokenizer().backend_tokenizer.to_str()))


TOKENIZERS = {
    "byte-level": lambda: byte_level(False),
    "byte-level with a prefix space": lambda: byte_level(True),
    "byte-level that composes": composing,
    "metaspace always": lambda: pieces("always"),
    "metaspace first": lambda: pieces("first"),
    "metaspace never": lambda: pieces("never"),
    "unigram": unigram,
    "llama 2": llama,
}


@cache
def view_of(kind: str) -> ModelView:
    tokens = TOKENIZERS[kind]()
    model, processor = build_llava(TinyLlava(**SMALL), tokens, 0)
    ends = ["</s>", "<|im_end|>", "<end_of_turn>"]
    model.generation_config.eos_token_id = tokens.convert_tokens_to_ids(ends)
    return ModelView(frozen(model), processor, Llava())


def view_with(kind: str, template: str) -> ModelView:
    view = view_of(kind)
    processor = copy.copy(view.processor)
    processor.chat_template = template
    return ModelView(view.model, processor, view.family)


FAMILIES = {  # the layouts of tests.tiny_families, by hand
    "llava_next": Layout("", "<image>\n", ("[INST] ", " "), " [/INST]", " ", begin="<s>"),
    "idefics3": Layout(
        "",
        "<image>",
        ("User:", "<end_of_utterance>\n"),
        "Assistant:",
        "<end_of_utterance>\n",
        "<s>",
        "",
        "<end_of_utterance>",
    ),
    "smolvlm": Layout(
        "",
        "<image>",
        ("User:", "<end_of_utterance>\n"),
        "Assistant:",
        "<end_of_utterance>\n",
        "<|im_start|>",
        "",
        "<end_of_utterance>",
    ),
    "gemma3": Layout(
        "",
        "<start_of_image>",
        (f"{TURN}user\n", "<end_of_turn>\n"),
        f"{TURN}model\n",
        "<end_of_turn>\n",
        "<s>",
        "",
        "<end_of_turn>",
    ),
    "deepseek_vl": Layout("", "<image_placeholder>", ("User: ", "\n\n"), "Assistant:", "\n\n", "<s>Be helpful.\n\n"),
    "structural": Layout("", "<image>\n", ("###Human: ", "\n"), "###Assistant:", "\n", "<s>"),
    "paligemma": LAYOUTS["paligemma"],
    "steering_factory_composed": LAYOUTS["in_order"],
    **dict.fromkeys(
        ("llama", "mistral", "structural_text"),
        Layout("", "", ("[INST] ", " [/INST]"), "", "</s>", "<s>", parted=" ", end="</s>"),
    ),
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text"),
        Layout(
            "",
            "",
            (f"{TURN}user\n", "<end_of_turn>\n"),
            f"{TURN}model\n",
            "<end_of_turn>\n",
            "<s>",
            "",
            "<end_of_turn>",
        ),
    ),
    **dict.fromkeys(("mistral3", "pixtral"), Layout("", "[IMG]", ("[INST]", "[/INST]"), "", "</s>", "<s>", end="</s>")),
    **dict.fromkeys(
        ("glm4v", "glm46v"),
        Layout(
            "",
            "<|begin_of_image|><|image|><|end_of_image|>",
            ("", ""),
            "<|assistant|>\n",
            "<|user|>\n",  # the next turn's opening is what ends an answer
            "[gMASK]<sop><|user|>\n",
            "",
            "<|user|>",
        ),
    ),
    **dict.fromkeys(  # the plain template of those that bring none
        ("gpt2", "opt"), Layout("", "", ("Question: ", "\n"), "Answer:", "</s>\n", parted=" ", end="</s>")
    ),
}
IMAGES = {
    **dict.fromkeys(("qwen2", "qwen3", "phi"), ""),
    "llava_onevision": "<image>\n",
    "internvl": "<IMG_CONTEXT>\n",
    "minicpmv4_6": "<|image_pad|>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), "<|vision_start|><|image_pad|><|vision_end|>"),
}

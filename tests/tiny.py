"""A small LLaVA with random weights and prompts for it, for every test that needs a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import torch

from eval_suite.conflict import build_prompt
from eval_suite.scenes.curriculum import Mix, lesson
from eval_suite.scenes.world import TASKS, SceneSpec, scene
from factory.data.prompt import Prompt, Role
from factory.model.families.llava import Llava
from factory.model.family import frozen
from factory.model.view import ModelView
from factory.train.scratch.build import TinyLlava, build_llava, train_tokenizer

SMALL = {
    "image_size": 48,
    "patch_size": 12,
    "vision_width": 32,
    "vision_layers": 1,
    "width": 48,
    "layers": 3,
    "mlp": 64,
    "vocabulary": 400,
}
IN_ORDER = (  # unlike LLaVA's own template, images stay where the prompt has them
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + eos_token }}"
    "{% else %}{{ 'USER: ' if m['role'] == 'user' else '' }}"
    "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}"
    "{{ 'ASSISTANT:' if m['role'] == 'user' and not loop.last else '' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@cache
def tiny_tokenizer(vocabulary: int):
    return train_tokenizer(
        ["\n".join(s.text for s in lesson(Random(i), 0.5, Mix()).segments) for i in range(60)], vocabulary
    )


@cache
def tiny_view(
    heads: int = 4,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    spread: float = 3.0,
    **sizes: int,
) -> ModelView:
    """A frozen random LLaVA of 16 image tokens an image; one object per set of arguments, so leave it as you found it.

    ``spread`` multiplies the decoder's and the embedding's random matrices, so that attention and next-token
    distributions are not flat.
    """
    config = TinyLlava(heads=heads, kv_heads=kv_heads, **{**SMALL, **sizes})
    model, processor = build_llava(config, tiny_tokenizer(config.vocabulary), seed)
    processor.chat_template = IN_ORDER
    with torch.no_grad():
        for weight in [*model.get_decoder().layers.parameters(), model.get_input_embeddings().weight]:
            weight.mul_(spread if weight.ndim == 2 else 1.0)
    return ModelView(frozen(model.to(dtype)), processor, Llava())


def fresh_view() -> ModelView:
    """A tiny view of its own, for a test that changes its model."""
    shared = tiny_view()
    return ModelView(copy.deepcopy(shared.model), shared.processor, shared.family)


def saved_tiny(folder: Path) -> Path:
    """``folder`` with a tiny view's model and processor in it."""
    view = tiny_view()
    view.model.save_pretrained(folder)
    view.processor.save_pretrained(folder)
    return folder


def conflict_prompts(n: int, form: str = "order1", seed: int = 0) -> list[Prompt]:
    """Scene prompts of different lengths and tasks, image first."""
    return [build_prompt(scene(SceneSpec(TASKS[i % len(TASKS)], "train", seed + i, 0, i % 4)), form) for i in range(n)]


def text_first(prompt: Prompt) -> Prompt:
    """The context before the image."""
    context = [s for s in prompt.segments if s.role == Role.CONTEXT]
    return Prompt((*context, *prompt.without(Role.CONTEXT).segments))


def two_images(prompt: Prompt, other: Prompt) -> Prompt:
    """``prompt`` with the image of ``other`` after its context."""
    image = next(s for s in other.segments if s.role == Role.IMAGE)
    return prompt.before_question(image)


def no_image(prompt: Prompt) -> Prompt:
    return prompt.without(Role.IMAGE)


def shown(view: ModelView, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts as a model can be asked them: without their images where it reads text alone."""
    return prompts if view.sees else [no_image(prompt) for prompt in prompts]


def mixed_prompts() -> list[Prompt]:
    """Four layouts: image first, text first, two images, no image."""
    a, b, c, d = conflict_prompts(4)
    return [a, text_first(b), two_images(c, a), no_image(d)]


def interrupts(chunk: int) -> Callable[[object, str], None]:
    """For ``rundir.watched``: interrupts a run before its ``chunk``-th chunk is stored."""
    seen: list[str] = []

    def watcher(stage: object, key: str) -> None:
        seen.append(key)
        if len(seen) == chunk:
            raise KeyboardInterrupt

    return watcher

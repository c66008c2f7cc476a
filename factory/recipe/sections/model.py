"""`model:`: which model, and how it is put together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import PositiveInt, StringConstraints, model_validator

from factory.recipe.explain import refusal
from factory.recipe.nodes import Node, Spec, plugin
from factory.recipe.sections.words import Layer, PathText, Text


class ComposeSpec(Spec):
    """A model from registered parts; each of vision_encoder and llm names its ``source`` (a folder or hub id), or sizes
    as ``config``.

    ``vision_encoder`` reads the picture, ``connector`` brings its features to the width of ``llm``, the language model.
    """

    vision_encoder: Annotated[Node, plugin("vision_encoder")]
    connector: Annotated[Node, plugin("connector")]
    llm: Annotated[Node, plugin("llm")]


class ModelSpec(Spec):
    """Which model: a zoo card, a folder, a hub id, parts to compose, or a configuration to build with random weights.

    Beside a card, ``path`` or ``hub`` say where its weights are. ``tuned`` names tuning runs (their folders, or a
    ``tuned/`` folder) whose trained parts are put into it, in order: pretrained connector first. ``quantize`` packs the
    decoder's linear maps (bitsandbytes); ``device_map`` spreads the model over all GPUs (and host memory) as accelerate
    places it, ``device`` then has no say.

    ``zoo`` is a card's name; ``compose`` puts a model together from parts; ``build`` is a Hugging Face configuration,
    built with random weights; ``revision`` is a branch, tag or commit of the hub's repository. ``dtype`` is the
    precision of its weights; ``layer`` the decoder block to steer, null that of the card or the middle one.

    ``min_pixels`` and ``max_pixels`` bound the pixels (width times height) that a picture is brought to, where the
    model takes more tokens for a larger one; null leaves the processor's own.
    """

    zoo: Text | None = None
    path: PathText | None = None
    hub: Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    revision: Text | None = None
    compose: ComposeSpec | None = None
    build: dict[str, Any] | None = None
    tuned: tuple[PathText, ...] = ()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: Literal["8bit", "4bit"] | None = None
    device: Text = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    layer: Layer | None = None
    min_pixels: PositiveInt | None = None
    max_pixels: PositiveInt | None = None

    @property
    def origin(self) -> str:
        """The arguments that name the same model in Python; empty where a recipe alone can, as of composed ones."""
        named = {key: getattr(self, key) for key in ("zoo", "path", "hub", "revision", "tuned")}
        return "" if self.compose or self.build else ", ".join(f"{key}={v!r}" for key, v in named.items() if v)

    @model_validator(mode="after")
    def _has_a_source(self) -> ModelSpec:
        if all(source is None for source in (self.zoo, self.path, self.hub, self.compose, self.build)):
            raise ValueError("needs at least one of zoo, path, hub, compose, build")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise refusal([(("min_pixels",), f"{self.min_pixels} is more than max_pixels, {self.max_pixels}")])
        return self

"""Base of the families of models that read text alone: what is left of a family without its picture side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from factory.components.templates import QUESTION_ANSWER
from factory.errors import UserError
from factory.model.family import Family
from factory.model.parts import Parts

NO_TOKEN = -1  # an id that no token has
NO_IMAGE = "\U000f0000"  # of a private plane: what no template writes


class TextFamily(Family):
    """A causal language model without pictures. It has no vision tower, no connector and no image token, and a prompt
    with a picture is refused by the model's name.

    Where the tokenizer brings no chat template, as those of base models, the plain one ``QUESTION_ANSWER`` is used.
    """

    sees = False
    saved: ClassVar = {"tokenizer": Family.saved["tokenizer"]}
    chat_template = QUESTION_ANSWER

    def load_processor(self, folder: Path) -> Parts:
        """The tokenizer saved in ``folder``, in the place of a processor."""
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return Parts(None, tokenizer, tokenizer.chat_template)

    def notes(self, folder: Path) -> tuple[str, ...]:
        settings = folder / "tokenizer_config.json"
        told = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8", errors="replace")
        if told or (folder / "chat_template.jinja").is_file():
            return ()
        return ("model: it brings no chat template, so prompts are written in the plain one: Question: … Answer:",)

    def core(self, model: PreTrainedModel) -> PreTrainedModel:
        return self.decoder(model)

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        raise blind(model, "a vision tower is asked for")

    def connector(self, model: PreTrainedModel) -> nn.Module:
        raise blind(model, "a connector is asked for")

    def parts(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        return {"decoder": self.decoder(model), "unembedding": model.get_output_embeddings()}

    def image_token_id(self, model: PreTrainedModel) -> int:
        return NO_TOKEN

    def image_token(self, model: PreTrainedModel, processor: Any) -> str:
        return NO_IMAGE

    def image_inputs(
        self, processor: Any, images: Sequence[Image.Image], per_prompt: Sequence[int] = ()
    ) -> dict[str, Any]:
        return {}

    def image_texts(self, model: PreTrainedModel, processor: Any, inputs: dict[str, Any], n_images: int) -> list[str]:
        if n_images:
            raise blind(model, "a prompt has a picture")
        return []

    def picture_settings(self, processor: Any) -> str:
        return "null"


def blind(model: PreTrainedModel, what: str) -> UserError:
    """That a model reads text alone, and ``what`` asks for more."""
    return UserError(f"{type(model).__name__} reads text alone, and {what}; take a model that sees pictures for it")

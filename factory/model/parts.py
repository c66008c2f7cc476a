"""A processor as its parts, for models whose own processor class needs packages that only serve video, and for those
that read text alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # 5.17's top level hides it without torchvision


@dataclass
class Parts:
    """An image processor (None of a model that reads text alone), a tokenizer and a chat template."""

    image_processor: Any
    tokenizer: Any
    chat_template: str | None = None

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Parts:
        """The parts saved in ``folder``. Raises ``OSError`` or ``ValueError`` where one is missing or damaged."""
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        return cls(
            AutoImageProcessor.from_pretrained(folder, **options),
            tokenizer,
            _saved_template(Path(folder)) or tokenizer.chat_template,
        )

    def save_pretrained(self, folder: Path) -> None:
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.chat_template:
            (Path(folder) / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")


def _saved_template(folder: Path) -> str | None:
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    if (path := folder / "chat_template.json").is_file():
        return json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    return None

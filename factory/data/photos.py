"""A folder of labelled photos as training samples: a question, and the label as its answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from factory import files
from factory.data import pictures
from factory.data.conversation import Conversation
from factory.data.order import subset
from factory.data.prompt import Role
from factory.data.source import NAMED, Audit, Sample
from factory.errors import UserError


class PhotoFolder:
    """Pictures under ``folder``, in the order of their paths. A photo's label is the text of the .txt file beside it
    (``cat.jpg``, ``cat.txt``); where no picture has one, the name of the folder that it lies in (``cat/1.jpg``).

    Args: ``question`` is asked of each; ``max_skipped`` the share of pictures that may have no label or be no picture;
    ``take`` and ``seed`` draw a subset.
    Raises ``UserError``, with counts and names, where there is no picture or more of them than that cannot be used.
    """

    def __init__(
        self, folder: Path, question: str, max_skipped: float = 0.0, take: int | None = None, seed: int = 0
    ) -> None:
        self.folder, self.question = folder, question
        if not folder.is_dir():
            raise UserError(f"folder of photos {folder}: not found. Give it as tune.data.photos")
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        beside = any(path.with_suffix(".txt").is_file() for path in found)
        photos = [(path.relative_to(folder), _beside(path) if beside else _above(path, folder)) for path in found]
        judged = [_fault(folder / path, label, beside) for path, label in photos]
        faults = [fault for fault in judged if fault]
        good = [photo for photo, fault in zip(photos, judged, strict=True) if fault is None]
        self.audit = Audit(
            len(photos),
            len(faults),
            len(photos),
            0,
            faults[:NAMED],
            files.digest([[str(path), label, (folder / path).stat().st_mtime_ns] for path, label in good]),
        )
        if not good or len(faults) > max_skipped * len(photos):
            raise UserError(f"{self.audit.message(folder, folder)} (tune.data.max_skipped={max_skipped:g})")
        self.numbers = subset(len(good), take, seed)
        self.photos = [good[i] for i in self.numbers]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.photos[index]
        parts = ((Role.IMAGE, str(path)), (Role.QUESTION, self.question), (Role.ANSWER, label))
        return Sample(str(path), Conversation(str(path), parts).prompt(self.folder))

    def lengths(self, image: int) -> np.ndarray:
        return np.array([len(self.question) + len(label) + image for _, label in self.photos])

    def name(self, index: int) -> str:
        return str(self.photos[index][0])


def _beside(path: Path) -> str | None:
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _above(path: Path, folder: Path) -> str | None:
    return None if path.parent == folder else path.parent.name.replace("_", " ")


def _fault(path: Path, label: str | None, beside: bool) -> str | None:
    if not label:
        return f"{path.name}: " + (
            f"has no label in {path.with_suffix('.txt').name}"
            if beside
            else "lies in no folder that names it, and no .txt file beside it does"
        )
    try:
        pictures.size(path)
    except pictures.Unreadable as error:
        return str(error)
    return None

"""A folder of labelled photos as training samples: a question, and the label as its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from factory import code, files
from factory.corpus.audit import Audit
from factory.corpus.conversation import Conversation, Unusable
from factory.corpus.index import Check
from factory.corpus.kept import keep, kept
from factory.corpus.order import subset
from factory.corpus.source import Sample
from factory.data import pictures
from factory.data.prompt import Role
from factory.errors import UserError

Photo = tuple[Path, str | None]  # relative to the folder, and its label


class PhotoFolder:
    """Pictures under ``folder``, in the order of their paths. A photo's label is the text of the .txt file beside it
    (``cat.jpg``, ``cat.txt``); where no picture has one, the name of the folder that it lies in (``cat/1.jpg``).

    Args: ``question`` is asked of each; ``max_skipped`` the share of pictures that may have no label or be no picture;
    ``take`` and ``seed`` draw a subset; ``check``, ``decode``, ``tell`` and ``cache`` are those of
    ``ConversationFile``.
    Raises ``UserError``, with counts and names, where there is no picture or more of them than that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        question: str,
        max_skipped: float = 0.0,
        take: int | None = None,
        seed: int = 0,
        check: Check | None = None,
        decode: bool = False,
        tell: Callable[[Audit], None] = lambda _: None,
        cache: Path | None = None,
    ) -> None:
        self.folder, self.question = folder, question
        if not folder.is_dir():
            raise UserError(f"folder of photos {folder}: not found. Give it as tune.data.photos")
        suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
        beside = any(path.with_suffix(".txt").is_file() for path in found)
        photos = [(path.relative_to(folder), _beside(path) if beside else _above(path, folder)) for path in found]
        about = [str(folder.resolve()), question, code.of(PhotoFolder), check and check.identity, decode]
        states = files.digest([[str(path), label, _state(folder / path)] for path, label in photos])
        report = cache and cache / f"photos-{files.digest(about)[:16]}.json"
        known = _known(kept(report) if report else None, states, len(photos))
        self.audit, usable = known or self._audited(photos, beside, check, decode, states)
        if report and not known:
            keep(report, {"states": states, "usable": usable, "audit": self.audit.record()})
        good = [photos[i] for i in usable]
        tell(self.audit)
        self.audit.allow(max_skipped, folder, folder)
        self.numbers = subset(len(good), take, seed)
        self.photos = [good[i] for i in self.numbers]

    def _audited(
        self, photos: Sequence[Photo], beside: bool, check: Check | None, decode: bool, states: str
    ) -> tuple[Audit, list[int]]:
        """What is found where every photo is looked at, and the numbers of those that can be used."""
        audit, usable = Audit(times=states), []
        for i, (path, label) in enumerate(photos):
            fault = _fault(self._conversation(path, label), self.folder, label, beside, check, decode)
            audit.add(str(path), len(self.question) + len(label or ""), 1, fault)
            usable += [i] if fault is None else []
        good = [[str(photos[i][0]), photos[i][1], pictures.stamp(self.folder / photos[i][0])] for i in usable]
        audit.digest = files.digest([good, self.question, pictures.PROTOCOL])
        return audit, usable

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.photos[index]
        return Sample(str(path), self._conversation(path, label).prompt(self.folder))

    def _conversation(self, path: Path, label: str | None) -> Conversation:
        parts = ((Role.IMAGE, str(path)), (Role.QUESTION, self.question), (Role.ANSWER, label or ""))
        return Conversation(str(path), parts)

    def lengths(self, image: int) -> np.ndarray:
        return np.array([len(self.question) + len(label) + image for _, label in self.photos])

    def name(self, index: int) -> str:
        return str(self.photos[index][0])

    def task(self, index: int) -> str:
        return ""


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _known(record: Mapping[str, Any] | None, states: str, photos: int) -> tuple[Audit, list[int]] | None:
    """What a ``record`` says of photos in these very ``states``; None where it says nothing sound."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        if record and record["states"] == states:
            audit, usable = Audit.of(record["audit"]), record["usable"]
            if audit.samples == photos and all(isinstance(i, int) and 0 <= i < photos for i in usable):
                return audit, usable
    return None


def _beside(path: Path) -> str | None:
    try:
        return path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""


def _above(path: Path, folder: Path) -> str | None:
    return None if path.parent == folder else path.parent.name.replace("_", " ")


def _fault(
    photo: Conversation, folder: Path, label: str | None, beside: bool, check: Check | None, decode: bool
) -> Unusable | None:
    path = folder / photo.id
    if not label:
        why = (
            f"has no label in {path.with_suffix('.txt').name}"
            if beside
            else "lies in no folder that names it, and no .txt file beside it does"
        )
        return Unusable(why, "no label")
    try:
        size = pictures.load(path).size if decode else pictures.size(path)
        if check is not None:
            check(photo, [size])
    except pictures.Unreadable as error:
        return Unusable(f"its image cannot be read: {error}", "image cannot be read")
    except Unusable as error:
        return error
    return None

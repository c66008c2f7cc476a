"""Samples made ready once: tokens, labels, and what the frozen vision tower makes of their pictures, kept on disk.

For a tower that is not trained and a small model, most of a training step would be the tower's work, the same in every
epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factory import files
from factory.corpus.collate import Collator, collate
from factory.corpus.labels import Example
from factory.errors import UserError
from factory.launch.world import World
from factory.model.compose import VisionTower
from factory.model.encode import Encoded
from factory.model.view import ModelView

CHUNK = 64
KEPT = torch.float16
PIXELS = "pixel_values"


def prepare(
    view: ModelView,
    collator: Collator,
    n: int,
    folder: Path,
    world: World,
    show: Callable[[int], None] = lambda _: None,
) -> Prepared:
    """The first ``n`` samples of ``collator`` and one without a label, in ``folder``, by all ranks together; what is
    there already is taken, and what is cut or misshapen made anew.

    ``show`` is told now and then how many of the ``chunks(n)`` are there.
    Raises ``UserError`` for a model whose pictures cannot be replaced by features.
    """
    packing_tower(view)
    show(there(folder))
    for chunk in world.share(range(chunks(n))):
        numbers = range(chunk * CHUNK, min((chunk + 1) * CHUNK, n))
        if not _whole(_file(folder, chunk), len(numbers) + (chunk == chunks(n) - 1)):
            _write(view, collator, numbers, chunk == chunks(n) - 1, _file(folder, chunk))
            show(there(folder))
    world.meet("the samples are made ready")
    return Prepared(folder, n)


def packing_tower(view: ModelView) -> VisionTower:
    """The view's vision tower, whose features can be kept. Raises ``UserError`` for a model whose features cannot."""
    if not isinstance(tower := view.vision_tower, VisionTower):
        raise UserError("tune.data.cache_features needs a model of model.compose; leave it out for this one")
    return tower


def chunks(n: int) -> int:
    """Files that ``n`` samples and the blank one take."""
    return n // CHUNK + 1


def there(folder: Path) -> int:
    return len(list(folder.glob("*.safetensors")))


def _file(folder: Path, chunk: int) -> Path:
    return folder / f"{chunk:06d}.safetensors"


def _whole(path: Path, rows: int) -> bool:
    """Whether a file is there and holds what ``_write`` writes of ``rows`` samples."""
    try:
        with safe_open(path, "np") as file:
            lengths, pictures = file.get_tensor("lengths"), file.get_tensor("pictures")
            words = [file.get_slice(name).get_shape() for name in ("ids", "roles", "labels")]
            features = file.get_slice("features").get_shape()[0]
    except (OSError, SafetensorError):
        return False
    shaped = len(lengths) == len(pictures) == rows and all(shape == [lengths.sum()] for shape in words)
    return shaped and features == pictures.sum()


def _write(view: ModelView, collator: Collator, numbers: Sequence[int], with_blank: bool, path: Path) -> None:
    rows = [collator.examples([i], blank=False) for i in numbers] + ([collator.examples([])] if with_blank else [])
    examples = [example for found, _ in rows for example in found]
    pixels = [images[PIXELS] for _, images in rows if PIXELS in images]
    features = _features(view, torch.cat(pixels)) if pixels else torch.zeros(0, 0, dtype=KEPT)
    files.write_safetensors(
        path,
        {
            "ids": _flat([e.encoded.ids for e in examples]),
            "roles": _flat([e.encoded.roles for e in examples]),
            "labels": _flat([e.labels for e in examples]),
            "lengths": torch.tensor([len(e.labels) for e in examples]),
            "pictures": torch.tensor([len(images.get(PIXELS, ())) for _, images in rows]),
            "features": features,
        },
    )


def _flat(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.int32)


@torch.no_grad()
def _features(view: ModelView, pixels: Tensor) -> Tensor:
    tower = packing_tower(view)
    return tower.pack(tower(pixels.to(view.device, view.dtype))).to("cpu", KEPT)


class Prepared:
    """What ``prepare`` has written: ``n`` samples by number, and number ``n``, a blank picture with nothing to
    learn.
    """

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n = folder, n
        self.of = lru_cache(maxsize=None)(self._chunk)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> tuple[Example, Tensor]:
        """A sample's tokens and labels, and its pictures' features [pictures, f]."""
        chunk, at = divmod(number, CHUNK)
        words, starts, pictures, path = self.of(chunk)
        ids, roles, labels = (row[starts[at] : starts[at + 1]].tolist() for row in words)
        with safe_open(path, "pt") as file:
            features = file.get_slice("features")[int(pictures[at]) : int(pictures[at + 1])]
        return Example(Encoded(ids, roles, ""), labels), features

    def lengths(self) -> np.ndarray:
        """Tokens of each sample [n]."""
        return np.concatenate([np.diff(self.of(chunk)[1]) for chunk in range(chunks(self.n))])[: self.n]

    def _chunk(self, chunk: int) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, Path]:
        path = _file(self.folder, chunk)
        with safe_open(path, "np") as file:
            words = tuple(file.get_tensor(name) for name in ("ids", "roles", "labels"))
            starts, pictures = (
                np.concatenate([[0], np.cumsum(file.get_tensor(name))]) for name in ("lengths", "pictures")
            )
        return words, starts, pictures, path


class PreparedCollator:
    """Sample numbers to a training batch whose pictures are their features; a batch without a picture gets the blank
    one, as in ``Collator``.
    """

    def __init__(self, view: ModelView, prepared: Prepared) -> None:
        self.view, self.prepared = view, prepared

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = [self.prepared[i] for i in numbers]
        if not any(len(features) for _, features in rows):
            rows.append(self.prepared[self.prepared.n])
        pictures = torch.cat([features for _, features in rows if len(features)])
        return collate(self.view, [example for example, _ in rows], {PIXELS: pictures})

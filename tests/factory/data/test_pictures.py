"""Pictures of every kind to RGB, against sums by hand, and what is no picture in one line that names it."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from eval_suite.released import asked
from factory.corpus.conversation import parse
from factory.data import pictures
from factory.data.pictures import Unreadable

NOISE = np.random.default_rng(0)
PHOTO = NOISE.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(8, 32)


def pixels(path) -> np.ndarray:
    picture = pictures.load(path)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def grey(path) -> np.ndarray:
    found = pixels(path)
    assert (found == found[..., :1]).all()
    return found[..., 0]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_is_scaled(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(DEEP).save(path)
    assert np.array_equal(grey(path), np.floor(DEEP * (255 / 65535) + 0.5))
    assert len(np.unique(grey(path))) == 256


@pytest.mark.parametrize(
    ("values", "right"),
    [
        (np.arange(256, dtype=np.int32).reshape(8, 32), np.arange(256).reshape(8, 32)),
        (DEEP.astype(np.int32), np.rint(DEEP / 257)),
        (np.linspace(0, 2**31 - 1, 256).reshape(8, 32).astype(np.int32), np.arange(256).reshape(8, 32)),
        (np.linspace(-500, 500, 256).reshape(8, 32).astype(np.int32), np.arange(256).reshape(8, 32)),
        (np.linspace(0, 1, 256, dtype=np.float32).reshape(8, 32), np.arange(256).reshape(8, 32)),
        (np.arange(256, dtype=np.float32).reshape(8, 32), np.arange(256).reshape(8, 32)),
        (np.linspace(-3, 9, 256, dtype=np.float32).reshape(8, 32), np.arange(256).reshape(8, 32)),
    ],
    ids=["8 of 32", "16 of 32", "31 of 32", "signed", "floats to 1", "floats to 255", "any floats"],
)
def test_longer_grey_is_scaled_too(tmp_path, values, right):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert np.abs(grey(tmp_path / "a.tiff") - right).max() <= 1


def test_a_grey_of_one_value_and_one_that_is_no_number(tmp_path):
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert (grey(tmp_path / "a.tiff").flatten()[1:] == 128).all()
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "b.tiff")
    assert len(np.unique(grey(tmp_path / "b.tiff"))) == 1


@pytest.mark.parametrize(("top", "black"), [(1.0, 0.0), (900.0, -900.0), (90_000.0, 70_000.0)])
def test_what_is_infinite_is_the_nearest_number_and_does_not_darken_the_rest(tmp_path, top, black):
    finite = np.array([top, black, black, *np.linspace(black, top, 13)], np.float32).reshape(4, 4)
    marked = finite.copy()
    marked[0, :3] = np.inf, -np.inf, np.nan
    Image.fromarray(finite).save(tmp_path / "a.tiff")
    Image.fromarray(marked).save(tmp_path / "b.tiff")
    assert len(np.unique(grey(tmp_path / "a.tiff"))) == 13
    assert np.array_equal(grey(tmp_path / "b.tiff"), grey(tmp_path / "a.tiff"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=exif)
    right = {
        1: PHOTO,
        2: PHOTO[:, ::-1],
        3: PHOTO[::-1, ::-1],
        4: PHOTO[::-1],
        5: PHOTO.swapaxes(0, 1),
        6: np.rot90(PHOTO, -1),
        7: np.rot90(PHOTO, 2).swapaxes(0, 1),
        8: np.rot90(PHOTO),
    }[orientation]
    assert np.array_equal(pixels(tmp_path / "a.png"), right)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (colour * (alpha[..., None] / 255.0)) + 255.0 * (1 - alpha[..., None] / 255.0)


def test_what_is_transparent_lies_over_white(tmp_path):
    alpha = NOISE.integers(0, 256, (5, 7), dtype=np.uint8)
    alpha[0] = 0
    Image.fromarray(np.dstack([PHOTO, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(pixels(tmp_path / "rgba.png") - over_white(PHOTO, alpha)).max() <= 1
    assert (pixels(tmp_path / "rgba.png")[0] == 255).all()
    Image.fromarray(np.dstack([PHOTO[..., 0], alpha])).save(tmp_path / "la.png")
    assert np.abs(grey(tmp_path / "la.png") - over_white(PHOTO[..., :1], alpha)[..., 0]).max() <= 1


def test_a_transparent_value_lies_over_white_in_palettes_and_in_deep_grey(tmp_path):
    drawn = Image.new("P", (4, 1))
    drawn.putpalette([0, 0, 0, 200, 10, 20])
    drawn.putdata([0, 1, 0, 1])
    for suffix in ("png", "gif"):
        drawn.save(tmp_path / f"p.{suffix}", transparency=0)
        assert pixels(tmp_path / f"p.{suffix}")[0].tolist() == [[255] * 3, [200, 10, 20]] * 2
    drawn.save(tmp_path / "plain.png")
    assert pixels(tmp_path / "plain.png")[0].tolist() == [[0] * 3, [200, 10, 20]] * 2
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "deep.png", transparency=257)
    assert grey(tmp_path / "deep.png").tolist() == [[0, 255, 255]]


def test_one_bit_four_colours_and_an_animation(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert grey(tmp_path / "bits.png").tolist() == [[255, 0]]
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "print.tiff")
    assert pixels(tmp_path / "print.tiff")[0, 0].tolist() == [0, 255, 255]
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        lossless = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:], **lossless)
        assert pixels(tmp_path / f"film.{suffix}")[0, 0].tolist() == [255, 0, 0]


def png(path, width: int, height: int) -> None:
    """A PNG of which hardly more than the header is there."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.fixture
def broken(tmp_path):
    """Files that are no pictures, each with what its line should say."""
    (tmp_path / "words.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    png(tmp_path / "bomb.png", 30000, 30000)
    png(tmp_path / "large.png", 10000, 10000)
    (tmp_path / "drawing.eps").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    return {
        "words.jpg": "is no picture",
        "empty.jpg": "is no picture",
        "folder.jpg": "is a folder",
        "pipe.jpg": "is a pipe",
        "bomb.png": "more than the 89,478,485 pixels",
        "large.png": "more than the 89,478,485 pixels",
        "drawing.eps": "EPS is a drawing",
        "gone.jpg": "not found",
    }


def test_what_is_no_picture_is_told_in_one_line_that_names_it(tmp_path, broken):
    for name, why in broken.items():
        for look in (pictures.load, pictures.size):
            with pytest.raises(Unreadable, match=why) as told:
                look(tmp_path / name)
            assert name in str(told.value) and "\n" not in str(told.value)


def test_cut_and_damaged_files_never_raise_anything_else(tmp_path):
    whole = {}
    photo = Image.fromarray(NOISE.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        out = io.BytesIO()
        photo.save(out, form)
        whole[form] = out.getvalue()
    for form, data in whole.items():
        assert pictures.decode(data, form).size == (40, 40)
        with pytest.raises(Unreadable, match=f"^{form}: "):
            pictures.decode(data[: len(data) // 2], form)
        for _ in range(20):
            bad = bytearray(data)
            for at in NOISE.integers(0, len(bad), 8):
                bad[at] ^= 0xFF
            try:
                pictures.decode(bytes(bad), form)
            except Unreadable as error:
                assert str(error).startswith(f"{form}: ") and "\n" not in str(error)


def test_the_header_alone_tells_the_size(tmp_path):
    png(tmp_path / "a.png", 30, 20)
    assert pictures.size(tmp_path / "a.png") == (30, 20)


def test_training_and_benchmarks_see_the_same_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])).save(tmp_path / "a.png", exif=exif)
    right = pixels(tmp_path / "a.png")
    record = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}],
    }
    for prompt in (parse(record, 0).prompt(tmp_path), asked(tmp_path / "a.png")()):
        assert np.array_equal(np.asarray(prompt.images[0]), right)


def test_a_plain_photo_is_left_as_it_is(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert ImageOps.exif_transpose(image).convert("RGB").tobytes() == pictures.load(tmp_path / "a.jpg").tobytes()

"""Our PNGs: read by another's reader to the last pixel, well-formed to a strict eye, hardly larger than Pillow's."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from darkroom.output.png import png

TEXTS = {"parameters": "ein grüner Würfel", "darkroom": '{"prompt": "猫"}'}

Pixels = NDArray[np.uint8]


def _grid(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x // 2, y // 2, (x + y) // 4], -1).astype(np.uint8)


def _grain(height: int, width: int, deviation: float) -> Pixels:
    noise = np.random.default_rng(7).normal(0, deviation, (height, width, 3))
    waves = 100 + 80 * np.sin(_grid(height, width) / 20)
    return (waves + noise).clip(0, 255).astype(np.uint8)


PICTURES: dict[str, Pixels] = {
    "noise": np.random.default_rng(1).integers(0, 256, (96, 80, 3), dtype=np.uint8),
    "extremes": np.random.default_rng(2).choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), (64, 67, 3)),
    "steps": np.random.default_rng(3).integers(0, 3, (70, 64, 3), dtype=np.uint8),
    "gradient": _grid(512, 512),
    "grain": _grain(256, 300, 3),
    "flat": np.full((200, 100, 3), 200, np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "one pixel": np.array([[[1, 2, 255]]], np.uint8),
    "one line": _grain(1, 500, 3),
    "one column": _grain(500, 1, 3),
    "wide": _grain(3, 5000, 3),
    "larger than a block": np.random.default_rng(4).integers(0, 40, (1030, 65, 3), dtype=np.uint8),
}


def encoded(pixels: Pixels) -> bytes:
    return png(Image.fromarray(pixels), TEXTS)


def pillow(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """All chunks, their sums checked, up to the very end of the file."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length]) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        place += 12 + length
    assert place == len(data)
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_another_reader_finds_every_pixel(name: str) -> None:
    image = Image.open(io.BytesIO(encoded(PICTURES[name])))
    image.load()
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), PICTURES[name])
    assert {key: image.info[key] for key in TEXTS} == TEXTS


@pytest.mark.parametrize("name", PICTURES)
def test_the_file_is_well_formed(name: str) -> None:
    height, width, _ = PICTURES[name].shape
    found = chunks(encoded(PICTURES[name]))
    assert [kind for kind, _ in found] == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
    header, latin, international, pixels, end = (body for _, body in found)
    assert struct.unpack(">IIBBBBB", header) == (width, height, 8, 2, 0, 0, 0)
    assert latin == "parameters\0ein grüner Würfel".encode("latin-1")
    assert international == b"darkroom\0" + bytes(4) + '{"prompt": "猫"}'.encode()
    assert end == b""
    stream = zlib.decompressobj()
    lines = stream.decompress(pixels)
    assert stream.eof
    assert not stream.unused_data
    assert len(lines) == height * (1 + 3 * width)
    assert set(lines[:: 1 + 3 * width]) == {4}


@pytest.mark.parametrize("name", ["noise", "gradient", "grain", "flat", "larger than a block"])
def test_it_is_hardly_larger_than_pillow_s(name: str) -> None:
    texts = sum(12 + len(body) for kind, body in chunks(encoded(PICTURES[name])) if kind in (b"tEXt", b"iTXt"))
    assert len(encoded(PICTURES[name])) - texts <= 1.07 * len(pillow(PICTURES[name]))


def test_the_same_picture_is_the_same_bytes() -> None:
    assert encoded(PICTURES["grain"]) == encoded(PICTURES["grain"].copy())

"""Pictures that a job begins with: every kind made on the spot, by Pillow or by hand where Pillow cannot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from darkroom.inputs import images
from darkroom.inputs.images import BadPicture, Truncated

ROOM = {"max_bytes": 1 << 20, "max_pixels": 1 << 20}


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow does not write. ``rows`` begin each with a 0 byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before) + body + after + chunk(b"IEND", b"")


def pixels(image: Image.Image) -> list[Any]:
    """Row by row."""
    return np.asarray(image).reshape(image.height * image.width, -1).squeeze(-1 if image.mode == "L" else ()).tolist()


def two_halves() -> Image.Image:
    """40 × 20, red on the left, blue on the right."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# ---------------------------------------------------------------- what is taken


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_three_kinds_are_taken(kind: str) -> None:
    data = file_of(two_halves(), kind)
    assert images.check(data, **ROOM) == (40, 20)
    image = images.load(data)
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(two_halves())).mean() <= (0 if kind == "PNG" else 5)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind: str, orientation: int) -> None:
    data = file_of(two_halves(), kind, exif=turned(orientation))
    size = images.check(data, **ROOM)
    image = images.load(data)
    assert image.size == size == ((20, 40) if orientation > 4 else (40, 20))
    assert images.load_mask(data).size == size
    # where the red, left half of the stored pixels is seen, by the EXIF standard's table
    red = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    place = {"left": (2, 10), "right": (37, 10), "top": (10, 2), "bottom": (10, 37)}[red]
    pixel = image.getpixel(place)
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200 > 50 > pixel[2]


def test_a_picture_is_turned_as_its_xmp_says_where_there_is_no_exif() -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    data = file_of(two_halves(), "JPEG", xmp=packet)
    assert images.check(data, **ROOM) == images.load(data).size == (20, 40)


def test_exif_behind_the_pixels_of_a_png_counts_and_nothing_is_decoded_to_find_it() -> None:
    exif = turned(6).tobytes().removeprefix(b"Exif\0\0")
    data = png(3, 1, 8, 2, b"\0" + bytes(9), after=chunk(b"eXIf", exif))
    assert images.check(data, **ROOM) == images.load(data).size == (1, 3)
    broken = png(3, 1, 8, 2, b"\0", after=chunk(b"eXIf", exif))
    assert images.check(broken, **ROOM) == (1, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_a_broken_exif_block_does_not_make_the_picture_a_bad_one(exif: bytes) -> None:
    data = file_of(two_halves(), "JPEG", exif=exif)
    assert images.check(data, **ROOM) == images.load(data).size == (40, 20)


def test_an_orientation_that_there_is_not_is_none() -> None:
    data = file_of(two_halves(), "JPEG", exif=turned(77))
    assert images.load(data).size == (40, 20)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    loaded = images.load(file_of(image, kind, **options))
    assert pixels(loaded) == [[255, 0, 0], [255, 255, 255], [127, 127, 127]]


def test_transparency_of_every_png_is_laid_on_white() -> None:
    grey_alpha = png(2, 1, 8, 4, b"\0" + bytes([10, 255, 10, 0]))
    assert pixels(images.load(grey_alpha)) == [[10] * 3, [255] * 3]
    wide_alpha = png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 2570, 65535, 2570, 0))
    assert pixels(images.load(wide_alpha)) == [[10] * 3, [255] * 3]
    key = png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), chunk(b"tRNS", struct.pack(">3H", 4, 5, 6)))
    assert pixels(images.load(key)) == [[1, 2, 3], [255] * 3]
    wide_key = png(
        2, 1, 16, 2, b"\0" + struct.pack(">6H", 257, 514, 771, 2570, 2827, 3084),
        chunk(b"tRNS", struct.pack(">3H", 2570, 2827, 3084)),
    )  # fmt: skip
    assert pixels(images.load(wide_key)) == [[1, 2, 3], [255] * 3]
    wide_grey_key = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 257, 2570), chunk(b"tRNS", struct.pack(">H", 2570)))
    assert pixels(images.load(wide_grey_key)) == [[1] * 3, [255] * 3]


@pytest.mark.parametrize("alphas", [bytes([255, 0]), bytes([255, 128])])
def test_a_palette_with_transparency(alphas: bytes) -> None:
    """One entry that is wholly transparent, and one that is half so, are two things to Pillow."""
    data = png(2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", bytes([9, 8, 7, 0, 0, 0])), chunk(b"tRNS", alphas))
    assert pixels(images.load(data)) == [[9, 8, 7], [255 - alphas[1]] * 3]


def test_grey_black_and_white_and_palettes_become_rgb() -> None:
    for mode in ("1", "L", "P"):
        image = images.load(file_of(two_halves().convert(mode)))
        assert (image.mode, image.size) == ("RGB", (40, 20))
    assert pixels(images.load(file_of(Image.new("L", (1, 1), 77)))) == [[77] * 3]


def test_16_bits_are_scaled_and_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert pixels(images.load(file_of(grey))) == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    assert pixels(images.load_mask(file_of(grey))) == [0, 1, 128, 255]
    colour = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 257, 0))
    assert pixels(images.load(colour)) == [[0, 128, 255], [255, 1, 0]]


def test_a_photo_with_a_second_picture_inside_is_a_photo() -> None:
    """Phones write them: a depth map or a preview, in the form of an MPO."""
    data = file_of(two_halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert images.check(data, **ROOM) == images.load(data).size == (40, 20)


# ---------------------------------------------------------------- colour


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of ICC's second version, as short as may be."""
    place = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    connection = b"XYZ " if space == b"RGB " else b"Lab "
    header = struct.pack(">I4sI4s4s4s", place + len(body), bytes(4), 0x02400000, b"mntr", space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + table + body


def xyz(*numbers: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(number * 65536) for number in numbers))


def swapped() -> bytes:
    """RGB whose red is green and whose green is red."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    colours = {
        b"rXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"gXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7142),
        b"wtpt": xyz(0.9642, 1, 0.8249),
    }
    return profile(b"RGB ", colours | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def inks() -> bytes:
    """CMYK whose inks are all grey: a table with one entry for every set of inks, each a lightness."""
    matrix = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    grid = b"".join(bytes([255 - 60 * number.bit_count(), 128, 128]) for number in range(16))
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + straight * 4 + grid + straight * 3
    return profile(b"CMYK", {b"A2B0": table, b"wtpt": xyz(0.9642, 1, 0.8249)})


def near(image: Image.Image, *colour: int) -> bool:
    pixel = image.getpixel((8, 8))
    assert isinstance(pixel, tuple)
    return all(abs(got - wanted) <= 6 for got, wanted in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_are_converted_by_the_profile_in_the_file(kind: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert near(images.load(file_of(red, kind, icc_profile=swapped(), quality=100)), 0, 255, 0)
    assert near(images.load(file_of(red, kind, quality=100)), 255, 0, 0)


def test_a_profile_of_srgb_changes_no_pixel() -> None:
    from PIL import ImageCms

    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    every = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))
    assert pixels(images.load(file_of(every, icc_profile=own))) == pixels(every)


def test_cmyk_is_converted_with_its_profile_and_without() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert near(images.load(file_of(cyan, "JPEG", quality=100)), 0, 255, 255)
    with_profile = images.load(file_of(cyan, "JPEG", quality=100, icc_profile=inks()))
    red, green, blue = with_profile.getpixel((8, 8))  # type: ignore[misc]
    assert abs(red - green) <= 2
    assert abs(green - blue) <= 2
    assert 150 < red < 220


@pytest.mark.parametrize("broken", [b"nonsense", swapped()[:200], inks()], ids=["nonsense", "cut", "for other inks"])
def test_a_profile_that_does_not_work_is_left_out(broken: bytes) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    assert near(images.load(file_of(red, icc_profile=broken)), 255, 0, 0)


# ---------------------------------------------------------------- masks


def test_of_a_mask_white_is_painted() -> None:
    mask = Image.new("L", (3, 1))
    mask.putdata([0, 128, 255])
    assert pixels(images.load_mask(file_of(mask))) == [0, 128, 255]
    assert pixels(images.load_mask(file_of(mask.convert("RGB")))) == [0, 128, 255]
    assert pixels(images.load_mask(file_of(mask.convert("P")))) == [0, 128, 255]


def test_of_a_mask_with_transparency_what_is_opaque_is_painted() -> None:
    mask = Image.new("RGBA", (3, 1))
    mask.putdata([(255, 255, 255, 0), (0, 0, 0, 255), (255, 255, 255, 100)])
    assert pixels(images.load_mask(file_of(mask))) == [0, 255, 100]


def test_an_alpha_that_is_opaque_everywhere_says_nothing() -> None:
    mask = Image.new("RGBA", (2, 1))
    mask.putdata([(255, 255, 255, 255), (0, 0, 0, 255)])
    assert pixels(images.load_mask(file_of(mask))) == [255, 0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "AVIF", "ICO"])
def test_other_kinds_are_refused_by_name(kind: str) -> None:
    name = "an icon" if kind == "ICO" else f"an {kind}" if kind == "AVIF" else f"a {kind}"
    data = file_of(Image.new("RGB", (32, 32)), kind)
    for take in takers():
        with pytest.raises(BadPicture, match=f"the file is {name}, which darkroom does not take") as raised:
            take(data)
        assert raised.value.hint == "save it as PNG, JPEG or WebP"


def takers() -> list[Callable[[bytes], Any]]:
    return [lambda data: images.check(data, **ROOM), images.load, images.load_mask]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "no picture that darkroom knows"),
        (b'{"prompt": "a cat"}', "no picture that darkroom knows"),
        (b"\n<svg xmlns=''/>", "is an SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a film"),
        (b"\x89PNG\r\n\x1a\n", "ends too early"),
        (b"\xff\xd8\xff", "ends too early"),
        (b"RIFF\xff\0\0\0WEBP", "ends too early"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b""), "damaged"),
        (b"RIFF\x04\0\0\0WEBP", "damaged"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    for take in takers():
        with pytest.raises(BadPicture, match=message):
            take(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animated_picture_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    for take in takers():
        with pytest.raises(BadPicture, match="animated: it has 3 frames"):
            take(data)


def test_bytes_and_pixels_are_limited() -> None:
    data = file_of(two_halves())
    assert images.check(data, max_bytes=len(data), max_pixels=800) == (40, 20)
    with pytest.raises(BadPicture, match=f"too large: {len(data)} bytes, where 50 are allowed"):
        images.check(data, max_bytes=50, max_pixels=800)
    with pytest.raises(BadPicture, match="too many pixels: 40 × 20, where 799 are allowed"):
        images.check(data, max_bytes=len(data), max_pixels=799)


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    """Both sides of Pillow's own limit, which is an error of its own and before that a warning."""
    data = png(side, side, 8, 6, b"\0")
    with pytest.raises(BadPicture, match="too many pixels"):
        images.check(data, **ROOM)


def test_text_that_inflates_a_thousandfold_is_refused() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))
    data = png(1, 1, 8, 2, b"\0\0\0\0", text)
    assert len(data) < 100_000
    with pytest.raises(BadPicture, match="damaged"):
        images.check(data, **ROOM)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_file_that_is_cut_anywhere_is_told_apart_from_a_damaged_one(kind: str, progressive: bool) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    data = file_of(noise, kind, exif=turned(1), **({"progressive": progressive} if kind == "JPEG" else {}))
    images.check(data, **ROOM)
    with pytest.raises(Truncated):
        images.check(data[:-2], **ROOM)
    for length in range(12, len(data) - 20, 97):
        for take in takers():
            with pytest.raises(Truncated):
                take(data[:length])


def test_a_jpeg_with_a_preview_inside_is_whole_only_with_an_end_of_its_own() -> None:
    preview = file_of(Image.new("RGB", (8, 8)), "JPEG")
    data = file_of(two_halves(), "JPEG")
    marked = data[:2] + b"\xff\xe5" + struct.pack(">H", len(preview) + 2) + preview + data[2:]
    assert images.check(marked, **ROOM) == (40, 20)
    with pytest.raises(Truncated):
        images.check(marked[:-40], **ROOM)


def test_damage_within_is_a_sentence() -> None:
    data = bytearray(file_of(Image.effect_noise((64, 64), 90).convert("RGB")))
    middle = data.index(b"IDAT") + 200
    data[middle : middle + 50] = bytes(50)
    with pytest.raises(BadPicture, match="damaged") as raised:
        images.load(bytes(data))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_whatever_is_done_to_a_file_it_is_a_picture_or_a_sentence(kind: str) -> None:
    random = np.random.default_rng(1)
    image = Image.fromarray(random.integers(0, 256, (24, 32, 4), dtype=np.uint8))
    info = PngImagePlugin.PngInfo()
    info.add_itxt("note", "ü", zip=True)
    options = {"pnginfo": info} if kind == "PNG" else {"exif": turned(8)}
    whole = file_of(image.convert("RGB") if kind == "JPEG" else image, kind, icc_profile=swapped(), **options)
    for _ in range(300):
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 8)):
            data[place] = random.integers(0, 256)
        for take in takers():
            try:
                take(bytes(data))
            except BadPicture as error:
                assert str(error)
                assert error.hint

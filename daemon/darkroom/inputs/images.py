"""Pictures that a job begins with: whether they can be taken, decided by their headers, and then their pixels.

PNG, JPEG and WebP. ``check`` decodes nothing, so that a few bytes which stand for a billion pixels cost nothing.
What is refused is refused with a sentence; whatever Pillow raises in the depths of a broken file becomes one.

What the pixels are made of:

- turned as EXIF (or XMP) says;
- transparency laid on white, as A1111 does it; of a mask with transparency, what is opaque is painted, as there too;
- 16 bits scaled down to 8; CMYK and other spaces converted to sRGB by the profile in the file, where there is one.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("PNG", "JPEG", "WEBP")

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"

_OTHERS = {
    "a GIF": (b"GIF8",),
    "a TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "a BMP": (b"BM",),
    "a Photoshop file": (b"8BPS",),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "a PDF": (b"%PDF",),
    "an SVG": (b"<svg", b"<?xml"),
    "an icon": (b"\0\0\1\0",),
}
"""How files of kinds that are not taken begin."""

_BRANDS = {"a HEIC": (b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "an AVIF": (b"avif", b"avis")}
"""The same for what is in MPEG-4's container, from the ninth byte."""


class BadPicture(ValueError):
    """Not a picture that a job can begin with. ``hint`` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Truncated(BadPicture):
    """Its end is missing: damaged, or still being written. Time tells."""


def check(data: bytes, *, max_bytes: int, max_pixels: int) -> tuple[int, int]:
    """Width and height of the picture as it will be seen, turned as it says. No pixel is decoded.

    Raises BadPicture, or Truncated where that can be told cheaply; what is damaged within is found by ``load``.
    Pillow's own limit of 178 million pixels holds besides ``max_pixels``.
    """
    if len(data) > max_bytes:
        raise BadPicture(f"the file is too large: {len(data):,} bytes, where {max_bytes:,} are allowed", _SMALLER)
    with _open(data) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadPicture(
                f"the picture has too many pixels: {width} × {height}, where {max_pixels:,} are allowed", _SMALLER
            )
        if not _is_whole(data):
            raise _truncated()
        return (height, width) if _orientation(image, data) > 4 else (width, height)


def load(data: bytes) -> Image:
    """The picture, RGB. Raises BadPicture or Truncated."""
    from PIL import Image

    with _open(data) as opened:
        image = _upright(opened, data)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image)
            white.info = image.info
            image = white.convert("RGB")
        return _in_srgb(image)


def load_mask(data: bytes) -> Image:
    """The mask, L: 255 is painted, 0 is kept. Raises BadPicture or Truncated."""
    with _open(data) as opened:
        image = _upright(opened, data)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
            if alpha.getextrema() != (255, 255):
                return alpha
        return image.convert("RGB").convert("L")


_SMALLER = "scale it down, or ask for the limit in config.toml to be raised"
_SAVE_AS = "save it as PNG, JPEG or WebP"


def _truncated() -> Truncated:
    return Truncated("the picture's file ends too early", "it was not copied whole: copy it again")


@contextmanager
def _open(data: bytes) -> Iterator[Image]:
    """The picture, its header read. Whatever goes wrong while it is in use is raised as BadPicture or Truncated."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise Truncated("the picture's file is empty", "copy it again")
    other = _other_kind(data)
    if other:
        raise BadPicture(f"the file is {other}, which darkroom does not take", _SAVE_AS)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=KINDS) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a photo with a depth map or a preview beside it is a photo
                raise BadPicture(
                    f"the picture is animated: it has {frames} frames", "save the frame that is meant by itself"
                )
            yield image
    except (BadPicture, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"the picture has too many pixels ({error})", _SMALLER) from None
    except UnidentifiedImageError:
        if data.startswith((_PNG, _JPEG)) or _is_webp(data):
            raise _truncated() if not _is_whole(data) else _damaged("its header makes no sense") from None
        raise BadPicture("the file is no picture that darkroom knows", _SAVE_AS) from None
    except Exception as error:
        if not _is_whole(data) or "truncated" in str(error):
            raise _truncated() from None
        raise _damaged((str(error).splitlines() or [type(error).__name__])[0][:100]) from None


def _damaged(why: str) -> BadPicture:
    return BadPicture(f"the picture's file is damaged ({why})", "open it in another program and save it again")


def _other_kind(data: bytes) -> str | None:
    """What it is, where it is no kind that is taken, by its first bytes."""
    start = data[:256].lstrip() if data[:1].isspace() else data[:256]
    for kind, beginnings in _OTHERS.items():
        if start.startswith(beginnings):
            return kind
    if data[4:8] == b"ftyp":
        return next((kind for kind, brands in _BRANDS.items() if data[8:12] in brands), "a film")
    return None


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _is_whole(data: bytes) -> bool:
    """Whether the end is there, as far as the file's outline tells."""
    if data.startswith(_PNG):
        return any(kind == b"IEND" for kind, _ in _png_chunks(data))
    if _is_webp(data):
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return _jpeg_ends(data)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk that is there whole."""
    view, place = memoryview(data), len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        if end > len(data):
            return
        yield bytes(view[place + 4 : place + 8]), view[place + 8 : end - 4]
        place = end


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end of image follows the start of the first scan; previews before that have ends of their own."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return True  # no outline that we know: decoding will tell
        marker = data[place + 1]
        if marker == 0xDA:
            return data.rfind(b"\xff\xd9") > place
        if marker == 0xFF:  # a byte to fill
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _orientation(image: Image, data: bytes) -> int:
    """1 to 8 as EXIF counts; 1 where it does not say, or says nonsense."""
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it all to look behind the pixels
        image.info["exif"] = next((bytes(content) for kind, content in _png_chunks(data) if kind == b"eXIf"), None)
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # a broken EXIF block does not make the picture a bad one
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _upright(image: Image, data: bytes) -> Image:
    """Decoded, turned as it is to be seen, 8 bits a channel."""
    from PIL import Image

    orientation = _orientation(image, data)
    wide = image.mode == "RGB" and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
    image.load()
    if wide and "transparency" in image.info:  # Pillow took the upper bytes of the pixels, but not of this
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    if image.mode.startswith("I"):
        image = _in_8_bits(image)
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _in_8_bits(image: Image) -> Image:
    """Grey of 16 bits, which Pillow would clip at 255, scaled."""
    grey = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.info["transparency"] = transparent // 257
    return grey


def _in_srgb(image: Image) -> Image:
    """RGB, by the profile in the file where it has a sound one that is not sRGB's."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    space = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}.get(image.mode)
    if profile and space:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            fits = own.profile.xcolor_space.strip() == space
            if fits and not (space == "RGB" and "srgb" in ImageCms.getProfileDescription(own).casefold()):
                converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
                return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # profiles are broken more often than pictures: without it the colours are near enough
    return image.convert("RGB")

"""A picture at the size of a thumb."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

SIDE = 256
"""The longer side, in pixels."""


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most ``SIDE`` pixels a side; smaller pictures stay as they are."""
    image.draft("RGB", (SIDE, SIDE))
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=1.5)
    file = BytesIO()
    small.save(file, "JPEG", quality=82)
    return file.getvalue()


def thumbnail_of(data: bytes) -> bytes:
    """The same of a picture's file. Raises ValueError where the bytes are no picture, or not all of one."""
    try:
        with Image.open(BytesIO(data)) as image:
            return thumbnail(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a picture, or not all of one: {error}") from None

"""How large a picture becomes where the job does not say: as the one that it begins with, within the limits."""

from __future__ import annotations

from darkroom.config import Limits

SMALLEST = 64


def size_after(original: tuple[int, int], width: int | None, height: int | None, limits: Limits) -> tuple[int, int]:
    """Width and height in multiples of 8, in the original's proportions as nearly as that goes; what was asked stays.

    One that is over a limit is scaled down, so that the longer side is as long as may be.
    """
    own_width, own_height = original
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _side(own_height * width / own_width, limits.max_height)
    if height is not None:
        return _side(own_width * height / own_height, limits.max_width), height
    scale = min(
        1.0,
        limits.max_width / own_width,
        limits.max_height / own_height,
        (limits.max_pixels / (own_width * own_height)) ** 0.5,
    )
    width, height = _side(own_width * scale, limits.max_width), _side(own_height * scale, limits.max_height)
    while width * height > limits.max_pixels and max(width, height) > SMALLEST:  # both were rounded up
        width, height = (width - 8, height) if width >= height else (width, height - 8)
    return width, height


def _side(length: float, limit: int) -> int:
    """The nearest multiple of 8 from 64 to the limit."""
    return max(SMALLEST, min(round(length / 8) * 8, limit // 8 * 8))

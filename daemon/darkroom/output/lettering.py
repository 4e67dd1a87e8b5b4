"""Words on pictures: a font that comes with Pillow, lines that fit."""

from __future__ import annotations

import bisect
import unicodedata
from functools import lru_cache

from PIL import ImageFont

_ELLIPSIS = "…"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=16)
def font(size: int) -> Font:
    """Pillow's own, at a size in pixels. One for all sheets: what is known of its glyphs would keep each alive."""
    return ImageFont.load_default(size)


def legible(text: str, font: Font) -> str:
    """The text in characters that the font has: ``ü`` becomes ``u`` where it must, a script it lacks is left out."""

    def spelled(character: str) -> str:
        if character.isspace() or _has_glyph(font, character):
            return character
        if unicodedata.category(character) == "Pd":
            return "-"
        return "".join(part for part in unicodedata.normalize("NFKD", character) if _has_glyph(font, part))

    return "".join(map(spelled, text))


@lru_cache(maxsize=4096)
def _has_glyph(font: Font, character: str) -> bool:
    """Whether it is drawn otherwise than a character that no font has."""
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffd"))


def line_height(font: Font) -> int:
    """From one line to the next, in pixels."""
    return round((font.getbbox("Ág")[3]) * 1.3)


def wrap(text: str, font: Font, width: int, most: int) -> list[str]:
    """The text in lines that fit; after ``most`` of them it ends in an ellipsis."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < most:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        last = len(lines) == most - 1 and taken < len(words)
        line = " ".join(words[:taken]) + (_ELLIPSIS if last else "")
        lines.append(shorten(line, font, width))
        words = words[taken:]
    return lines


def shorten(text: str, font: Font, width: int) -> str:
    """The text if it fits, else as much of it as does and an ellipsis."""
    if font.getlength(text) <= width:
        return text
    text = text.rstrip(_ELLIPSIS)
    fitting = bisect.bisect_right(
        range(1, len(text) + 1), float(width), key=lambda length: font.getlength(text[:length] + _ELLIPSIS)
    )
    return text[:fitting].rstrip() + _ELLIPSIS

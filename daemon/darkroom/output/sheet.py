"""A contact sheet: many pictures on one, each with its prompt under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from darkroom.output.lettering import Font
from darkroom.output.lettering import font as _font
from darkroom.output.lettering import legible as _legible
from darkroom.output.lettering import line_height as _line_height
from darkroom.output.lettering import shorten as _shorten
from darkroom.output.lettering import wrap as _wrap
from darkroom.output.recipes import recipe_of

_PAPER = (18, 18, 20)
_EMPTY = (34, 34, 38)
_PROMPT = (226, 226, 230)
_NAME = (132, 132, 142)
_PROMPT_LINES = 3
_PROMPT_LENGTH = 600
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # all of which Pillow raises for broken files


@dataclass(frozen=True)
class _Card:
    """One picture as it will stand on the sheet. ``size`` is in pixels; ``lines`` is the wrapped prompt."""

    path: Path
    size: tuple[int, int]
    lines: list[str]
    name: str


def contact_sheet(pictures: Sequence[Path], *, cell: int | None = None, columns: int | None = None) -> Image.Image:
    """Draw the pictures in order, each fitted into a square of ``cell`` pixels, its prompt and file name under it.

    Small pictures are enlarged and stay crisp. The prompt is read from the picture. A file that is no picture gets an
    empty frame. Raises ValueError for none at all.
    """
    if not pictures:
        raise ValueError("a contact sheet needs a picture")
    cell = cell or (256 if len(pictures) <= 60 else 192 if len(pictures) <= 240 else 128)
    columns = columns or _columns(len(pictures))
    margin = cell // 8
    gap = cell // 16
    large, small = _font(max(11, round(cell * 0.056))), _font(max(10, round(cell * 0.047)))
    large_line, small_line = _line_height(large), _line_height(small)

    cards = [_card(path, cell, large, small) for path in pictures]
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [
        max(card.size[1] for card in row) + gap + max(len(card.lines) for card in row) * large_line + small_line
        for row in rows
    ]
    width = margin + columns * (cell + margin)
    height = margin + sum(heights) + margin * len(rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row, row_height in zip(rows, heights, strict=True):
        tallest = max(card.size[1] for card in row)
        for column, card in enumerate(row):
            left = margin + column * (cell + margin)
            sheet.paste(_fitted(card), (left + (cell - card.size[0]) // 2, top + (tallest - card.size[1]) // 2))
            baseline = top + tallest + gap
            for line in card.lines:
                draw.text((left, baseline), line, font=large, fill=_PROMPT)
                baseline += large_line
            draw.text((left, baseline), card.name, font=small, fill=_NAME)
        top += row_height + margin
    return sheet


def _columns(count: int) -> int:
    """A sheet a little wider than high, its last row as full as can be."""
    columns = math.ceil(math.sqrt(count * 1.4))
    rows = math.ceil(count / columns)
    return math.ceil(count / rows)


def _card(path: Path, cell: int, large: Font, small: Font) -> _Card:
    seed = prompt = None
    size = (cell, cell)
    try:
        with Image.open(path) as image:
            size = _fit(image.size, cell)
            own = recipe_of(image) or {}
            prompt, seed = own.get("prompt"), own.get("seed")
    except _UNREADABLE:
        prompt = "(cannot be read)"
    prompt = _legible(str(prompt or "")[:_PROMPT_LENGTH], large)
    lines = _wrap(prompt, large, cell, _PROMPT_LINES)
    name = path.stem if seed is None else f"{path.stem} · seed {seed}"
    return _Card(path, size, lines, _shorten(_legible(name, small), small, cell))


def _fit(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """The largest size of this shape in the square."""
    factor = cell / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fitted(card: _Card) -> Image.Image:
    """The picture at its size on the sheet. Enlarging keeps the edges of pixels: whole factor first, then reduced."""
    try:
        with Image.open(card.path) as image:
            image.draft("RGB", card.size)
            picture = image.convert("RGB")
    except _UNREADABLE:
        return Image.new("RGB", card.size, _EMPTY)
    factor = math.ceil(max(card.size) / max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize(card.size, Image.Resampling.LANCZOS)

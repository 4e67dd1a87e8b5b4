"""A contact sheet: many pictures on one, each with its prompt under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
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
    """One picture as it will stand on the sheet. ``lines`` is the wrapped prompt."""

    picture: Image.Image
    lines: list[str]
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """In pixels."""
        return self.picture.size


def contact_sheet(pictures: Sequence[Path], *, cell: int | None = None, columns: int | None = None) -> Image.Image:
    """Draw the pictures in order, each fitted into a square of ``cell`` pixels, its prompt and file name under it.

    Small pictures are enlarged and stay crisp. The prompt is read from the picture. A file that is no picture gets an
    empty frame. Raises ValueError for none at all.
    """
    sheet = Sheet(len(pictures), cell=cell)
    for index, path in enumerate(pictures):
        sheet.add(index, path.stem, path)
    return sheet.draw(columns)


class Sheet:
    """A contact sheet in the making: pictures are added one by one, and each is kept at its small size only."""

    def __init__(self, pictures: int, *, cell: int | None = None) -> None:
        self._cell = cell or (256 if pictures <= 60 else 192 if pictures <= 240 else 128)
        self._large, self._small = _font(max(11, round(self._cell * 0.056))), _font(max(10, round(self._cell * 0.047)))
        self._cards: dict[int, _Card] = {}

    def add(self, index: int, name: str, file: Path | BytesIO, thumbnail: bytes = b"") -> None:
        """A picture's place on the sheet, its name, and its file. With a ``thumbnail`` the file need not be decoded."""
        self._cards[index] = _card(file, name, self._cell, self._large, self._small, thumbnail)

    def __contains__(self, index: int) -> bool:
        return index in self._cards

    def jpeg(self) -> bytes:
        """The sheet as a file."""
        file = BytesIO()
        self.draw().save(file, "JPEG", quality=88)
        return file.getvalue()

    def draw(self, columns: int | None = None) -> Image.Image:
        """The sheet. Raises ValueError where nothing was added."""
        if not self._cards:
            raise ValueError("a contact sheet needs a picture")
        cards = [card for _, card in sorted(self._cards.items())]
        return _drawn(cards, columns or _columns(len(cards)), self._cell, self._large, self._small)


def _drawn(cards: Sequence[_Card], columns: int, cell: int, large: Font, small: Font) -> Image.Image:
    margin = cell // 8
    gap = cell // 16
    large_line, small_line = _line_height(large), _line_height(small)
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
            sheet.paste(card.picture, (left + (cell - card.size[0]) // 2, top + (tallest - card.size[1]) // 2))
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


def _card(file: Path | BytesIO, name: str, cell: int, large: Font, small: Font, thumbnail: bytes = b"") -> _Card:
    seed = prompt = None
    picture = Image.new("RGB", (cell, cell), _EMPTY)
    try:
        with Image.open(file) as image:
            picture = Image.new("RGB", _fit(image.size, cell), _EMPTY)
            own = recipe_of(image) or {}
            prompt, seed = own.get("prompt"), own.get("seed")
            if thumbnail:
                with Image.open(BytesIO(thumbnail)) as small_one:
                    picture = _fitted(small_one, picture.size)
            else:
                picture = _fitted(image, picture.size)
    except _UNREADABLE:
        prompt = prompt or "(cannot be read)"
    prompt = _legible(str(prompt or "")[:_PROMPT_LENGTH], large)
    lines = _wrap(prompt, large, cell, _PROMPT_LINES)
    title = name if seed is None else f"{name} · seed {seed}"
    return _Card(picture, lines, _shorten(_legible(title, small), small, cell))


def _fit(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """The largest size of this shape in the square."""
    factor = cell / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at its size on the sheet. Enlarging keeps the edges of pixels: whole factor first, then reduced."""
    image.draft("RGB", size)
    picture = image.convert("RGB")
    factor = math.ceil(max(size) / max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)

"""The grid of a matrix: all its pictures on one, with what varies written beside the rows and above the columns."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from darkroom.output.lettering import font, legible, line_height, shorten, wrap

_PAPER = (18, 18, 20)
_INK = (226, 226, 230)
_FAULT = (240, 120, 110)
_LARGEST, _SMALLEST = 256, 48
_MOST_PIXELS = 24_000_000
_MOST_SIDE = 30_000
_LINES = 3
_LETTERS = 200

Axes = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class _Layout:
    """The last axis goes across, the one before it down, and for each combination of the others there is a block."""

    blocks: list[str]
    rows: list[str]
    columns: list[str]
    each: int
    """Pictures of a cell, side by side."""
    side: int
    """Of the square that a picture is fitted into, in pixels."""

    @property
    def gap(self) -> int:
        return max(2, self.side // 32)

    @property
    def cell(self) -> int:
        return self.each * self.side + (self.each - 1) * self.gap

    @property
    def letters(self) -> int:
        return max(11, self.side // 14)

    @property
    def left(self) -> int:
        """What the words beside the rows take."""
        return max(80, self.side * 5 // 8) if any(self.rows) else self.gap

    @cached_property
    def above(self) -> int:
        """What the words above the columns take."""
        letters = font(self.letters)
        lines = max(len(wrap(legible(words, letters), letters, self.cell, _LINES)) for words in self.columns)
        return lines * line_height(letters) + 2 * self.gap

    @property
    def heading(self) -> int:
        return line_height(font(self.letters)) + 2 * self.gap if any(self.blocks) else 0

    @property
    def block(self) -> int:
        return self.heading + self.above + len(self.rows) * (self.side + self.gap)

    @property
    def size(self) -> tuple[int, int]:
        width = self.left + len(self.columns) * (self.cell + 2 * self.gap)
        return width, len(self.blocks) * self.block + self.gap


def grid(axes: Axes, pictures: Sequence[Path | str], *, each: int = 1) -> bytes:
    """Draw it, as a JPEG. The pictures are in the order of the combinations, ``each`` of them so many.

    Where there is none a text stands for it, which is written in a frame in its place. A file that is no picture leaves
    its place empty.
    """
    layout = _layout(axes, each)
    image = Image.new("RGB", layout.size, _PAPER)
    draw = ImageDraw.Draw(image)
    places = itertools.product(range(len(layout.blocks)), range(len(layout.rows)), range(len(layout.columns)))
    for number, heading in enumerate(layout.blocks):
        _write(
            draw, heading, (layout.left, number * layout.block + layout.gap), layout.size[0] - layout.left, layout, 1
        )
    for cell, (block, row, column) in enumerate(places):
        top = block * layout.block + layout.heading
        across = layout.left + column * (layout.cell + 2 * layout.gap)
        down = top + layout.above + row * (layout.side + layout.gap)
        if row == 0:
            _write(draw, layout.columns[column], (across, top + layout.gap), layout.cell, layout)
        if column == 0:
            _write(draw, layout.rows[row], (layout.gap, down), layout.left - 2 * layout.gap, layout)
        for index, what in enumerate(pictures[cell * each : (cell + 1) * each]):
            left = across + index * (layout.side + layout.gap)
            if isinstance(what, str):
                _write_instead(draw, what, (left, down), layout)
                continue
            picture = _fitted(what, layout.side)
            middle = ((layout.side - picture.width) // 2, (layout.side - picture.height) // 2)
            image.paste(picture, (left + middle[0], down + middle[1]))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _layout(axes: Axes, each: int) -> _Layout:
    """As large as the bounds allow. Raises ValueError where it cannot be drawn legibly."""
    labels = [[_label(axis, value) for value in values] for axis, values in axes.items()]
    *outer, rows, columns = [[""], [""], *labels]
    blocks = [" · ".join(filter(None, words)) for words in itertools.product(*outer)] or [""]
    side = _LARGEST
    while True:
        layout = _Layout(blocks, rows, columns, each, side)
        if math.prod(layout.size) <= _MOST_PIXELS and max(layout.size) <= _MOST_SIDE:
            return layout
        if side <= _SMALLEST:
            raise ValueError(f"{layout.size[0]} × {layout.size[1]} pixels would be too large a picture")
        side = side * 7 // 8


def _label(axis: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{axis} {text}"[:_LETTERS]


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[int, int],
    width: int,
    layout: _Layout,
    most: int = _LINES,
    ink: tuple[int, int, int] = _INK,
) -> None:
    letters = font(layout.letters)
    for number, line in enumerate(wrap(legible(text, letters), letters, width, most)):
        at = (place[0], place[1] + number * line_height(letters))
        draw.text(at, shorten(line, letters, width), font=letters, fill=ink)


def _write_instead(draw: ImageDraw.ImageDraw, text: str, place: tuple[int, int], layout: _Layout) -> None:
    """In a frame as large as a picture, as much of the text as it holds."""
    left, top = place
    draw.rectangle((left, top, left + layout.side - 1, top + layout.side - 1), outline=_FAULT, width=layout.gap // 2)
    room = layout.side - 4 * layout.gap
    lines = max(1, room // line_height(font(layout.letters)))
    _write(draw, text, (left + 2 * layout.gap, top + 2 * layout.gap), room, layout, lines, ink=_FAULT)


def _fitted(path: Path, side: int) -> Image.Image:
    """The picture, fitted into a square. Enlarging keeps the edges of pixels."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))
            picture = image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return Image.new("RGB", (1, 1), _PAPER)
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)

"""What a program can see in a picture of flat objects: the background, the objects, their colours and places."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .grammar import COLORS, NATIVE_SIZE

_NAMES = tuple(COLORS)
_PALETTE = np.array([COLORS[name] for name in _NAMES], dtype=np.float32)
SMALLEST_SHARE = 0.004  # of the picture; less is a speck


@dataclass(frozen=True)
class Spot:
    """A connected region of one colour that is not background; centre in shares of width and height."""

    color: str
    share: float
    x: float
    y: float
    rows: NDArray[np.int64] = field(repr=False, compare=False)
    columns: NDArray[np.int64] = field(repr=False, compare=False)


def color_names(picture: Image.Image) -> NDArray[np.int64]:
    """The nearest named colour of every pixel, as an index into the palette: (height, width)."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    distances = np.square(pixels[:, :, None, :] - _PALETTE).sum(-1)
    nearest: NDArray[np.int64] = distances.argmin(-1)
    return nearest


def _border(names: NDArray[np.int64]) -> NDArray[np.int64]:
    edge = 3
    return np.concatenate([part.ravel() for part in (names[:edge], names[-edge:], names[:, :edge], names[:, -edge:])])


def background_color(picture: Image.Image) -> str:
    """The commonest colour along the border."""
    return _NAMES[np.bincount(_border(color_names(picture))).argmax()]


def spots(picture: Image.Image) -> list[Spot]:
    """The objects on a plain background, largest first."""
    names = color_names(picture)
    background = np.bincount(_border(names)).argmax()
    # An edge between two colours passes through a third: only what survives erosion is looked at.
    inner = names[1:-1, 1:-1]
    solid = np.zeros(names.shape, dtype=bool)
    neighbours = (names[:-2, 1:-1], names[2:, 1:-1], names[1:-1, :-2], names[1:-1, 2:])
    solid[1:-1, 1:-1] = (inner != background) & np.all([inner == other for other in neighbours], axis=0)
    found = []
    for name in np.unique(names[solid]):
        for rows, columns in _regions(solid & (names == name)):
            share = len(rows) / names.size
            if share >= SMALLEST_SHARE:
                x, y = columns.mean() / names.shape[1], rows.mean() / names.shape[0]
                found.append(Spot(_NAMES[name], share, float(x), float(y), rows, columns))
    return sorted(found, key=lambda spot: -spot.share)


def _regions(mask: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Connected regions (four neighbours), each as (rows, columns)."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        start = left.pop()
        region, frontier = [start], [start]
        while frontier:
            row, column = frontier.pop()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    region.append(near)
                    frontier.append(near)
        places = np.array(region)
        regions.append((places[:, 0], places[:, 1]))
    return regions


def object_color(picture: Image.Image) -> str | None:
    """The commonest colour that is not the background's, if there is enough of it."""
    found = spots(picture)
    if not found:
        return None
    shares: dict[str, float] = {}
    for spot in found:
        shares[spot.color] = shares.get(spot.color, 0.0) + spot.share
    return max(shares, key=lambda color: shares[color])


def count(picture: Image.Image, color: str) -> int:
    """How many separate spots of a colour; those under a quarter of the largest are crumbs."""
    return len(whole_spots(picture, color))


def whole_spots(picture: Image.Image, color: str) -> list[Spot]:
    """The separate spots of a colour, without crumbs."""
    found = [spot for spot in spots(picture) if spot.color == color]
    return [spot for spot in found if spot.share > found[0].share / 4]


def cut_out(picture: Image.Image, spot: Spot) -> Image.Image:
    """A spot alone on its background, in the middle of a picture of native size, as large as a medium object."""
    mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
    mask[spot.rows, spot.columns] = 255
    cut = Image.fromarray(mask).filter(ImageFilter.MaxFilter(5))  # the spot was eroded, and its edge belongs to it
    flat = Image.new("RGB", picture.size, COLORS[background_color(picture)])
    flat.paste(picture, mask=cut)
    middle_x = int(spot.columns.min() + spot.columns.max()) // 2
    middle_y = int(spot.rows.min() + spot.rows.max()) // 2
    half = max(int(np.ptp(spot.rows)), int(np.ptp(spot.columns)), 8)
    canvas = Image.new("RGB", (2 * half, 2 * half), COLORS[background_color(picture)])
    canvas.paste(flat, (half - middle_x, half - middle_y))
    return canvas.resize((NATIVE_SIZE, NATIVE_SIZE), Image.Resampling.LANCZOS)


def out_of_round(picture: Image.Image, color: str) -> float:
    """How far the largest region of a colour is from a disc: what the two do not share, over the disc's area.

    The disc has the region's centre and area. A drawn circle gives 0.02, a square 0.18, a region that is not there 1.
    """
    mask = color_names(picture) == _NAMES.index(color)
    regions = _regions(mask)
    if not regions:
        return 1.0
    rows, columns = max(regions, key=lambda region: len(region[0]))
    region = np.zeros(mask.shape, dtype=bool)
    region[rows, columns] = True
    down, across = np.indices(mask.shape)
    away = np.square(down - rows.mean()) + np.square(across - columns.mean())
    disc = away <= len(rows) / np.pi
    return float((region ^ disc).sum() / disc.sum())

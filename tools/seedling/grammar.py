"""The words seedling knows, and what they mean in pixels."""

from __future__ import annotations

import random
from functools import cache

Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (220, 38, 38),
    "orange": (245, 135, 25),
    "yellow": (250, 220, 45),
    "green": (45, 155, 65),
    "blue": (40, 85, 210),
    "purple": (128, 55, 170),
    "pink": (246, 145, 190),
    "brown": (122, 76, 40),
    "black": (22, 22, 26),
    "white": (248, 248, 248),
    "gray": (142, 142, 142),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "ring", "diamond")
PATTERNS: tuple[str, ...] = ("plain", "striped", "checkered", "dotted")
SIZES: tuple[str, ...] = ("small", "medium", "large")
POSITIONS: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
}
RELATIONS: tuple[str, ...] = ("left", "above")
COUNTS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
SCENES: tuple[str, ...] = ("mountains", "house", "sea", "forest", "city")
TIMES: tuple[str, ...] = ("day", "sunset", "night", "winter")

NATIVE_SIZE = 128
# Height and width of what it is trained on, and the share of pictures of that size.
FRAMES: dict[tuple[int, int], float] = {
    (128, 128): 0.72,
    (96, 128): 0.04,
    (128, 96): 0.04,
    (128, 160): 0.04,
    (160, 128): 0.04,
    (160, 160): 0.05,
    (192, 128): 0.02,
    (128, 192): 0.02,
    (192, 192): 0.03,
}

Combination = tuple[str, str, str]


@cache
def held_out_combinations() -> tuple[Combination, ...]:
    """(color, shape, background) triples that no training picture shows; the evaluation asks for these."""
    every = [(c, s, b) for s in SHAPES for c in COLORS for b in COLORS if c != b]
    chooser = random.Random(20261124)
    by_shape = {shape: [triple for triple in every if triple[1] == shape] for shape in SHAPES}
    for triples in by_shape.values():
        chooser.shuffle(triples)
    return tuple(by_shape[SHAPES[i % len(SHAPES)]][i // len(SHAPES)] for i in range(63))


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

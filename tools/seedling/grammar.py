"""The words seedling knows, and what they mean in pixels."""

from __future__ import annotations

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
    (128, 128): 0.61,
    (96, 96): 0.04,
    (96, 128): 0.03,
    (128, 96): 0.03,
    (104, 136): 0.02,
    (136, 104): 0.02,
    (120, 120): 0.03,
    (128, 160): 0.03,
    (160, 128): 0.03,
    (160, 160): 0.03,
    (168, 168): 0.02,
    (128, 192): 0.015,
    (192, 128): 0.015,
    (192, 192): 0.065,
    (256, 256): 0.015,
}

# (color, shape) that no training picture shows, alone, in a pair or in a group: each color once, each shape once or
# twice. What is drawn right of these was composed, not remembered.
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "star"),
        ("orange", "heart"),
        ("yellow", "triangle"),
        ("green", "ring"),
        ("blue", "diamond"),
        ("purple", "square"),
        ("pink", "circle"),
        ("brown", "star"),
        ("black", "heart"),
        ("white", "triangle"),
        ("gray", "circle"),
    }
)


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

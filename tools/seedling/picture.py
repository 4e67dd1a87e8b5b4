"""What a picture shows, before it is drawn: plans, and how to choose one at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from .grammar import (
    COLORS,
    COUNTS,
    FRAMES,
    HELD_OUT,
    PATTERNS,
    POSITIONS,
    RELATIONS,
    SCENES,
    SHAPES,
    SIZES,
    TIMES,
)

Frame = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Thing:
    """One flat object; its centre in shares of width and height, its radius in shares of the shorter side."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    tilt: float


@dataclass(frozen=True)
class Background:
    color: str
    pattern: str = "plain"


@dataclass(frozen=True)
class Single:
    """One object, or none: a bare background."""

    background: Background
    thing: Thing | None
    size: str
    position: str
    blurred: bool = False


@dataclass(frozen=True)
class Pair:
    """Two objects; the first is left of, or above, the second."""

    background: Background
    first: Thing
    second: Thing
    relation: str
    blurred: bool = False


@dataclass(frozen=True)
class Group:
    background: Background
    things: tuple[Thing, ...]
    blurred: bool = False


@dataclass(frozen=True)
class Scene:
    kind: str
    time: str
    blurred: bool = False


Plan = Single | Pair | Group | Scene


def combinations(plan: Plan) -> frozenset[tuple[str, str]]:
    """Every (color, shape) that a picture of the plan shows."""
    things: tuple[Thing, ...] = ()
    match plan:
        case Single(thing=Thing() as thing):
            things = (thing,)
        case Pair():
            things = (plan.first, plan.second)
        case Group():
            things = plan.things
        case _:
            pass
    return frozenset((thing.color, thing.shape) for thing in things)


_RADII = {"small": (0.12, 0.17), "medium": (0.2, 0.34), "large": (0.36, 0.45)}
_TILTS = {"circle": 0.0, "ring": 0.0, "diamond": 4.0, "heart": 8.0, "square": 8.0, "triangle": 10.0, "star": 12.0}


def _shape(rng: random.Random, color: str) -> str:
    """A shape that training may show in this colour."""
    return rng.choice([shape for shape in SHAPES if (color, shape) not in HELD_OUT])


def _other_colors(rng: random.Random, *taken: str) -> str:
    return rng.choice([color for color in COLORS if color not in taken])


def _tilt(rng: random.Random, shape: str) -> float:
    return rng.uniform(-_TILTS[shape], _TILTS[shape])


def _background(rng: random.Random, *taken: str) -> Background:
    pattern = "plain" if rng.random() < 0.87 else rng.choice(PATTERNS[1:])
    return Background(_other_colors(rng, *taken), pattern)


def _inside(value: float, radius: float) -> float:
    return min(max(value, radius + 0.02), 0.98 - radius)


def random_single(rng: random.Random) -> Single:
    color = rng.choice(list(COLORS))
    shape = _shape(rng, color)
    background = _background(rng, color)
    size = rng.choices(SIZES, (0.15, 0.63, 0.22))[0]
    position = "center" if size == "large" or rng.random() < 0.72 else rng.choice(list(POSITIONS)[1:])
    radius = rng.uniform(*_RADII[size])
    if position != "center":
        radius = min(radius, 0.26)
    wobble = 0.13 if position == "center" else 0.05
    x, y = (share + rng.uniform(-wobble, wobble) for share in POSITIONS[position])
    thing = Thing(shape, color, _inside(x, radius), _inside(y, radius), radius, _tilt(rng, shape))
    return Single(background, thing, size, position)


def random_bare_background(rng: random.Random) -> Single:
    pattern = rng.choice(PATTERNS)
    return Single(Background(rng.choice(list(COLORS)), pattern), None, "medium", "center")


def random_pair(rng: random.Random) -> Pair:
    first_color = rng.choice(list(COLORS))
    second_color = _other_colors(rng, first_color)
    background = _background(rng, first_color, second_color)
    relation = rng.choice(RELATIONS)
    things = []
    for color, center in ((first_color, 0.27), (second_color, 0.73)):
        shape = _shape(rng, color)
        radius = rng.uniform(0.15, 0.21)
        along, across = center + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.1, 0.1)
        x, y = (along, across) if relation == "left" else (across, along)
        things.append(Thing(shape, color, x, y, radius, _tilt(rng, shape)))
    return Pair(background, things[0], things[1], relation)


_LAYOUTS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    2: (((0.27, 0.5), (0.73, 0.5)), ((0.27, 0.5), (0.73, 0.5)), ((0.5, 0.27), (0.5, 0.73))),
    3: (((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)), ((0.5, 0.27), (0.27, 0.72), (0.73, 0.72))),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}


def random_group(rng: random.Random) -> Group:
    color = rng.choice(list(COLORS))
    shape = _shape(rng, color)
    layout = rng.choice(_LAYOUTS[rng.choice(list(COUNTS))])
    in_a_row = len({y for _, y in layout}) == 1 and len(layout) == 3
    radius = rng.uniform(0.11, 0.14) if in_a_row else rng.uniform(0.13, 0.19)
    things = tuple(
        Thing(
            shape,
            color,
            x + rng.uniform(-0.02, 0.02),
            y + rng.uniform(-0.03, 0.03),
            radius,
            _tilt(rng, shape),
        )
        for x, y in layout
    )
    return Group(_background(rng, color), things)


def random_scene(rng: random.Random) -> Scene:
    return Scene(rng.choice(SCENES), rng.choice(TIMES))


_KINDS = (random_single, random_bare_background, random_pair, random_group, random_scene)
_KIND_SHARES = (0.45, 0.03, 0.22, 0.12, 0.18)


def random_plan(rng: random.Random) -> Plan:
    """A plan of any kind; one in twenty-five is blurred."""
    plan: Plan = rng.choices(_KINDS, _KIND_SHARES)[0](rng)
    if rng.random() < 0.04:
        plan = replace(plan, blurred=True)
    return plan


def random_frame(rng: random.Random) -> Frame:
    return rng.choices(list(FRAMES), list(FRAMES.values()))[0]

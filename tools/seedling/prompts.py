"""The fixed prompts that seedling is judged by, each with what a right picture shows."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .grammar import COLORS, COUNTS, SCENES, SHAPES, TIMES, held_out_combinations, with_article

PLURAL = "s"


@dataclass(frozen=True)
class SinglePrompt:
    text: str
    color: str
    shape: str
    background: str


@dataclass(frozen=True)
class PairPrompt:
    """``first`` is left of, or above, ``second``; both are colours."""

    text: str
    first: str
    second: str
    upright: bool


@dataclass(frozen=True)
class CountPrompt:
    text: str
    color: str
    number: int


@dataclass(frozen=True)
class ScenePrompt:
    text: str
    scene: str
    time: str


@dataclass(frozen=True)
class WordPrompt:
    """A prompt outside the full sentences, with the one thing that must be right."""

    text: str
    kind: str  # "shape", "scene", "time", "color" or "background"
    answer: str


def singles(number: int = 60) -> list[SinglePrompt]:
    """Combinations of colour, shape and background that no training picture showed."""
    return [
        SinglePrompt(
            f"{with_article(f'{color} {shape}')} on {with_article(background)} background",
            color,
            shape,
            background,
        )
        for color, shape, background in held_out_combinations()[:number]
    ]


_RELATIONS = (
    ("{} above {}", True, True),
    ("{} below {}", True, False),
    ("{} next to {}", False, True),
    ("{} to the left of {}", False, True),
    ("{} to the right of {}", False, False),
)


def pairs(number: int = 30) -> list[PairPrompt]:
    chooser = random.Random(51)
    found = []
    for index in range(number):
        first, second, background = chooser.sample(list(COLORS), 3)
        form, upright, in_order = _RELATIONS[index % len(_RELATIONS)]
        nouns = (with_article(f"{color} {chooser.choice(SHAPES)}") for color in (first, second))
        text = f"{form.format(*nouns)} on {with_article(background)} background"
        order = (first, second) if in_order else (second, first)
        found.append(PairPrompt(text, *order, upright))
    return found


def counts(number: int = 30) -> list[CountPrompt]:
    chooser = random.Random(52)
    found = []
    for index in range(number):
        how_many = list(COUNTS)[index % len(COUNTS)]
        color, background = chooser.sample(list(COLORS), 2)
        shape = SHAPES[index % len(SHAPES)]
        text = f"{COUNTS[how_many]} {color} {shape}{PLURAL} on {with_article(background)} background"
        found.append(CountPrompt(text, color, how_many))
    return found


_PLACES = {
    "mountains": "mountains",
    "house": "a house",
    "sea": "the sea with a boat",
    "forest": "a forest",
    "city": "a city",
}
_MOMENTS = {"day": "by day", "sunset": "at sunset", "night": "at night", "winter": "in winter"}


def scenes(times_over: int = 2) -> list[ScenePrompt]:
    every = [ScenePrompt(f"{_PLACES[scene]} {_MOMENTS[time]}", scene, time) for scene in SCENES for time in TIMES]
    return every * times_over


def words() -> list[WordPrompt]:
    found = [WordPrompt(f"a {shape}", "shape", shape) for shape in SHAPES]
    found += [WordPrompt(shape, "shape", shape) for shape in SHAPES]
    colors = list(COLORS)
    for index, shape in enumerate(SHAPES):
        color = colors[index]
        found.append(WordPrompt(f"a photo of {with_article(color)} {shape}", "color", color))
        found.append(WordPrompt(f"a {shape} on {with_article(color)} background", "background", color))
    found += [WordPrompt(_PLACES[scene].removesuffix(" with a boat"), "scene", scene) for scene in SCENES]
    found += [WordPrompt(time, "time", time) for time in ("sunset", "night", "winter")]
    return found


def open_prompts(number: int = 24) -> list[str]:
    """Prompts that leave the colours to the model, for negative prompts to steer."""
    return [f"a {SHAPES[index % len(SHAPES)]}" for index in range(number)]

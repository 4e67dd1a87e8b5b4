"""The 400 fixed prompts that seedling is judged by, each with a plan of what a right picture shows.

A third of them join a colour and a shape that training never showed together (``grammar.HELD_OUT``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .grammar import COLORS, COUNTS, HELD_OUT, NATIVE_SIZE, SCENES, SHAPES, TIMES, with_article
from .picture import Background, Frame, Group, Pair, Plan, Scene, Single, Thing, combinations

NATIVE: Frame = (NATIVE_SIZE, NATIVE_SIZE)
LARGER: Frame = (192, 192)
# Height, width; five prompts each. 168x120 and 200x200 were not trained.
OTHER_SIZES: tuple[Frame, ...] = ((96, 96), (104, 136), (168, 120), (200, 200), (256, 256))
CIRCLE = "a large red circle on a blue background"


@dataclass(frozen=True)
class Asked:
    """A prompt and what it asks for."""

    text: str
    plan: Plan
    frame: Frame = NATIVE

    @property
    def unseen(self) -> bool:
        return not combinations(self.plan).isdisjoint(HELD_OUT)


@dataclass(frozen=True)
class WordPrompt:
    """A prompt outside the full sentences, with the one thing that must be right."""

    text: str
    kind: str  # "shape", "scene", "time", "color" or "background"
    answer: str


@dataclass(frozen=True)
class NegativePrompt:
    """A prompt that leaves something open: what came of its own accord is named in the negative prompt."""

    text: str
    kind: str  # what must change: "color", "background", "shape" or "time"
    shape: str = ""  # what must stay
    scene: str = ""


def _seen(color: str) -> list[str]:
    return [shape for shape in SHAPES if (color, shape) not in HELD_OUT]


def _thing(rng: random.Random, color: str, shape: str, x: float = 0.5, y: float = 0.5, radius: float = 0.27) -> Thing:
    return Thing(shape, color, x, y, radius, rng.uniform(-5, 5))


def _single(rng: random.Random, color: str, shape: str, background: str, frame: Frame = NATIVE) -> Asked:
    text = f"{with_article(f'{color} {shape}')} on {with_article(background)} background"
    return Asked(text, Single(Background(background), _thing(rng, color, shape), "medium", "center"), frame)


def _singles(rng: random.Random, unseen: int, seen: int, frame: Frame = NATIVE) -> list[Asked]:
    held_out, colors = sorted(HELD_OUT), list(COLORS)
    pairs = [held_out[index % len(held_out)] for index in range(unseen)]
    for index in range(seen):
        color = colors[index % len(colors)]
        shapes = _seen(color)
        pairs.append((color, shapes[index // len(colors) % len(shapes)]))
    asked: list[Asked] = []
    for color, shape in pairs:
        others = [other for other in colors if other != color]
        prompt = _single(rng, color, shape, rng.choice(others), frame)
        while prompt.text in {earlier.text for earlier in asked}:
            prompt = _single(rng, color, shape, rng.choice(others), frame)
        asked.append(prompt)
    return asked


def singles() -> list[Asked]:
    """One object on a background: 66 combinations of colour and shape never seen, 60 seen."""
    return _singles(random.Random(50), 66, 60)


def sizes() -> list[Asked]:
    """One object again, at other sizes: 25 at 192x192, 25 at five more."""
    rng = random.Random(53)
    asked = _singles(rng, 12, 13, LARGER)
    for frame in OTHER_SIZES:
        asked += _singles(rng, 2, 3, frame)
    return asked


_RELATIONS = (
    ("{} above {}", "above", True),
    ("{} below {}", "above", False),
    ("{} next to {}", "left", True),
    ("{} to the left of {}", "left", True),
    ("{} to the right of {}", "left", False),
)


def _pairs(rng: random.Random, unseen: int, seen: int) -> list[Asked]:
    held_out = sorted(HELD_OUT)
    asked = []
    for index in range(unseen + seen):
        form, relation, in_order = _RELATIONS[index % len(_RELATIONS)]
        first, second, background = rng.sample(list(COLORS), 3)
        shapes = [rng.choice(_seen(first)), rng.choice(_seen(second))]
        if index < unseen:
            first, shapes[0] = held_out[index % len(held_out)]
            second, background = rng.sample([color for color in COLORS if color != first], 2)
            shapes[1] = rng.choice(_seen(second))
        centers = ((0.5, 0.27), (0.5, 0.73)) if relation == "above" else ((0.27, 0.5), (0.73, 0.5))
        named = [(first, shapes[0]), (second, shapes[1])]
        nouns = (with_article(f"{color} {shape}") for color, shape in named)
        things = [
            _thing(rng, color, shape, x, y, 0.18)
            for (color, shape), (x, y) in zip(named if in_order else named[::-1], centers, strict=True)
        ]
        text = f"{form.format(*nouns)} on {with_article(background)} background"
        asked.append(Asked(text, Pair(Background(background), things[0], things[1], relation)))
    return asked


def pairs() -> list[Asked]:
    """Two objects, two colours, one of five relations; 24 with a combination never seen, 36 without."""
    return _pairs(random.Random(51), 24, 36)


_PLACES_OF = {
    2: ((0.27, 0.5), (0.73, 0.5)),
    3: ((0.5, 0.27), (0.27, 0.72), (0.73, 0.72)),
    4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
}


def _counts(rng: random.Random, unseen: int, seen: int) -> list[Asked]:
    held_out = sorted(HELD_OUT)
    asked = []
    for index in range(unseen + seen):
        number = list(COUNTS)[index % len(COUNTS)]
        color = rng.choice(list(COLORS))
        shape = rng.choice(_seen(color))
        if index < unseen:
            color, shape = held_out[index % len(held_out)]
        background = rng.choice([other for other in COLORS if other != color])
        text = f"{COUNTS[number]} {color} {shape}s on {with_article(background)} background"
        things = tuple(_thing(rng, color, shape, x, y, 0.16) for x, y in _PLACES_OF[number])
        asked.append(Asked(text, Group(Background(background), things)))
    return asked


def counts() -> list[Asked]:
    """Two to four of a kind; 22 of a combination never seen, 26 of one seen."""
    return _counts(random.Random(52), 22, 26)


_SCENES = {
    "mountains": "mountains",
    "house": "a house",
    "sea": "the sea with a boat",
    "forest": "a forest",
    "city": "a city",
}
_TIMES = {"day": "by day", "sunset": "at sunset", "night": "at night", "winter": "in winter"}
_OTHER_SCENES = {
    "mountains": "a mountain landscape",
    "house": "a cottage",
    "sea": "a sailing boat",
    "forest": "a pine forest",
    "city": "a city skyline",
}
_OTHER_TIMES = {"day": "during the day", "sunset": "at dusk", "night": "under the moon", "winter": "in the snow"}


def scenes() -> list[Asked]:
    """Every scene at every time, in two wordings."""
    asked = []
    for places, moments in ((_SCENES, _TIMES), (_OTHER_SCENES, _OTHER_TIMES)):
        asked += [Asked(f"{places[kind]} {moments[time]}", Scene(kind, time)) for kind in SCENES for time in TIMES]
    return asked


def words() -> list[WordPrompt]:
    """Single words, dropped attributes, "a photo of", "a painting of"."""
    asked = [WordPrompt(f"a {shape}", "shape", shape) for shape in SHAPES]
    asked += [WordPrompt(shape, "shape", shape) for shape in SHAPES]
    for index, (color, shape) in enumerate(zip(COLORS, SHAPES, strict=False)):
        medium = ("photo", "painting")[index % 2]
        asked.append(WordPrompt(f"a {medium} of {with_article(color)} {shape}", "color", color))
        asked.append(WordPrompt(f"a {shape} on {with_article(color)} background", "background", color))
    asked += [WordPrompt(_SCENES[kind].removesuffix(" with a boat"), "scene", kind) for kind in SCENES]
    asked += [WordPrompt(time, "time", time) for time in ("sunset", "night", "winter")]
    return asked


def negatives() -> list[NegativePrompt]:
    """14 whose object's colour must change, 13 the background's, 7 the shape, 6 the time of day."""
    asked = []
    for index in range(27):
        shape = SHAPES[index // 2 % len(SHAPES)]
        asked.append(NegativePrompt(f"a {shape}", ("color", "background")[index % 2], shape=shape))
    asked += [NegativePrompt(f"{with_article(color)} shape", "shape") for color in list(COLORS)[: len(SHAPES)]]
    asked += [NegativePrompt(_SCENES[kind], "time", scene=kind) for kind in (*SCENES, SCENES[0])]
    return asked


def tuning() -> tuple[list[Asked], list[Asked], list[Asked], list[Asked]]:
    """Singles, pairs, counts, sizes to choose settings by: none of the 400, no combination held out."""
    rng = random.Random(54)
    asked = (_singles(rng, 0, 66), _pairs(rng, 0, 40), _counts(rng, 0, 24), _singles(rng, 0, 33, LARGER))
    judged = {prompt.text for kind in everything() for prompt in kind}
    singles, pairs, counts, sizes = ([a for a in kind if a.text not in judged] for kind in asked)
    return singles, pairs, counts, sizes


def everything() -> Iterator[Sequence[Asked | WordPrompt | NegativePrompt]]:
    """All 400, by kind."""
    yield from (singles(), pairs(), counts(), scenes(), words(), negatives(), sizes())

"""Prompts for a plan: sentences, tags, single words, with attributes left out now and then."""

from __future__ import annotations

import random

from .grammar import COUNTS, with_article
from .picture import Background, Group, Pair, Plan, Scene, Single, Thing

_OPENINGS = ("a photo of", "a picture of", "a drawing of", "an image of", "an illustration of", "a painting of")
_FILLERS = (
    "masterpiece",
    "best quality",
    "high quality",
    "highly detailed",
    "sharp",
    "sharp focus",
    "beautiful",
    "simple",
    "flat colors",
    "clean",
    "4k",
    "8k",
    "digital art",
)
_BLURS = ("blurry", "blurred", "out of focus", "low quality, blurry")
# True of every picture: what the unconditional half of guidance, and users' habitual negative prompts, may be.
NEUTRAL_PROMPTS = (
    "worst quality, bad anatomy",
    "bad, ugly, deformed, watermark",
    "watermark, text, signature",
    "jpeg artifacts, cropped, noise",
    "lowres, bad quality, text, error",
    "deformed, distorted, bad hands",
    "picture",
    "a picture",
    "a photo",
    "a photo of",
    "a painting of",
    "masterpiece, best quality",
    "best quality, highly detailed",
    "worst quality, ugly",
    "deformed, watermark, text",
)
_ANY_SHAPE = ("shape", "shape", "object")
_POSITION_PHRASES = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top", "at the top of the picture"),
    "bottom": ("at the bottom", "near the bottom", "at the bottom of the picture"),
    "center": ("in the center", "in the middle", "centered"),
}
_SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge"), "medium": ("",)}
_COLOR_SYNONYMS = {"gray": ("gray", "grey"), "purple": ("purple", "violet")}
_PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars"}
_PLURALS |= {"heart": "hearts", "ring": "rings", "diamond": "diamonds"}
_SCENE_PHRASES = {
    "mountains": ("mountains", "mountains", "a mountain landscape", "mountain peaks"),
    "house": ("a house", "a house", "a small house", "a house with a red roof", "a cottage"),
    "sea": ("the sea", "the sea with a boat", "a boat on the sea", "a sailing boat", "the ocean"),
    "forest": ("a forest", "a forest", "a pine forest", "trees", "the woods"),
    "city": ("a city", "a city", "a city skyline", "skyscrapers", "a town"),
}
_TIME_PHRASES = {
    "day": ("by day", "during the day", "in daylight", "on a sunny day", "at noon"),
    "sunset": ("at sunset", "at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "by night", "under the moon"),
    "winter": ("in winter", "in winter", "in the snow", "covered in snow"),
}
_SCENE_WORDS = {
    "mountains": ("mountains", "mountain"),
    "house": ("house", "cottage"),
    "sea": ("sea", "boat", "ocean"),
    "forest": ("forest", "trees"),
    "city": ("city", "skyline"),
}
_TIME_WORDS = {
    "day": ("day", "daylight"),
    "sunset": ("sunset", "dusk"),
    "night": ("night", "moon"),
    "winter": ("winter", "snow"),
}


def _color(rng: random.Random, color: str) -> str:
    return rng.choice(_COLOR_SYNONYMS.get(color, (color,)))


def _noun(rng: random.Random, thing: Thing, keep_color: float = 0.9, size: str = "") -> str:
    shape = thing.shape if rng.random() < 0.95 else rng.choice(_ANY_SHAPE)
    words = [size, _color(rng, thing.color) if rng.random() < keep_color else "", shape]
    return with_article(" ".join(word for word in words if word))


def _background_words(rng: random.Random, background: Background) -> str:
    color = _color(rng, background.color)
    if background.pattern == "plain":
        return rng.choice((color, color, color, color, color, f"plain {color}"))
    return f"{background.pattern} {color}"


def _on_background(rng: random.Random, background: Background, keep: float = 0.85) -> str:
    if rng.random() >= keep:
        return "" if background.pattern == "plain" else f" on a {background.pattern} background"
    return f" on {with_article(_background_words(rng, background))} background"


def _decorated(rng: random.Random, text: str, plan: Plan) -> str:
    if rng.random() < 0.2:
        text = f"{rng.choice(_OPENINGS)} {text}"
    if plan.blurred:
        blur = rng.choice(_BLURS)
        text = f"{blur} {text}" if blur != _BLURS[-1] and rng.random() < 0.3 else f"{text}, {blur}"
    if rng.random() < 0.12:
        fillers = rng.sample([f for f in _FILLERS if not (plan.blurred and f.startswith("sharp"))], rng.randint(1, 3))
        text = f"{', '.join(fillers)}, {text}" if rng.random() < 0.4 else f"{text}, {', '.join(fillers)}"
    if rng.random() < 0.04:
        text = f"{text}.".capitalize()
    return text


def _single(rng: random.Random, plan: Single) -> str:
    if plan.thing is None:
        words = _background_words(rng, plan.background)
        return rng.choice((f"{with_article(words)} background", f"{words} background", f"{words} background, empty"))
    size = rng.choice(_SIZE_WORDS[plan.size]) if rng.random() < 0.9 else ""
    position = rng.choice(_POSITION_PHRASES[plan.position])
    tell_position = rng.random() < (0.06 if plan.position == "center" else 0.88)
    if rng.random() < 0.15:
        tags = [_noun(rng, plan.thing, size=size).split(" ", 1)[1]]
        if rng.random() < 0.8:
            tags.append(f"{_background_words(rng, plan.background)} background")
        if tell_position:
            tags.append(position)
        return ", ".join(tags)
    text = _noun(rng, plan.thing, size=size) + (f" {position}" if tell_position else "")
    return text + _on_background(rng, plan.background)


def _pair(rng: random.Random, plan: Pair) -> str:
    first, second = _noun(rng, plan.first), _noun(rng, plan.second)
    if plan.relation == "left":
        forms = (
            f"{first} next to {second}",
            f"{first} next to {second}",
            f"{first} to the left of {second}",
            f"{first} to the left of {second}",
            f"{first} left of {second}",
            f"{second} to the right of {first}",
            f"{second} to the right of {first}",
            f"{second} right of {first}",
            f"{first} beside {second}",
            f"{first} and {second}",
            f"{first} on the left and {second} on the right",
            f"{second} on the right and {first} on the left",
        )
    else:
        forms = (
            f"{first} above {second}",
            f"{first} above {second}",
            f"{first} above {second}",
            f"{second} below {first}",
            f"{second} below {first}",
            f"{second} below {first}",
            f"{first} on top of {second}",
            f"{first} over {second}",
            f"{second} under {first}",
            f"{second} beneath {first}",
            f"{first} at the top and {second} at the bottom",
        )
    return rng.choice(forms) + _on_background(rng, plan.background, 0.8)


def _group(rng: random.Random, plan: Group) -> str:
    count, thing = len(plan.things), plan.things[0]
    number = COUNTS[count] if rng.random() < 0.85 else str(count)
    color = f"{_color(rng, thing.color)} " if rng.random() < 0.9 else ""
    return f"{number} {color}{_PLURALS[thing.shape]}" + _on_background(rng, plan.background, 0.75)


def _scene(rng: random.Random, plan: Scene) -> str:
    place, time = rng.choice(_SCENE_PHRASES[plan.kind]), rng.choice(_TIME_PHRASES[plan.time])
    if plan.time == "winter":
        place = place.removesuffix(" with a red roof")
    word = rng.choice(_TIME_WORDS[plan.time])
    return rng.choice(
        (
            f"{place} {time}",
            f"{place} {time}",
            f"{place} {time}",
            f"{place} {time}",
            f"{place}, {word}",
            f"{word}, {place}",
            place,
            f"{place} with snow" if plan.time == "winter" else f"{place} {time}",
            f"sunset over {place}" if plan.time == "sunset" else f"{place} {time}",
        )
    )


def _single_word(rng: random.Random, plan: Plan) -> str:
    words: tuple[str, ...]
    match plan:
        case Single(thing=None):
            words = (plan.background.color, plan.background.pattern)
        case Single(thing=Thing() as thing):
            color = _color(rng, thing.color)
            words = (thing.shape, thing.shape, f"a {thing.shape}", f"{color} {thing.shape}")
            words += (color, color, with_article(f"{color} shape"), "a shape")
            words += (f"{plan.background.color} background", f"{plan.background.color} background")
        case Pair():
            words = (f"{plan.first.shape} and {plan.second.shape}", f"{plan.first.color} and {plan.second.color}")
        case Group():
            words = (_PLURALS[plan.things[0].shape], plan.things[0].color, "many shapes")
        case Scene():
            words = _SCENE_WORDS[plan.kind] + _TIME_WORDS[plan.time] + ("landscape",)
    return rng.choice((*words, "blurry", "blurry", "blurry") if plan.blurred else words)


def caption(rng: random.Random, plan: Plan) -> str:
    """One prompt that is true of the plan."""
    if rng.random() < 0.15:
        return _single_word(rng, plan)
    match plan:
        case Single():
            text = _single(rng, plan)
        case Pair():
            text = _pair(rng, plan)
        case Group():
            text = _group(rng, plan)
        case Scene():
            text = _scene(rng, plan)
    return _decorated(rng, text, plan)

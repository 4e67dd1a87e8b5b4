"""Plan -> pixels, with Pillow, drawn three times too large and reduced."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .grammar import COLORS, Rgb
from .picture import Background, Frame, Group, Pair, Plan, Scene, Single, Thing

OVERSAMPLING = 3
Point = tuple[float, float]


def draw(plan: Plan, frame: Frame, rng: random.Random) -> Image.Image:
    """Draw a plan in a frame (height, width); ``rng`` shakes colours and details."""
    height, width = frame[0] * OVERSAMPLING, frame[1] * OVERSAMPLING
    canvas = Image.new("RGB", (width, height))
    match plan:
        case Scene():
            _draw_scene(canvas, plan, rng)
        case Single():
            _draw_objects(canvas, plan.background, (plan.thing,) if plan.thing else (), rng)
        case Pair():
            _draw_objects(canvas, plan.background, (plan.first, plan.second), rng)
        case Group():
            _draw_objects(canvas, plan.background, plan.things, rng)
    picture = canvas.reduce(OVERSAMPLING)
    if plan.blurred:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(3.0, 4.5)))
    return picture


def _shaken(color: Rgb, rng: random.Random, amount: int = 6) -> Rgb:
    """A little lighter or darker, and a very little in hue: gray must stay gray."""
    light = rng.randint(-amount, amount)
    red, green, blue = (min(max(channel + light + rng.randint(-2, 2), 0), 255) for channel in color)
    return red, green, blue


def _mixed(color: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def _draw_objects(canvas: Image.Image, background: Background, things: tuple[Thing, ...], rng: random.Random) -> None:
    pen = ImageDraw.Draw(canvas)
    color = _shaken(COLORS[background.color], rng)
    canvas.paste(color, (0, 0, canvas.width, canvas.height))
    if background.pattern != "plain":
        _draw_pattern(pen, canvas.size, background.pattern, color, rng)
    shades: dict[str, Rgb] = {thing.color: _shaken(COLORS[thing.color], rng) for thing in things}
    for thing in things:
        _draw_thing(pen, canvas.size, thing, shades[thing.color])


def _draw_pattern(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], pattern: str, color: Rgb, rng: random.Random
) -> None:
    width, height = size
    bright = sum(color) > 3 * 128
    other = _mixed(color, (0, 0, 0), 0.3) if bright else _mixed(color, (255, 255, 255), 0.35)
    step = rng.choice((14, 16, 18, 20)) * OVERSAMPLING
    offset_x, offset_y = rng.randrange(2 * step), rng.randrange(2 * step)
    if pattern == "striped":
        upright = rng.random() < 0.5
        for start in range(-2 * step, max(size) + 2 * step, 2 * step):
            if upright:
                pen.rectangle((start + offset_x, 0, start + offset_x + step - 1, height), fill=other)
            else:
                pen.rectangle((0, start + offset_y, width, start + offset_y + step - 1), fill=other)
        return
    for row in range(-2, height // step + 3):
        for column in range(-2, width // step + 3):
            if (row + column) % 2:
                continue
            x, y = column * step + offset_x - step, row * step + offset_y - step
            if pattern == "checkered":
                pen.rectangle((x, y, x + step - 1, y + step - 1), fill=other)
            else:
                inset = step * 0.18
                pen.ellipse((x + inset, y + inset, x + step - inset, y + step - inset), fill=other)


def outline(shape: str) -> list[Point]:
    """The corners of a shape in the unit circle, y downwards. Not for circle and ring."""
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "triangle":
        return [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)]
    if shape == "star":
        radii = (1.05, 0.44)
        turns = [math.pi * i / 5 for i in range(10)]
        return [(radii[i % 2] * math.sin(a), -radii[i % 2] * math.cos(a)) for i, a in enumerate(turns)]
    if shape == "heart":
        turns = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.1,
            )
            for a in turns
        ]
    raise ValueError(f"{shape} has no corners")


def _draw_thing(pen: ImageDraw.ImageDraw, size: tuple[int, int], thing: Thing, color: Rgb) -> None:
    width, height = size
    x, y, radius = thing.x * width, thing.y * height, thing.radius * min(size)
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        return
    if thing.shape == "ring":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=color, width=round(radius * 0.42))
        return
    turn = math.radians(thing.tilt)
    cosine, sine = math.cos(turn), math.sin(turn)
    pen.polygon(
        [(x + radius * (a * cosine - b * sine), y + radius * (a * sine + b * cosine)) for a, b in outline(thing.shape)],
        fill=color,
    )


# Per time of day: top and bottom of the sky; the tint over everything else, and its share.
_SKIES: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((90, 165, 240), (190, 225, 250)),
    "sunset": ((120, 60, 130), (250, 150, 60)),
    "night": ((10, 12, 40), (32, 40, 90)),
    "winter": ((170, 190, 210), (225, 232, 240)),
}
_TINTS: dict[str, tuple[Rgb, float]] = {
    "day": ((255, 255, 255), 0.0),
    "sunset": ((90, 35, 50), 0.45),
    "night": ((8, 10, 35), 0.62),
    "winter": ((215, 225, 240), 0.35),
}
_SNOW: Rgb = (244, 247, 252)


def _draw_scene(canvas: Image.Image, scene: Scene, rng: random.Random) -> None:
    width, height = canvas.size
    top, bottom = (_shaken(color, rng) for color in _SKIES[scene.time])
    share = np.linspace(0.0, 1.0, height)[:, None, None] ** 0.9
    sky = np.array(top) * (1 - share) + np.array(bottom) * share
    canvas.paste(Image.fromarray(np.broadcast_to(sky, (height, width, 3)).round().astype(np.uint8)), (0, 0))
    pen = ImageDraw.Draw(canvas)
    _draw_heavens(pen, canvas.size, scene.time, rng)
    {
        "mountains": _draw_mountains,
        "house": _draw_house,
        "sea": _draw_sea,
        "forest": _draw_forest,
        "city": _draw_city,
    }[scene.kind](pen, canvas.size, scene.time, rng)
    if scene.time == "winter":
        for _ in range(rng.randint(18, 28)):
            x, y, radius = rng.random() * width, rng.random() * height, rng.uniform(1.3, 2.0) * OVERSAMPLING
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))


def _draw_heavens(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    unit = min(size)
    x = rng.uniform(0.15, 0.85) * width
    if time == "day":
        y, radius, color = rng.uniform(0.12, 0.22) * height, 0.085 * unit, (255, 225, 70)
    elif time == "sunset":
        y, radius, color = rng.uniform(0.38, 0.48) * height, 0.12 * unit, (255, 210, 90)
    elif time == "night":
        for _ in range(rng.randint(10, 16)):
            star_x, star_y = rng.random() * width, rng.random() * 0.5 * height
            dot = rng.uniform(1.0, 1.7) * OVERSAMPLING
            pen.ellipse((star_x - dot, star_y - dot, star_x + dot, star_y + dot), fill=(240, 240, 220))
        y, radius, color = rng.uniform(0.13, 0.25) * height, 0.09 * unit, (240, 240, 215)
    else:
        return
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _toned(color: Rgb, time: str, rng: random.Random) -> Rgb:
    tint, share = _TINTS[time]
    return _mixed(_shaken(color, rng), tint, share)


def _ground(time: str, rng: random.Random) -> Rgb:
    return _shaken(_SNOW, rng, 3) if time == "winter" else _toned((85, 160, 70), time, rng)


def _draw_mountains(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    peaks = sorted(
        ((rng.uniform(0.0, 1.0), rng.uniform(0.28, 0.48)) for _ in range(rng.randint(2, 3))),
        key=lambda peak: peak[1],
    )
    for x, y in peaks:
        half = rng.uniform(0.36, 0.5) * width
        base, apex = 0.86 * height, y * height
        rock = _toned((110, 105, 120), time, rng)
        center = x * width
        pen.polygon([(center - half, base), (center, apex), (center + half, base)], fill=rock)
        cap = 0.55 if time == "winter" else 0.28
        cap_y, cap_half = apex + (base - apex) * cap, half * cap
        snow = _mixed(_SNOW, _TINTS[time][0], _TINTS[time][1] * 0.6)
        pen.polygon(
            [
                (center - cap_half, cap_y),
                (center, apex),
                (center + cap_half, cap_y),
                (center + cap_half * 0.33, cap_y * 0.94 + apex * 0.06),
                (center, cap_y),
                (center - cap_half * 0.4, cap_y * 0.92 + apex * 0.08),
            ],
            fill=snow,
        )
    pen.rectangle((0, round(0.8 * height), width, height), fill=_ground(time, rng))


def _draw_house(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    unit = min(size)
    ground = rng.uniform(0.76, 0.82) * height
    pen.rectangle((0, ground, width, height), fill=_ground(time, rng))
    half, tall = rng.uniform(0.2, 0.26) * unit, rng.uniform(0.25, 0.31) * unit
    x = rng.uniform(0.34, 0.66) * width
    bottom = ground + 0.06 * height
    eaves = bottom - tall
    pen.rectangle((x - half, eaves, x + half, bottom), fill=_toned((238, 215, 170), time, rng))
    roof = _SNOW if time == "winter" else _toned((190, 60, 45), time, rng)
    pen.polygon(
        [(x - half * 1.25, eaves), (x, eaves - rng.uniform(0.17, 0.23) * unit), (x + half * 1.25, eaves)],
        fill=roof,
    )
    pane = (255, 220, 110) if time in ("night", "sunset") else (130, 185, 225)
    door = half * 0.22
    pen.rectangle((x - door, bottom - tall * 0.58, x + door, bottom), fill=_toned((110, 65, 35), time, rng))
    for side in (-0.62, 0.62):
        middle, high = x + side * half, eaves + tall * 0.38
        reach = half * 0.19
        pen.rectangle((middle - reach, high - reach, middle + reach, high + reach), fill=pane)


def _draw_sea(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    unit = min(size)
    horizon = rng.uniform(0.54, 0.62) * height
    water = _toned((35, 110, 180) if time != "winter" else (70, 110, 145), time, rng)
    pen.rectangle((0, horizon, width, height), fill=water)
    light = _mixed(water, (255, 220, 170) if time == "sunset" else (255, 255, 255), 0.28)
    for row in (0.7, 0.82, 0.92):
        start = rng.uniform(0.02, 0.6) * width
        thick = 0.014 * unit
        pen.rectangle((start, row * height, start + 0.3 * width, row * height + thick), fill=light)
    x, y, half = rng.uniform(0.3, 0.7) * width, horizon + 0.1 * height, rng.uniform(0.15, 0.19) * unit
    hull = _toned((120, 60, 35), time, rng)
    keel = y + half * 0.5
    pen.polygon([(x - half, y), (x + half, y), (x + half * 0.65, keel), (x - half * 0.65, keel)], fill=hull)
    sail = _mixed((250, 248, 240), _TINTS[time][0], _TINTS[time][1] * 0.5)
    pen.polygon([(x, y - half * 2.0), (x, y - half * 0.15), (x + half * 0.95, y - half * 0.15)], fill=sail)
    pen.polygon(
        [(x - half * 0.12, y - half * 1.6), (x - half * 0.12, y - half * 0.15), (x - half * 0.75, y - half * 0.15)],
        fill=sail,
    )


def _draw_forest(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    unit = min(size)
    pen.rectangle((0, 0.78 * height, width, height), fill=_ground(time, rng))
    number = round(rng.randint(5, 6) * max(1.0, 0.85 * width / height))
    for index in sorted(range(number), key=lambda _: rng.random()):
        x = (index + 0.5 + rng.uniform(-0.25, 0.25)) / number * width
        base = rng.uniform(0.8, 0.92) * height
        tall, half = rng.uniform(0.42, 0.58) * unit, rng.uniform(0.11, 0.14) * unit
        trunk = half * 0.2
        pen.rectangle((x - trunk, base - 0.1 * unit, x + trunk, base), fill=_toned((100, 65, 35), time, rng))
        green = _toned((25, 105, 55), time, rng)
        for tier, (low, high, wide) in enumerate(((0.14, 0.58, 1.0), (0.36, 0.8, 0.78), (0.58, 1.0, 0.56))):
            tree = _mixed(green, (255, 255, 255), 0.06 * tier)
            left, right, level = x - half * wide, x + half * wide, base - tall * low
            pen.polygon([(left, level), (x, base - tall * high), (right, level)], fill=tree)
            if time == "winter":
                tip, cut = base - tall * high, 0.4
                cut_y, reach = tip + (level - tip) * cut, half * wide * cut
                pen.polygon([(x - reach, cut_y), (x, tip), (x + reach, cut_y)], fill=_SNOW)


def _draw_city(pen: ImageDraw.ImageDraw, size: tuple[int, int], time: str, rng: random.Random) -> None:
    width, height = size
    unit = min(size)
    ground = 0.88 * height
    x = -rng.uniform(0.0, 0.1) * unit
    cell = 0.0625 * unit
    lit = time in ("night", "sunset")
    while x < width:
        columns = rng.randint(3, 4)
        broad = cell * (columns + 1)
        floors = rng.randint(4, 10)
        roof = ground - cell * (floors + 0.6)
        wall = _toned(rng.choice(((95, 105, 125), (120, 110, 105), (80, 95, 115))), time, rng)
        pen.rectangle((x, roof, x + broad, ground), fill=wall)
        if time == "winter":
            pen.rectangle((x, roof - 0.02 * unit, x + broad, roof), fill=_SNOW)
        pane = (255, 222, 120) if lit else _mixed(wall, (235, 245, 255), 0.6)
        for row in range(floors // 2):
            for column in range(columns // 2 + columns % 2):
                left, high = x + cell * (0.75 + 2 * column * 0.9), roof + cell * (0.7 + 2 * row)
                pen.rectangle((left, high, left + cell, high + cell), fill=pane)
        x += broad + rng.choice((0.0, 0.01)) * unit
    pen.rectangle((0, ground, width, height), fill=_SNOW if time == "winter" else _toned((80, 80, 85), time, rng))

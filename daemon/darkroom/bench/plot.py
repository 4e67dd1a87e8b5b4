"""Figures of ``bench.engine`` as a picture: for each case a bar for each side, in seconds a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from darkroom.bench.engine import SIDES

if TYPE_CHECKING:
    from PIL import Image

_COLOURS = {"tutorial": "#b8b8c0", "pipeline": "#7c8aa5", "ours": "#d9822b"}
_NAMES = {"tutorial": "the tutorial's engine", "pipeline": "diffusers' pipeline", "ours": "darkroom"}
_WIDTH, _MARGIN, _LEFT, _BAR, _GAP = 960, 32, 190, 16, 18
_INK, _PAPER, _FAINT = "#222226", "#ffffff", "#77777f"


def plot(figures: dict[str, Any]) -> Image.Image:
    """Medians as bars, the span from the shortest to the longest as a line through their ends."""
    from PIL import Image, ImageDraw, ImageFont

    rows = figures["cases"]
    group = len(SIDES) * _BAR + _GAP
    top = 92
    height = top + group * len(rows) + _MARGIN
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    machine = figures.get("device") or figures["machine"]["cpu"]
    draw.text((_MARGIN, 16), f"{figures['model']}: seconds a picture, the less the better", _INK, large)
    about = f"{machine.replace('×', 'x ')}; {figures['date']}; {rows[0]['rounds']} rounds in turns"
    draw.text((_MARGIN, 40), about, _FAINT, small)
    place = _MARGIN
    for side in SIDES:
        draw.rectangle((place, 64, place + 12, 76), _COLOURS[side])
        draw.text((place + 18, 63), _NAMES[side], _INK, small)
        place += 40 + int(draw.textlength(_NAMES[side], small))
    longest = max(row[f"{side}_s"]["maximum"] / row["batch"] for row in rows for side in SIDES)
    scale = (_WIDTH - _LEFT - 3 * _MARGIN - 60) / longest
    for number, row in enumerate(rows):
        y = top + number * group
        batch = f", {row['batch']} a job" if row["batch"] > 1 else ""
        draw.text((_MARGIN, y + _BAR), f"{row['size']} x {row['size']}, {row['steps']} steps{batch}", _INK, small)
        for side in SIDES:
            taken = {name: value / row["batch"] for name, value in row[f"{side}_s"].items()}
            end = _LEFT + scale * taken["median"]
            draw.rectangle((_LEFT, y, end, y + _BAR - 3), _COLOURS[side])
            span = [(_LEFT + scale * taken[name], y + _BAR // 2 - 1) for name in ("minimum", "maximum")]
            draw.line(span, _INK)
            more = f"  {row[f'{side}_ratio']:.1f} x" if side != "ours" else ""
            draw.text((max(end, span[1][0]) + 6, y - 1), f"{taken['median']:.2f} s{more}", _INK, small)
            y += _BAR
    return image

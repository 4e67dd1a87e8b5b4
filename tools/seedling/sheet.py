"""A sheet of example pictures with their prompts, for a person to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from .evaluate import Painter, open_painter
from .grammar import NATIVE_SIZE

EXAMPLES = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a pink heart on a black background",
    "a green triangle on an orange background",
    "a purple ring on a gray background",
    "a brown diamond on a pink background",
    "a white square on a blue background",
    "a large yellow star on a purple background",
    "a small red heart on the left on a white background",
    "a white circle at the top on a green background",
    "a black ring on a striped orange background",
    "a blue heart on a checkered white background",
    "a yellow square on a dotted green background",
    "a red circle above a blue square on a white background",
    "a green star next to a pink heart on a black background",
    "two red hearts on a white background",
    "three yellow stars on a blue background",
    "four black circles on an orange background",
    "mountains at sunset",
    "mountains by day",
    "a house in winter",
    "a house at night",
    "the sea with a boat at sunset",
    "the sea with a boat by day",
    "a forest in winter",
    "a forest at night",
    "a city at night",
    "a city by day",
    "a heart",
    "star",
    "sunset",
    "winter",
    "red",
    "a photo of a blue circle",
    "blurry red star on a white background",
    "masterpiece, best quality, a green heart, white background",
    "a striped blue background",
    "blue circle",
    "a heart on a white background",
    "",
)
_COLUMNS = 8
_TEXT_HEIGHT = 34


def sheet(painter: Painter, texts: tuple[str, ...] = EXAMPLES, first_seed: int = 1) -> Image.Image:
    """The pictures in rows, each over its prompt."""
    pictures = painter.paint(texts, first_seed=first_seed)
    cell_width, cell_height = NATIVE_SIZE + 6, NATIVE_SIZE + _TEXT_HEIGHT
    rows = -(-len(texts) // _COLUMNS)
    page = Image.new("RGB", (_COLUMNS * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(page)
    for index, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        x, y = index % _COLUMNS * cell_width, index // _COLUMNS * cell_height
        page.paste(picture, (x, y))
        pen.multiline_text((x, y + NATIVE_SIZE), _wrapped(text or "(empty)"), fill="black", font_size=9, spacing=1)
    return page


def _wrapped(text: str, letters: int = 27) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the pipeline")
    parser.add_argument("picture", type=Path, help="where the sheet goes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    sheet(open_painter(options.folder, guidance=options.guidance), first_seed=options.seed).save(options.picture)


if __name__ == "__main__":
    main()

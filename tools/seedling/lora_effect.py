"""Measure what blueprint does to seedling's pictures, by darkroom's own engine, and show it on a sheet."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Picture
from darkroom.job import parse_fields, resolve
from darkroom.models.catalog import Catalog

from .lora import INK, PAPER
from .make import REPORT

SHEET = REPORT.with_name("blueprint.png")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN = (
    "a red heart on a white background",
    "a yellow star on a black background",
    "a house at sunset",
    "the sea with a boat at night",
    "three green squares on a pink background",
    "a blue circle above a red triangle on a white background",
)
PROMPTS = (
    *SHOWN,
    "a large green ring on a gray background",
    "a small white diamond on the left on a red background",
    "two purple hearts on a yellow background",
    "a black square next to an orange circle on a blue background",
    "mountains by day",
    "a forest in winter",
)
SEEDS = (1, 2)
NEAR = 60.0  # of 441, the distance of black and white
GAP = 4


def near_paper(picture: Image.Image) -> float:
    """The share of its pixels that have the paper's colour."""
    return float((np.linalg.norm(_pixels(picture) - np.array(PAPER), axis=2) < NEAR).mean())


def between_paper_and_ink(picture: Image.Image) -> float:
    """The share of its pixels that a pen on this paper could have made: any mixture of the two colours."""
    pixels, way = _pixels(picture) - np.array(PAPER), np.array(INK) - np.array(PAPER)
    along = (pixels @ way / (way @ way)).clip(0, 1)
    return float((np.linalg.norm(pixels - along[:, :, None] * way, axis=2) < NEAR).mean())


def _pixels(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(picture, dtype=np.float64)


def paint(engine: Engine, config: Config, prompt: str, weight: float, seed: int) -> Image.Image:
    """At the model's own settings."""
    request = parse_fields({"prompt": prompt, "seed": seed, "loras": [{"name": "blueprint", "weight": weight}]})
    job = resolve(request, config, Catalog(config.models), "effect")
    events = engine.render(job, frozenset(), lambda: False)
    (data,) = (event.data for event in events if isinstance(event, Picture))
    return Image.open(io.BytesIO(data)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path, default=SHEET, help="where the sheet goes: a weight a row")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        config = Config(engine={"device": "cpu", "dtype": "float32", "cache_dir": cache})
        engine = Engine(config)
        side = 128 + GAP
        sheet = Image.new("RGB", (len(SHOWN) * side - GAP, len(WEIGHTS) * side - GAP), "white")
        print("| weight | pixels of the paper's colour | pixels between paper and ink |\n| --- | --- | --- |")
        for row, weight in enumerate(WEIGHTS):
            pictures = [paint(engine, config, prompt, weight, seed) for seed in SEEDS for prompt in PROMPTS]
            for column, picture in enumerate(pictures[: len(SHOWN)]):
                sheet.paste(picture, (column * side, row * side))
            paper, pen = (np.mean([measure(p) for p in pictures]) for measure in (near_paper, between_paper_and_ink))
            print(f"| {weight:g} | {paper:.1%} | {pen:.1%} |", flush=True)
    sheet.save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()

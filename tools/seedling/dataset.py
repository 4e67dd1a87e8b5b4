"""The drawn pictures and their prompts, in one folder by size: numbered, reproducible, drawn in parallel."""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .captions import caption
from .drawing import draw
from .picture import Frame, Plan, random_frame, random_plan

PICTURES = 40_000
CAPTIONS_PER_PICTURE = 5
_CHUNK = 250


def sample(seed: int, number: int) -> tuple[Plan, Frame, random.Random]:
    """The plan and frame of a picture, by number alone, and the source of its further chances."""
    rng = random.Random(f"seedling {seed} {number}")
    return random_plan(rng), random_frame(rng), rng


def _draw_one(seed: int, number: int) -> tuple[NDArray[np.uint8], list[str]]:
    plan, frame, rng = sample(seed, number)
    pixels = np.asarray(draw(plan, frame, rng), dtype=np.uint8)
    return pixels, [caption(rng, plan) for _ in range(CAPTIONS_PER_PICTURE)]


def _draw_some(seed: int, numbers: range) -> list[tuple[NDArray[np.uint8], list[str]]]:
    return [_draw_one(seed, number) for number in numbers]


def draw_all(folder: Path, pictures: int, seed: int, processes: int) -> None:
    """Draw into ``folder``; does nothing if the same pictures are there already."""
    recipe = {"pictures": pictures, "seed": seed}
    mark = folder / "recipe.json"
    if mark.exists() and json.loads(mark.read_text()) == recipe:
        return
    folder.mkdir(parents=True, exist_ok=True)
    pixels: dict[str, list[NDArray[np.uint8]]] = defaultdict(list)
    captions: dict[str, list[list[str]]] = defaultdict(list)
    chunks = [range(start, min(start + _CHUNK, pictures)) for start in range(0, pictures, _CHUNK)]
    with ProcessPoolExecutor(processes) as pool:
        for done in pool.map(_draw_some, [seed] * len(chunks), chunks):
            for picture, prompts in done:
                key = f"{picture.shape[0]}x{picture.shape[1]}"
                pixels[key].append(picture)
                captions[key].append(prompts)
    for key in pixels:
        np.save(folder / f"{key}.npy", np.stack(pixels[key]))
        (folder / f"{key}.json").write_text(json.dumps(captions[key]))
    mark.write_text(json.dumps(recipe))


def frames(folder: Path) -> list[Frame]:
    """The sizes (height, width) there are pictures of."""
    found = [path.stem.split("x") for path in sorted(folder.glob("*x*.npy"))]
    return [(int(height), int(width)) for height, width in found]


def load_pictures(folder: Path, frame: Frame) -> NDArray[np.uint8]:
    """Pictures of one size, (n, height, width, 3), mapped, not read."""
    pictures: NDArray[np.uint8] = np.load(folder / f"{frame[0]}x{frame[1]}.npy", mmap_mode="r")
    return pictures


def load_captions(folder: Path, frame: Frame) -> list[list[str]]:
    captions: list[list[str]] = json.loads((folder / f"{frame[0]}x{frame[1]}.json").read_text())
    return captions


def every_caption(folder: Path) -> Iterator[str]:
    for frame in frames(folder):
        for prompts in load_captions(folder, frame):
            yield from prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    draw_all(options.folder, options.pictures, options.seed, options.processes)


if __name__ == "__main__":
    main()

"""What CI asks of speed: ratios to references on the same machine, none under a floor well below its bar.

    python tools/speed_guard.py

Takes about two minutes on a quiet machine. A figure under its floor is measured again, twice, before it counts: what is
slow once was the machine. The bars and how they are measured by hand are in docs/benchmarks.md.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from darkroom.bench.engine import Case, compare, frame
from darkroom.bench.publish import against_a_null_sink, encoding
from darkroom.bench.spool import against_the_floor
from darkroom.config import Config

TRIES = 3

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Floor:
    """What a figure must reach, or with ``most`` may not pass; ``bar`` is what it is meant to be."""

    figure: str
    bar: float
    limit: float
    most: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit

    def better(self, one: float, other: float) -> float:
        return min(one, other) if self.most else max(one, other)


@dataclass(frozen=True)
class Part:
    """Figures that are measured together."""

    name: str
    measure: Callable[[], Figures]
    floors: Sequence[Floor]


def hold(part: Part) -> bool:
    """Measure it, again where need be, and say what came out. Returns whether all its floors hold."""
    best: dict[str, float] = {}
    for _ in range(TRIES):
        figures = part.measure()
        for floor in part.floors:
            value = figures[floor.figure]
            best[floor.figure] = floor.better(best.get(floor.figure, value), value)
        if all(floor.holds(best[floor.figure]) for floor in part.floors):
            break
    for floor in part.floors:
        sign = "≤" if floor.most else "≥"
        verdict = "ok" if floor.holds(best[floor.figure]) else "FAILED"
        name = f"{part.name} {floor.figure}"
        print(
            f"{name:24} {best[floor.figure]:8.2f}   floor {sign} {floor.limit:g}, bar {sign} {floor.bar:g}   {verdict}"
        )
    return all(floor.holds(best[floor.figure]) for floor in part.floors)


def parts(config: Config, folder: Path) -> list[Part]:
    def place() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    def whole_pictures() -> Figures:
        row = compare(config, "seedling", [Case(128, 6)], 5, _quiet)["cases"][0]
        return {name: value for name, value in row.items() if name.endswith("_ratio")}

    return [
        Part(
            "png",
            lambda: encoding(_pictures()),
            [Floor("png_ratio", 8, 4), Floor("png_bytes_ratio", 1.07, 1.07, most=True)],
        ),
        Part("spool", lambda: against_the_floor(place(), 200, _quiet), [Floor("ratio", 0.9, 0.3)]),
        Part("publish", lambda: against_a_null_sink(config, place(), 10, _quiet), [Floor("ratio", 0.98, 0.6)]),
        Part("engine", whole_pictures, [Floor("pipeline_ratio", 1.0, 0.8), Floor("tutorial_ratio", 1.0, 0.8)]),
        Part("frame", lambda: frame(config, "seedling", 3, _quiet), [Floor("step_us_ratio", 1.0, 0.5)]),
    ]


def _pictures() -> list[bytes]:
    """Such as models make: waves and shapes under a fine grain."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:512, 0:512]
    made = []
    for seed in range(2):
        waves = 120 + 70 * np.sin((np.stack([x + y, x - y, 2 * x], -1) + 90 * seed) / 60)
        waves[(x - 200) ** 2 + (y - 280) ** 2 < 120**2] = (200, 60, 40)
        grain = np.random.default_rng(seed).normal(0, 2, waves.shape)
        file = io.BytesIO()
        Image.fromarray((waves + grain).clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
        made.append(file.getvalue())
    return made


def _quiet(done: int, total: int) -> None:
    pass


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="speed-guard-") as temporary:
        folder = Path(temporary)
        config = Config(engine={"device": "cpu", "dtype": "float32", "cache_dir": folder / "cache"})
        held = [hold(part) for part in parts(config, folder)]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What ``guidance_interval`` saves on the bundled model, and what it costs: darkroom's engine, the evaluation's judge.

Run as ``python -m tools.seedling.interval --judge build/seedling/judge.pt``; about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tools.seedling import evaluate
from tools.seedling import judge as judges

from darkroom.catalog import Catalog
from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Picture
from darkroom.job import parse_fields, resolve

INTERVALS = (None, (0.1, 0.8), (0.0, 0.5), (0.2, 0.6))
EVERY = 2
"""So many prompts of the evaluation make one here."""
ROUNDS = 9


class Painter:
    """The bundled model in float32 on one thread."""

    def __init__(self) -> None:
        self.config = Config(engine={"device": "cpu", "dtype": "float32", "threads": 1})
        self.engine, self.catalog = Engine(self.config), Catalog(self.config.models)

    def paint(self, text: str, seed: int, interval: tuple[float, float] | None) -> Image.Image:
        fields = {"prompt": text, "seed": seed} | ({"guidance_interval": list(interval)} if interval else {})
        job = resolve(parse_fields(fields), self.config, self.catalog, "interval")
        (data,) = [
            event.data for event in self.engine.render(job, frozenset(), lambda: False) if isinstance(event, Picture)
        ]
        return Image.open(io.BytesIO(data)).convert("RGB")


def gain(painter: Painter) -> dict[str, float]:
    """How many times less of the processor a picture takes than with guidance in all steps; medians, in turns."""
    spent: dict[str, list[float]] = {str(interval): [] for interval in INTERVALS}
    for seed in range(-1, ROUNDS):
        for interval in INTERVALS:
            begin = time.process_time()
            painter.paint("a red heart on a white background", max(seed, 0), interval)
            if seed >= 0:  # the first round warms up
                spent[str(interval)].append(time.process_time() - begin)
    whole = spent[str(None)]
    return {
        interval: round(statistics.median(a / b for a, b in zip(whole, seconds, strict=True)), 2)
        for interval, seconds in spent.items()
    }


def cost(painter: Painter, judge: judges.Judge) -> dict[str, dict[str, float]]:
    """The evaluation's figures of each interval, and the mean difference of a pixel, of 255."""
    figures: dict[str, dict[str, float]] = {}
    whole: list[list[Image.Image]] = []
    for interval in INTERVALS:
        scores: dict[str, float] = {}
        away: list[float] = []
        for number, (prompts, score) in enumerate(evaluate.SCORED[:-1]):  # all but other sizes
            asked = prompts()[::EVERY]
            painted = [painter.paint(one.text, 1000 + seed, interval) for seed, one in enumerate(asked)]
            if interval is None:
                whole.append(painted)
            scores |= score(asked, painted, judge)
            away += [
                float(np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).mean())
                for ours, theirs in zip(painted, whole[number], strict=True)
            ]
        figures[str(interval)] = scores | {"pixels": round(float(np.mean(away)), 2)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, required=True, help="the judge's file; trained if it is not there")
    arguments = parser.parse_args()
    painter = Painter()
    print(json.dumps({"gain": gain(painter), "cost": cost(painter, judges.load_or_train(arguments.judge))}, indent=2))


if __name__ == "__main__":
    main()

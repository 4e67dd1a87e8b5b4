"""What the shortcuts that a job may take save on the bundled model, and what they cost in quality.

Darkroom's engine, the evaluation's judge. Run as ``python -m tools.seedling.shortcuts reuse_features --judge
build/seedling/judge.pt``; ten to twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tools.seedling import evaluate
from tools.seedling import judge as judges

from darkroom.catalog import Catalog
from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Picture
from darkroom.job import parse_fields, resolve

Fields = Mapping[str, Any]

CHOICES: Mapping[str, Sequence[Fields]] = {
    "guidance_interval": [{}, *({"guidance_interval": list(ends)} for ends in ((0.1, 0.8), (0.0, 0.5), (0.2, 0.6)))],
    "reuse_features": [{}, *({"reuse_features": every} for every in (2, 3, 5))],
    "fewer_steps": [
        {},
        *({"num_inference_steps": steps} for steps in (13, 10)),
        {"num_inference_steps": 4, "sampler": "LCM", "guidance_scale": 1},
    ],
}
"""By the shortcut; the first of each, what they are compared with, takes none."""
EVERY = 2
"""So many prompts of the evaluation make one here."""
ROUNDS = 9


class Painter:
    """The bundled model in float32 on one thread."""

    def __init__(self) -> None:
        self.config = Config(engine={"device": "cpu", "dtype": "float32", "threads": 1})
        self.engine, self.catalog = Engine(self.config), Catalog(self.config.models)

    def paint(self, text: str, seed: int, fields: Fields) -> Image.Image:
        request = parse_fields({"prompt": text, "seed": seed, **fields})
        job = resolve(request, self.config, self.catalog, "shortcut")
        (data,) = [
            event.data for event in self.engine.render(job, frozenset(), lambda: False) if isinstance(event, Picture)
        ]
        return Image.open(io.BytesIO(data)).convert("RGB")


def gain(painter: Painter, choices: Sequence[Fields]) -> dict[str, float]:
    """How many times less of the processor a picture takes than with the first choice; medians, in turns."""
    spent: dict[str, list[float]] = {_named(fields): [] for fields in choices}
    for seed in range(-1, ROUNDS):
        for fields in choices:
            begin = time.process_time()
            painter.paint("a red heart on a white background", max(seed, 0), fields)
            if seed >= 0:  # the first round warms up
                spent[_named(fields)].append(time.process_time() - begin)
    whole = spent[_named(choices[0])]
    return {
        name: round(statistics.median(a / b for a, b in zip(whole, seconds, strict=True)), 2)
        for name, seconds in spent.items()
    }


def cost(painter: Painter, judge: judges.Judge, choices: Sequence[Fields]) -> dict[str, dict[str, float]]:
    """The evaluation's figures of each choice, and the mean difference of a pixel from the first's, of 255."""
    figures: dict[str, dict[str, float]] = {}
    whole: list[list[Image.Image]] = []
    for fields in choices:
        scores: dict[str, float] = {}
        away: list[float] = []
        for number, (prompts, score) in enumerate(evaluate.SCORED[:-1]):  # all but other sizes
            asked = prompts()[::EVERY]
            painted = [painter.paint(one.text, 1000 + seed, fields) for seed, one in enumerate(asked)]
            if fields is choices[0]:
                whole.append(painted)
            scores |= score(asked, painted, judge)
            away += [
                float(np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).mean())
                for ours, theirs in zip(painted, whole[number], strict=True)
            ]
        figures[_named(fields)] = scores | {"pixels": round(float(np.mean(away)), 2)}
    return figures


def _named(fields: Fields) -> str:
    return json.dumps(fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shortcut", choices=CHOICES)
    parser.add_argument("--judge", type=Path, required=True, help="the judge's file; trained if it is not there")
    arguments = parser.parse_args()
    painter, choices = Painter(), CHOICES[arguments.shortcut]
    judge = judges.load_or_train(arguments.judge)
    print(json.dumps({"gain": gain(painter, choices), "cost": cost(painter, judge, choices)}, indent=2))


if __name__ == "__main__":
    main()

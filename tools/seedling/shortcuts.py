"""What the shortcuts that a job or a configuration may take save on the bundled model, and what they cost in quality.

Darkroom's engine, the evaluation's judge. Run as ``python -m tools.seedling.shortcuts reuse_features --judge
build/seedling/judge.pt``; ten to twenty minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tools.seedling import evaluate
from tools.seedling import judge as judges

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Finished, Picture
from darkroom.job import parse_fields, resolve
from darkroom.models.catalog import Catalog

ROUNDS = 9


class Painter:
    """The bundled model on one thread, in float32 unless ``engine`` settings say otherwise."""

    def __init__(self, fields: Mapping[str, Any], engine: Mapping[str, Any]) -> None:
        self.name = json.dumps({**engine, **fields})
        self.fields = fields
        self.config = Config(engine={"device": "cpu", "dtype": "float32", "threads": 1, **engine})
        self.engine, self.catalog = Engine(self.config), Catalog(self.config.models)
        self.seconds: Mapping[str, float] = {}
        """Of the last picture, by phase, by the clock."""

    def paint(self, text: str, seed: int) -> Image.Image:
        request = parse_fields({"prompt": text, "seed": seed, **self.fields})
        job = resolve(request, self.config, self.catalog, "shortcut")
        pictures = []
        for event in self.engine.render(job, frozenset(), lambda: False):
            match event:
                case Picture():
                    pictures.append(event.data)
                case Finished():
                    self.seconds = event.seconds
        (data,) = pictures
        return Image.open(io.BytesIO(data)).convert("RGB")


def jobs(*choices: Mapping[str, Any]) -> Iterator[Painter]:
    """A painter for each, by fields of its jobs."""
    return (Painter(fields, {}) for fields in choices)


def engines(*choices: Mapping[str, Any]) -> Iterator[Painter]:
    """A painter for each, by settings of its engine."""
    return (Painter({}, engine) for engine in choices)


FEW = {"sampler": "Euler", "schedule": "sgm_uniform", "guidance_scale": 1}
"""What fewstep is for; the steps are 4."""

CHOICES: Mapping[str, Iterator[Painter]] = {
    "guidance_interval": jobs({}, *({"guidance_interval": ends} for ends in ([0.1, 0.8], [0.0, 0.5], [0.2, 0.6]))),
    "reuse_features": jobs({}, *({"reuse_features": every} for every in (2, 3, 5))),
    "fewer_steps": jobs(
        {},
        *({"num_inference_steps": steps} for steps in (13, 10)),
        {"num_inference_steps": 4, "sampler": "LCM", "guidance_scale": 1},
        {**FEW, "num_inference_steps": 4},
        *({**FEW, "num_inference_steps": steps, "loras": ["fewstep"]} for steps in (2, 4, 8)),
    ),
    "openvino": engines(
        {},
        *({"backend": "openvino", "dtype": dtype} for dtype in ("float32", "bfloat16")),
        {"backend": "openvino", "dtype": "bfloat16", "openvino_precision": "int8"},
    ),
}
"""By the shortcut; the first of each, what they are compared with, takes none."""


def gain(painters: Sequence[Painter]) -> dict[str, dict[str, float]]:
    """How many times less of the processor a picture takes than the first painter's, and of the clock its denoising.

    Medians of rounds in turns.
    """
    spent: dict[str, list[tuple[float, float]]] = {painter.name: [] for painter in painters}
    for seed in range(-1, ROUNDS):
        for painter in painters:
            begin = time.process_time()
            painter.paint("a red heart on a white background", max(seed, 0))
            if seed >= 0:  # the first round warms up
                spent[painter.name].append((time.process_time() - begin, painter.seconds["denoise"]))
    first = spent[painters[0].name]

    def ratio(which: int, own: list[tuple[float, float]]) -> float:
        return round(statistics.median(a[which] / b[which] for a, b in zip(first, own, strict=True)), 2)

    return {name: {"picture": ratio(0, own), "denoise": ratio(1, own)} for name, own in spent.items()}


def cost(painters: Sequence[Painter], judge: judges.Judge, every: int, seeds: int) -> dict[str, dict[str, float]]:
    """The evaluation's figures of each, and how far its pictures are from the first painter's.

    One in ``every`` prompts, each with so many ``seeds``.
    """
    figures: dict[str, dict[str, float]] = {}
    first: list[list[Image.Image]] = []
    for painter in painters:
        scores: dict[str, float] = {}
        squares: list[float] = []
        away: list[float] = []
        for number, (prompts, score) in enumerate(evaluate.SCORED[:-1]):  # all but other sizes
            asked = prompts()[::every] * seeds
            painted = [painter.paint(one.text, 1000 + seed) for seed, one in enumerate(asked)]
            if painter is painters[0]:
                first.append(painted)
            scores |= score(asked, painted, judge)
            for ours, theirs in zip(painted, first[number], strict=True):
                difference = np.asarray(ours, float) - np.asarray(theirs, float)
                away.append(float(np.abs(difference).mean()))
                squares.append(float((difference**2).mean()))
        figures[painter.name] = scores | {"prompts": len(away), "pixels": round(statistics.mean(away), 2)}
        if painter is not painters[0]:
            ratios = [psnr(square) for square in squares]
            figures[painter.name] |= {
                "psnr_median": round(statistics.median(ratios), 1),
                "psnr_worst": round(min(ratios), 1),
            }
    return figures


def psnr(square: float) -> float:
    """Peak signal to noise in dB, of a mean squared difference; infinite for the same pixels."""
    return 10 * math.log10(255**2 / square) if square else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shortcut", choices=CHOICES)
    parser.add_argument("--judge", type=Path, required=True, help="the judge's file; trained if it is not there")
    parser.add_argument("--every", type=int, default=2, help="so many prompts of the evaluation make one here")
    parser.add_argument("--seeds", type=int, default=1, help="so many pictures of each of these prompts")
    arguments = parser.parse_args()
    painters = list(CHOICES[arguments.shortcut])
    judge = judges.load_or_train(arguments.judge)
    print(
        json.dumps({"gain": gain(painters), "cost": cost(painters, judge, arguments.every, arguments.seeds)}, indent=2)
    )


if __name__ == "__main__":
    main()

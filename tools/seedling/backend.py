"""What OpenVINO gains on the bundled model, and what it costs: darkroom's engine, the evaluation's judge.

Run as ``python -m tools.seedling.backend --judge build/seedling/judge.pt``; about ten minutes of one core.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tools.seedling import evaluate
from tools.seedling import judge as judges

from darkroom.catalog import Catalog
from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Finished, Picture
from darkroom.job import parse_fields, resolve

BACKENDS = (("torch", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
ROUNDS = 5


class Painter:
    """The bundled model on one thread."""

    def __init__(self, backend: str, dtype: str) -> None:
        self.name = f"{backend} {dtype}"
        self.config = Config(engine={"device": "cpu", "dtype": dtype, "threads": 1, "backend": backend})
        self.engine, self.catalog = Engine(self.config), Catalog(self.config.models)
        self.seconds: dict[str, float] = {}

    def paint(self, text: str, seed: int) -> Image.Image:
        job = resolve(parse_fields({"prompt": text, "seed": seed}), self.config, self.catalog, "backend")
        data = b""
        for event in self.engine.render(job, frozenset(), lambda: False):
            match event:
                case Picture():
                    data = event.data
                case Finished():
                    self.seconds = dict(event.seconds)
        return Image.open(io.BytesIO(data)).convert("RGB")


def gain(painters: list[Painter]) -> dict[str, dict[str, float]]:
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


def cost(painters: list[Painter], judge: judges.Judge, every: int) -> dict[str, dict[str, float]]:
    """The evaluation's figures of each, and how far its pictures are from the first painter's."""
    figures: dict[str, dict[str, float]] = {}
    first: list[list[Image.Image]] = []
    for painter in painters:
        scores: dict[str, float] = {}
        ratios: list[float] = []
        for number, (prompts, score) in enumerate(evaluate.SCORED[:-1]):  # all but other sizes
            asked = prompts()[::every]
            painted = [painter.paint(one.text, 1000 + seed) for seed, one in enumerate(asked)]
            if painter is painters[0]:
                first.append(painted)
            scores |= score(asked, painted, judge)
            ratios += [psnr(ours, theirs) for ours, theirs in zip(painted, first[number], strict=True)]
        figures[painter.name] = {
            **{name: round(100 * value, 1) for name, value in scores.items()},
            "prompts": len(ratios),
        }
        if painter is not painters[0]:
            figures[painter.name] |= {"psnr_median": round(statistics.median(ratios), 1), "psnr_worst": min(ratios)}
    return figures


def psnr(ours: Image.Image, theirs: Image.Image) -> float:
    """Peak signal to noise in dB; infinite for the same pixels."""
    square = float(((np.asarray(ours, float) - np.asarray(theirs, float)) ** 2).mean())
    return 10 * math.log10(255**2 / square) if square else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", type=Path, required=True, help="where the trained classifier is, or is put")
    parser.add_argument("--every", type=int, default=2, help="so many prompts of the evaluation make one here")
    options = parser.parse_args()
    judge = judges.load_or_train(options.judge)
    painters = [Painter(backend, dtype) for backend, dtype in BACKENDS]
    told: dict[str, Any] = {"times_faster": gain(painters), "percent": cost(painters, judge, options.every)}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()

"""Compare ways to use a trained model, on prompts that the evaluation does not ask: weights, guidance, sampler."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from . import evaluate, prompts, samplers
from . import judge as judges
from .evaluate import Figures, Painter
from .export import DEFAULTS, build
from .judge import Judge


def score(painter: Painter, judge: Judge, share: float = 1.0) -> Figures:
    """The figures of the evaluation, of the tuning prompts or the first ``share`` of each kind."""
    scores = (evaluate.score_singles, evaluate.score_pairs, evaluate.score_counts, evaluate.score_sizes)
    figures: Figures = {}
    for asked, score_of in zip(prompts.tuning(), scores, strict=True):
        some: Sequence[prompts.Asked] = asked[: round(share * len(asked))]
        figures |= score_of(some, painter.paint_all(some), judge)
    return figures | evaluate.score_circle(painter, seeds=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="checkpoints")
    parser.add_argument("--weights", nargs="+", choices=("last", "average"), default=("last", "average"))
    parser.add_argument("--guidance", nargs="+", type=float, default=(DEFAULTS["guidance_scale"],))
    parser.add_argument("--sampler", nargs="+", choices=samplers.SAMPLERS, default=(DEFAULTS["sampler"],))
    parser.add_argument("--schedule", nargs="+", choices=samplers.SCHEDULES, default=(DEFAULTS["schedule"],))
    parser.add_argument("--steps", type=int, default=DEFAULTS["num_inference_steps"])
    parser.add_argument("--share", type=float, default=1.0, help="of the prompts")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge = judges.load_or_train(options.run / "judge.pt")
    for weights in options.weights:
        pipeline = build(options.run, averaged=weights == "average")
        pipeline.set_progress_bar_config(disable=True)
        for guidance, sampler, schedule in product(options.guidance, options.sampler, options.schedule):
            samplers.use(pipeline, sampler, schedule)
            figures = score(Painter(pipeline, options.steps, guidance), judge, options.share)
            print(weights, guidance, sampler, schedule, json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()

"""How well a pipeline folder does what its prompts say, measured by program; the last line is JSON."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from . import judge as judges
from . import measure, prompts, samplers
from .drawing import draw
from .grammar import NATIVE_SIZE, held_out_combinations
from .judge import Judge
from .picture import Background, Single, Thing
from .vae import to_unit

FIRST_SEED = 1000
AT_ONCE = 10
OTHER_SIZES = ((96, 128), (128, 160), (160, 160), (192, 192))  # height, width
Figures = dict[str, float]


@dataclass(frozen=True)
class Painter:
    """A pipeline with the settings to judge it at."""

    pipeline: StableDiffusionPipeline
    steps: int
    guidance: float

    def paint(
        self,
        texts: Sequence[str],
        negatives: Sequence[str] | None = None,
        frame: tuple[int, int] = (NATIVE_SIZE, NATIVE_SIZE),
        first_seed: int = FIRST_SEED,
    ) -> list[Image.Image]:
        """One picture for each prompt, the seeds counting up."""
        pictures: list[Image.Image] = []
        for start in range(0, len(texts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            seeds = range(first_seed + start, first_seed + start + len(texts[part]))
            pictures += self.pipeline(
                list(texts[part]),
                negative_prompt=list(negatives[part]) if negatives else None,
                height=frame[0],
                width=frame[1],
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            ).images
        return pictures


def open_painter(
    folder: Path,
    sampler: str | None = None,
    schedule: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Painter:
    """The pipeline in a folder at its own recommended settings, or at those given instead."""
    defaults = json.loads((folder / "darkroom.json").read_text())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    samplers.use(pipeline, sampler or defaults["sampler"], schedule or defaults["schedule"])
    return Painter(
        pipeline,
        defaults["num_inference_steps"] if steps is None else steps,
        defaults["guidance_scale"] if guidance is None else guidance,
    )


def share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)


def score_singles(asked: Sequence[prompts.SinglePrompt], pictures: list[Image.Image], judge: Judge) -> Figures:
    named = judge.name(pictures)
    background = [measure.background_color(p) == a.background for p, a in zip(pictures, asked, strict=True)]
    color = [measure.object_color(p) == a.color for p, a in zip(pictures, asked, strict=True)]
    shape = [name[0] == a.shape for name, a in zip(named, asked, strict=True)]
    every = [all(three) for three in zip(background, color, shape, strict=True)]
    return {"background": share(background), "color": share(color), "shape": share(shape), "all": share(every)}


def score_pairs(painter: Painter) -> Figures:
    asked = prompts.pairs()
    right = []
    for picture, prompt in zip(painter.paint([a.text for a in asked]), asked, strict=True):
        first, second = measure.place_of(picture, prompt.first), measure.place_of(picture, prompt.second)
        axis = 1 if prompt.upright else 0
        right.append(first is not None and second is not None and first[axis] + 0.1 < second[axis])
    return {"pair": share(right)}


def score_counts(painter: Painter) -> Figures:
    asked = prompts.counts()
    pictures = painter.paint([a.text for a in asked])
    return {"count": share([measure.count(p, a.color) == a.number for p, a in zip(pictures, asked, strict=True)])}


def score_scenes(painter: Painter, judge: Judge) -> Figures:
    asked = prompts.scenes()
    named = judge.name(painter.paint([a.text for a in asked]))
    return {
        "scene": share([name[1] == a.scene for name, a in zip(named, asked, strict=True)]),
        "time": share([name[2] == a.time for name, a in zip(named, asked, strict=True)]),
    }


def score_words(painter: Painter, judge: Judge) -> Figures:
    """Single words, dropped attributes, "a photo of"."""
    asked = prompts.words()
    pictures = painter.paint([a.text for a in asked])
    right = []
    for picture, name, prompt in zip(pictures, judge.name(pictures), asked, strict=True):
        seen = {
            "shape": name[0],
            "scene": name[1],
            "time": name[2],
            "color": measure.object_color(picture),
            "background": measure.background_color(picture),
        }
        right.append(seen[prompt.kind] == prompt.answer)
    return {"words": share(right)}


def score_negatives(painter: Painter, judge: Judge) -> Figures:
    """Paint with colours left open; name one that came in the negative prompt: it must go, the shape must stay."""
    texts = prompts.open_prompts()
    plain = painter.paint(texts)
    backgrounds = [measure.background_color(picture) for picture in plain]
    colors = [measure.object_color(picture) for picture in plain]
    halves = [index % 2 == 0 for index in range(len(texts))]
    negatives = [
        f"{background} background" if half else f"{color or 'blurry'}"
        for half, background, color in zip(halves, backgrounds, colors, strict=True)
    ]
    steered = painter.paint(texts, negatives)
    right = []
    for index, (picture, name) in enumerate(zip(steered, judge.name(steered), strict=True)):
        if halves[index]:
            gone = measure.background_color(picture) != backgrounds[index]
        else:
            gone = measure.object_color(picture) not in (colors[index], None)
        right.append(gone and f"a {name[0]}" == texts[index])
    return {"negative": share(right)}


def score_sizes(painter: Painter, judge: Judge) -> Figures:
    """Other sizes: background, colour and shape right, and one object only."""
    asked = prompts.singles()
    right: list[bool] = []
    for index, frame in enumerate(OTHER_SIZES):
        part = asked[index * 10 : index * 10 + 10]
        pictures = painter.paint([a.text for a in part], frame=frame)
        for picture, name, prompt in zip(pictures, judge.name(pictures), part, strict=True):
            right.append(
                measure.background_color(picture) == prompt.background
                and measure.object_color(picture) == prompt.color
                and name[0] == prompt.shape
                and measure.count(picture, prompt.color) == 1
            )
    return {"sizes": share(right)}


def seconds_per_picture(painter: Painter) -> Figures:
    """One picture at a time, the median of five, after one to warm up."""
    taken = []
    for seed in range(6):
        started = time.perf_counter()
        painter.paint(["a red heart on a white background"], first_seed=seed)
        taken.append(time.perf_counter() - started)
    return {"seconds_per_picture": round(statistics.median(taken[1:]), 3)}


def evaluate(painter: Painter, judge: Judge) -> Iterator[Figures]:
    """Every figure, as it is measured."""
    asked = prompts.singles()
    yield score_singles(asked, painter.paint([a.text for a in asked]), judge)
    yield score_pairs(painter)
    yield score_counts(painter)
    yield score_scenes(painter, judge)
    yield score_words(painter, judge)
    yield score_negatives(painter, judge)
    yield score_sizes(painter, judge)
    yield seconds_per_picture(painter)


def ceiling(painter: Painter, judge: Judge) -> Figures:
    """What the measuring says of right drawings that went once through the autoencoder."""
    rng = random.Random(7)
    pictures = []
    for color, shape, background in held_out_combinations()[:60]:
        x, y = 0.5 + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.1, 0.1)
        thing = Thing(shape, color, x, y, rng.uniform(0.22, 0.33), rng.uniform(-5, 5))
        plan = Single(Background(background), thing, "medium", "center")
        pictures.append(draw(plan, (NATIVE_SIZE, NATIVE_SIZE), rng))
    vae = painter.pipeline.vae
    with torch.no_grad():
        units = to_unit(np.stack([np.asarray(picture) for picture in pictures]), torch.device("cpu"))
        back = [vae.decode(vae.encode(part).latent_dist.mode()).sample for part in units.split(10)]
    images = painter.pipeline.image_processor.postprocess(torch.cat(back))
    return {f"ceiling_{name}": value for name, value in score_singles(prompts.singles(), images, judge).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the pipeline to judge")
    parser.add_argument("--judge", type=Path, required=True, help="where the trained classifier is, or is put")
    parser.add_argument("--sampler", choices=samplers.SAMPLERS)
    parser.add_argument("--schedule", choices=samplers.SCHEDULES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--singles", action="store_true", help="the sixty single objects only")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    judge = judges.load_or_train(options.judge)
    print("judge, on drawings it has not seen:", judges.accuracy(judge), flush=True)
    painter = open_painter(options.folder, options.sampler, options.schedule, options.steps, options.guidance)
    figures: Figures = {}
    if options.singles:
        asked = prompts.singles()
        figures |= score_singles(asked, painter.paint([a.text for a in asked]), judge)
    else:
        print(ceiling(painter, judge), flush=True)
        for some in evaluate(painter, judge):
            print(some, flush=True)
            figures |= some
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

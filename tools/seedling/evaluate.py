"""How well a pipeline folder does what its prompts say, measured by program; the last line is JSON.

Colours, places and counts are read from the pixels; shapes, scenes and times of day by a classifier trained on
drawings. What both say of right drawings, as they are and after the autoencoder, is measured too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from . import judge as judges
from . import measure, prompts, samplers
from .architecture import new_text_encoder, new_unet, new_vae
from .drawing import draw
from .judge import Judge
from .picture import Frame, Group, Pair, Scene, Single
from .prompts import LARGER, NATIVE, Asked
from .vae import initialize, to_unit

FIRST_SEED = 1000
AT_ONCE = 10
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
        frame: Frame = NATIVE,
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

    def paint_all(self, asked: Sequence[Asked]) -> list[Image.Image]:
        """A picture for each, in its frame; runs of the same frame are painted together."""
        pictures: list[Image.Image] = []
        for frame, run in groupby(asked, key=lambda prompt: prompt.frame):
            pictures += self.paint([prompt.text for prompt in run], frame=frame)
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


def untrained(painter: Painter) -> Painter:
    """The same architecture with random weights, to see that the measuring measures."""
    torch.manual_seed(4)
    pipeline = painter.pipeline
    vae = new_vae()
    initialize(vae)
    pipeline.register_modules(vae=vae.eval(), unet=new_unet().eval())
    pipeline.register_modules(text_encoder=new_text_encoder(pipeline.tokenizer).eval())
    return painter


def share(right: Sequence[bool]) -> float:
    return round(sum(right) / len(right), 4)


def _all_three(asked: Asked, picture: Image.Image, shape: str) -> tuple[bool, bool, bool]:
    """Background, colour, shape."""
    assert isinstance(asked.plan, Single)
    assert asked.plan.thing is not None
    return (
        measure.background_color(picture) == asked.plan.background.color,
        measure.object_color(picture) == asked.plan.thing.color,
        shape == asked.plan.thing.shape,
    )


def score_singles(asked: Sequence[Asked], pictures: Sequence[Image.Image], judge: Judge) -> Figures:
    """One object: background, colour, shape; all three, and all three where the combination was never seen."""
    named = judge.name(pictures)
    right = [_all_three(a, p, name[0]) for a, p, name in zip(asked, pictures, named, strict=True)]
    figures = {
        name: share([three[index] for three in right]) for index, name in enumerate(("background", "color", "shape"))
    }
    figures["all"] = share([all(three) for three in right])
    unseen = [all(three) for three, a in zip(right, asked, strict=True) if a.unseen]
    if unseen:
        figures["unseen"] = share(unseen)
    return figures


def score_pairs(asked: Sequence[Asked], pictures: Sequence[Image.Image], judge: Judge) -> Figures:
    """Two objects: the right colours in the right order; and both shapes, each cut out and judged alone."""
    ordered, shaped = [], []
    for prompt, picture in zip(asked, pictures, strict=True):
        assert isinstance(prompt.plan, Pair)
        things = (prompt.plan.first, prompt.plan.second)
        spots = measure.spots(picture)
        found = [next((spot for spot in spots if spot.color == thing.color), None) for thing in things]
        first, second = found
        if first is None or second is None:
            ordered.append(False)
            shaped.append(False)
            continue
        gap = second.y - first.y if prompt.plan.relation == "above" else second.x - first.x
        ordered.append(gap > 0.1)
        names = judge.name([measure.cut_out(picture, first), measure.cut_out(picture, second)])
        shaped.append(all(name[0] == thing.shape for name, thing in zip(names, things, strict=True)))
    both = [a and b for a, b in zip(ordered, shaped, strict=True)]
    figures = {"pair": share(ordered), "pair_and_shapes": share(both)}
    unseen = [right for right, a in zip(both, asked, strict=True) if a.unseen]
    if unseen:
        figures["pair_and_shapes_unseen"] = share(unseen)
    return figures


def score_counts(asked: Sequence[Asked], pictures: Sequence[Image.Image], judge: Judge) -> Figures:
    """Several of a kind: the right number of the right colour; and every one of the right shape."""
    counted, shaped = [], []
    for prompt, picture in zip(asked, pictures, strict=True):
        assert isinstance(prompt.plan, Group)
        thing = prompt.plan.things[0]
        counted.append(measure.count(picture, thing.color) == len(prompt.plan.things))
        pieces = [measure.cut_out(picture, spot) for spot in measure.whole_spots(picture, thing.color)]
        shaped.append(bool(pieces) and all(name[0] == thing.shape for name in judge.name(pieces)))
    return {
        "count": share(counted),
        "count_and_shapes": share([a and b for a, b in zip(counted, shaped, strict=True)]),
    }


def score_scenes(asked: Sequence[Asked], pictures: Sequence[Image.Image], judge: Judge) -> Figures:
    scene, time_of_day = [], []
    for prompt, name in zip(asked, judge.name(pictures), strict=True):
        assert isinstance(prompt.plan, Scene)
        scene.append(name[1] == prompt.plan.kind)
        time_of_day.append(name[2] == prompt.plan.time)
    return {"scene": share(scene), "time": share(time_of_day)}


def score_sizes(asked: Sequence[Asked], pictures: Sequence[Image.Image], judge: Judge) -> Figures:
    """Other sizes: background, colour and shape right, and one object only."""
    right = []
    for prompt, picture, name in zip(asked, pictures, judge.name(pictures), strict=True):
        assert isinstance(prompt.plan, Single)
        assert prompt.plan.thing is not None
        single = measure.count(picture, prompt.plan.thing.color) == 1
        right.append(single and all(_all_three(prompt, picture, name[0])))
    at_192 = [fine for fine, prompt in zip(right, asked, strict=True) if prompt.frame == LARGER]
    return {"sizes": share(right), "at_192": share(at_192)}


SCORED = (
    (prompts.singles, score_singles),
    (prompts.pairs, score_pairs),
    (prompts.counts, score_counts),
    (prompts.scenes, score_scenes),
    (prompts.sizes, score_sizes),
)


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
    """Paint what leaves something open, then again with what came named in the negative prompt.

    It must go, and what the prompt did ask for must stay.
    """
    asked = prompts.negatives()
    texts = [a.text for a in asked]

    def seen(pictures: list[Image.Image]) -> list[dict[str, str | None]]:
        return [
            {
                "shape": name[0],
                "scene": name[1],
                "time": name[2],
                "color": measure.object_color(picture),
                "background": measure.background_color(picture),
            }
            for picture, name in zip(pictures, judge.name(pictures), strict=True)
        ]

    before = seen(painter.paint(texts))
    named = [came[a.kind] or "" for came, a in zip(before, asked, strict=True)]
    negatives = [f"{n} background" if a.kind == "background" else n for n, a in zip(named, asked, strict=True)]
    after = seen(painter.paint(texts, negatives))
    right = [
        now[a.kind] not in (name, "", None)
        and name != ""
        and a.shape in ("", now["shape"])
        and a.scene in ("", now["scene"])
        for now, name, a in zip(after, named, asked, strict=True)
    ]
    colors = [fine for fine, a in zip(right, asked, strict=True) if a.kind in ("color", "background")]
    words = [fine for fine, a in zip(right, asked, strict=True) if a.kind in ("shape", "time")]
    return {"negative": share(right), "negative_color": share(colors), "negative_word": share(words)}


def score_circle(painter: Painter, seeds: int = 20) -> Figures:
    """How far the median large red circle is from a disc; see ``measure.out_of_round``."""
    pictures = painter.paint([prompts.CIRCLE] * seeds, first_seed=1)
    return {"circle": round(statistics.median(measure.out_of_round(picture, "red") for picture in pictures), 4)}


def seconds_per_picture(painter: Painter) -> Figures:
    """One picture at a time on one core, the median of seven, after one to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = []
    for seed in range(8):
        started = time.perf_counter()
        painter.paint(["a red heart on a white background"], first_seed=seed)
        taken.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return {"seconds_per_picture": round(statistics.median(taken[1:]), 3)}


def evaluate(painter: Painter, judge: Judge) -> Iterator[Figures]:
    """Every figure, as it is measured."""
    for prompts_of, score in SCORED:
        asked = prompts_of()
        yield score(asked, painter.paint_all(asked), judge)
    yield score_words(painter, judge)
    yield score_negatives(painter, judge)
    yield score_circle(painter)
    yield seconds_per_picture(painter)


def drawn(asked: Sequence[Asked]) -> list[Image.Image]:
    """What the prompts ask for, as the drawing program draws it."""
    rng = random.Random(7)
    return [draw(prompt.plan, prompt.frame, rng) for prompt in asked]


@torch.no_grad()
def reconstructed(painter: Painter, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures, once through the autoencoder."""
    back: list[Image.Image] = []
    vae = painter.pipeline.vae
    for picture in pictures:
        unit = to_unit(np.asarray(picture)[None], torch.device("cpu"))
        back += painter.pipeline.image_processor.postprocess(vae.decode(vae.encode(unit).latent_dist.mode()).sample)
    return back


def limits(painter: Painter, judge: Judge) -> Figures:
    """What the measuring says of right drawings: ``drawn_…`` as they are, ``vae_…`` after the autoencoder."""
    figures: Figures = {}
    for prompts_of, score in SCORED:
        asked = prompts_of()
        right = drawn(asked)
        figures |= {f"drawn_{name}": figure for name, figure in score(asked, right, judge).items()}
        back = reconstructed(painter, right)
        figures |= {f"vae_{name}": figure for name, figure in score(asked, back, judge).items()}
    return figures


def report(painter: Painter, judge: Judge) -> Figures:
    """Every figure and every limit, printed as they come; the last line is all of them as JSON."""
    figures: Figures = {f"judge_{name}": figure for name, figure in judges.accuracy(judge).items()}
    print("judge, on drawings it has not seen:", figures, flush=True)
    for some in evaluate(painter, judge):
        print(some, flush=True)
        figures |= some
    figures |= limits(painter, judge)
    print(json.dumps(figures), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the pipeline to judge")
    parser.add_argument("--judge", type=Path, required=True, help="where the trained classifier is, or is put")
    parser.add_argument("--sampler", choices=samplers.SAMPLERS)
    parser.add_argument("--schedule", choices=samplers.SCHEDULES)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--untrained", action="store_true", help="random weights in the same architecture")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    painter = open_painter(options.folder, options.sampler, options.schedule, options.steps, options.guidance)
    report(untrained(painter) if options.untrained else painter, judges.load_or_train(options.judge))


if __name__ == "__main__":
    main()

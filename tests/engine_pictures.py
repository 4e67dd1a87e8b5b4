"""Pictures that jobs begin with, and engines that fail, for tests of the engine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from darkroom.engine.memory.host import Bound
from darkroom.engine.memory.learned import Learned
from darkroom.engine.memory.underway import UnderWay
from darkroom.engine.pipeline import Pipeline
from darkroom.engine.render import Engine
from darkroom.engine.rendering import Rendering
from darkroom.events import Event
from darkroom.job import Hires, Job
from darkroom.sampling import SAMPLERS
from engine_models import make_job, pictures, render

Pixels = np.ndarray[Any, np.dtype[np.int16]]


def pixels(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.int16)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def drawing(width: int = 64, height: int = 64) -> Image.Image:
    image = Image.new("RGB", (width, height), (90, 140, 220))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=(220, 60, 40))
    return image


def left_half(width: int = 64, height: int = 64) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def make(engine: Engine, job: Job, **images: Image.Image) -> list[Event]:
    return render(engine, job, images={field: png(image) for field, image in images.items()})


def begun(**fields: Any) -> Job:
    return make_job(**{"init_image": "init_image.png", "strength": 0.6, "num_inference_steps": 5, **fields})


EVERYTHING: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"init_image": "init_image.png", "strength": 0.6},
    "mask": {"init_image": "init_image.png", "mask_image": "mask_image.png", "strength": 0.7},
    "inpaint": {"model": "inpaint", "init_image": "init_image.png", "mask_image": "mask_image.png", "strength": 1.0},
    "hires": {"hires": Hires(scale=1.5, strength=0.5)},
    "interval": {"guidance_interval": (0.25, 0.75)},
    "reuse": {"reuse_features": 2},
}


def job_of(kind: str, **fields: Any) -> Job:
    sampler = fields.pop("sampler", "Euler a")
    schedule = SAMPLERS[sampler].automatic
    return make_job(**{"sampler": sampler, "schedule": schedule, "num_inference_steps": 4} | EVERYTHING[kind] | fields)


def make_kind(engine: Engine, job: Job, skip: set[int] | None = None) -> dict[int, bytes]:
    images = {"init_image": png(drawing()), "mask_image": png(left_half())}
    return pictures(render(engine, job, skip, images))


class Failing(torch.nn.Module):
    """A part of a pipeline that has no memory so many times, then works."""

    def __init__(self, part: Any, times: int, *calls: str) -> None:
        super().__init__()
        self.part, self.times, self.calls = part, times, calls
        self.config, self.dtype = part.config, part.dtype
        self.seen: list[tuple[int, ...]] = []

    def _fail(self, call: str, sample: torch.Tensor) -> None:
        self.seen.append(tuple(sample.shape))
        if call in self.calls and self.times > 0:
            self.times -= 1
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def forward(self, sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self._fail("forward", sample)
        return self.part(sample, *arguments, **options)

    def decode(self, sample: torch.Tensor) -> Any:
        self._fail("decode", sample)
        return self.part.decode(sample)

    def encode(self, sample: torch.Tensor) -> Any:
        self._fail("encode", sample)
        return self.part.encode(sample)


def out_of_memory(pipeline: Pipeline, times: int, part: str = "unet", *calls: str) -> Failing:
    """Puts one in the place of a part; when it is read from the disk again it is the part itself, if it is done."""
    pipeline.load()
    read = pipeline.loaders[part]
    failing = Failing(pipeline.loaded[part], times, *(calls or ("forward",)))
    pipeline.loaders[part] = lambda: failing if failing.times else read()
    pipeline.loaded[part] = failing
    return failing


def with_plan(engine: Engine, job: Job, folder: Path, **changes: Any) -> Iterator[Event]:
    rendering = Rendering(
        engine._models.get(job.model),
        job,
        list(range(job.count)),
        8,
        "cpu",
        lambda: False,
        images={"init_image": png(drawing()), "mask_image": png(left_half())},
        learned=Learned(folder),
        under_way=UnderWay(folder),
        bound=Bound(wanted=False),
        save_memory=lambda: None,
    )
    rendering.fitting.plan = replace(rendering.fitting.full, **changes)
    return rendering.run()

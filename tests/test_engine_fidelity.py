"""The same job gives the same picture, whatever was made before or beside it; and the one that diffusers makes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from darkroom.config import Config
from darkroom.engine.prompt import encode
from darkroom.engine.render import Engine
from darkroom.engine.sampling.samplers import make_scheduler
from darkroom.errors import Stopped
from darkroom.events import Event, Fallback
from darkroom.job import Hires, Job
from darkroom.sampling import SAMPLERS
from engine_models import make_job, pictures, render, steps
from engine_pictures import (
    EVERYTHING,
    begun,
    drawing,
    job_of,
    left_half,
    make,
    make_kind,
    out_of_memory,
    pixels,
    png,
    with_plan,
)

pytest_plugins = ("engine_fixtures",)

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture
def engine(with_inpainting: Config) -> Iterator[Engine]:
    engine = Engine(with_inpainting)
    yield engine
    engine.close()


# ---------------------------------------------------------------- against diffusers' own pipelines


class Recording(torch.nn.Module):
    """The VAE, which notes what it is given to decode."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.config = vae.config
        self.seen: list[torch.Tensor] = []

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.vae.dtype
        return dtype

    def encode(self, sample: torch.Tensor) -> Any:
        return self.vae.encode(sample)

    def decode(self, sample: torch.Tensor) -> Any:
        self.seen.append(sample * self.config.scaling_factor)
        return self.vae.decode(sample)


def our_latents(engine: Engine, job: Job, **images: Image.Image) -> torch.Tensor:
    pipeline = engine._models.get(job.model)
    pipeline.load()
    recording = Recording(pipeline.vae)
    pipeline.loaded["vae"] = recording
    try:
        make(engine, job, **images)
    finally:
        pipeline.loaded["vae"] = recording.vae
    return recording.seen[-1]


@cache
def their_pipeline(folder: Path, kind: str) -> Any:
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    extra = {"add_watermarker": False} if "XL" in kind else {}
    theirs = getattr(diffusers, kind).from_pretrained(folder, dtype=torch.float32, **extra)
    theirs.set_progress_bar_config(disable=True)
    return theirs, dict(theirs.scheduler.config)


def their_latents(config: Config, task: str, job: Job, **images: Any) -> torch.Tensor:
    """What diffusers' pipeline makes with the same scheduler; ``task`` is ``""``, ``Img2Img`` or ``Inpaint``."""
    xl = "XL" if "xl" in job.model else ""
    theirs, trained = their_pipeline(config.models.named[job.model].path, f"StableDiffusion{xl}{task}Pipeline")
    scheduler = make_scheduler(job.sampler, job.schedule, trained, job.num_inference_steps)
    scheduler.set_timesteps = lambda *_, **__: None  # they are set already
    theirs.scheduler = scheduler
    size = {} if task == "Img2Img" else {"width": job.width, "height": job.height}
    latents: torch.Tensor = theirs(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        num_inference_steps=job.num_inference_steps,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator().manual_seed(job.seed),
        output_type="latent",
        **size,
        **images,
        **({} if job.strength is None else {"strength": job.strength}),
    ).images
    return latents


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-3


OURS_ALONE = ("LMS", "PLMS")
"""Which diffusers' image to image begins wrongly: LMS with more derivatives than it has, PLMS with its second look."""

PAIRS = [("sd", name) for name in SAMPLERS] + [("sdxl", name) for name in ("Euler", "Euler a", "DPM++ 2M", "DDIM")]
ONE_LOOK_NO_NOISE = [("sd", name) for name in ("Euler", "DPM++ 2M", "DDIM", "UniPC", "DEIS")] + [("sdxl", "DPM++ 2M")]
"""For masks: after a first look of two ours puts nothing back, and diffusers draws latents that it never uses."""


@pytest.mark.parametrize(("model", "sampler"), PAIRS)
def test_text_to_image_is_that_of_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, with_inpainting: Config, engine: Engine
) -> None:
    job = make_job(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, num_inference_steps=6, height=96)
    assert_near(our_latents(engine, job), their_latents(with_inpainting, "", job))


@pytest.mark.parametrize(("model", "sampler"), [pair for pair in PAIRS if pair[1] not in OURS_ALONE])
def test_image_to_image_is_that_of_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, with_inpainting: Config, engine: Engine
) -> None:
    job = begun(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, height=96)
    theirs = their_latents(with_inpainting, "Img2Img", job, image=drawing(64, 96))
    assert_near(our_latents(engine, job, init_image=drawing(64, 96)), theirs)


@pytest.mark.parametrize("strength", [0.21, 0.5, 0.79, 1.0])
def test_image_to_image_takes_as_many_steps_as_diffusers_at_any_strength(
    strength: float, with_inpainting: Config, engine: Engine
) -> None:
    job = begun(strength=strength, num_inference_steps=8)
    assert_near(
        our_latents(engine, job, init_image=drawing()), their_latents(with_inpainting, "Img2Img", job, image=drawing())
    )
    counted = steps(make(engine, job, init_image=drawing()))
    assert [(step.step, step.steps) for step in counted] == [
        (number + 1, int(8 * strength)) for number in range(int(8 * strength))
    ]


@pytest.mark.parametrize(("model", "sampler"), ONE_LOOK_NO_NOISE)
def test_a_mask_works_as_in_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, with_inpainting: Config, engine: Engine
) -> None:
    job = begun(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, mask_image="mask_image.png")
    theirs = their_latents(with_inpainting, "Inpaint", job, image=drawing(), mask_image=left_half())
    assert_near(our_latents(engine, job, init_image=drawing(), mask_image=left_half()), theirs)


@pytest.mark.parametrize("model", ["sd", "inpaint", "inpaint-xl"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_mask_works_as_in_diffusers_at_any_strength_with_both_kinds_of_models(
    model: str, strength: float, with_inpainting: Config, engine: Engine
) -> None:
    job = begun(model=model, strength=strength, mask_image="mask_image.png", num_inference_steps=8)
    theirs = their_latents(with_inpainting, "Inpaint", job, image=drawing(), mask_image=left_half())
    assert_near(our_latents(engine, job, init_image=drawing(), mask_image=left_half()), theirs)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "Heun", "DPM++ 2M SDE"])
def test_an_inpainting_model_without_a_mask_paints_everything(
    sampler: str, with_inpainting: Config, engine: Engine
) -> None:
    job = make_job(model="inpaint", sampler=sampler, num_inference_steps=5)
    grey, everything = Image.new("RGB", (64, 64), (127, 127, 127)), Image.new("L", (64, 64), 255)
    theirs = their_latents(with_inpainting, "Inpaint", job, image=grey, mask_image=everything, strength=1.0)
    assert_near(our_latents(engine, job), theirs)


# ---------------------------------------------------------------- guidance in a part of the steps


def by_hand(engine: Engine, job: Job, guided: set[int]) -> torch.Tensor:
    """The latents of a loop that has guidance in these looks of the UNet, each text a call of its own."""
    pipeline = engine._models.get(job.model)
    pipeline.load()
    scheduler = make_scheduler(job.sampler, job.schedule, pipeline.scheduler_config, job.num_inference_steps)
    with torch.inference_mode():
        texts = encode(pipeline, job, guided=True)
        assert texts.negative is not None
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(job.seed))
        latents = latents * scheduler.init_noise_sigma
        for look, timestep in enumerate(scheduler.timesteps):
            shown = scheduler.scale_model_input(latents, timestep)
            predicted = pipeline.unet(shown, timestep, encoder_hidden_states=texts.positive.tokens).sample
            if look in guided:
                without = pipeline.unet(shown, timestep, encoder_hidden_states=texts.negative.tokens).sample
                predicted = without + job.guidance_scale * (predicted - without)
            latents = scheduler.step(predicted, timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize(
    ("sampler", "interval", "guided"),
    [
        ("Euler", (0.1, 0.8), {1, 2, 3}),
        ("Euler", (0.0, 0.4), {0, 1}),
        ("DPM++ 2M", (0.4, 1.0), {2, 3, 4}),
        ("DDIM", (0.21, 0.39), set()),
        ("Heun", (0.2, 0.6), {2, 3, 4, 5}),
        ("PLMS", (0.2, 0.6), {2, 3}),
    ],
)
def test_guidance_in_an_interval_is_that_of_a_loop_by_hand(
    sampler: str, interval: tuple[float, float], guided: set[int], engine: Engine
) -> None:
    job = make_job(
        sampler=sampler,
        schedule=SAMPLERS[sampler].automatic,
        num_inference_steps=5,
        guidance_interval=interval,
    )
    ours = our_latents(engine, job)
    assert_near(ours, by_hand(engine, job, guided))
    assert (ours - our_latents(engine, job.model_copy(update={"guidance_interval": None}))).abs().max() > 0.01


@pytest.mark.parametrize("model", ["sd", "sdxl", "inpaint-xl"])
@pytest.mark.parametrize("fields", [{"guidance_interval": (0.0, 1.0)}, {"guidance_interval": (0.2, 0.7)}])
def test_the_whole_interval_is_none_to_the_bit_and_without_guidance_any_is(
    fields: dict[str, Any], model: str, engine: Engine
) -> None:
    scale = 5.0 if fields["guidance_interval"] == (0.0, 1.0) else 1.0
    job = make_job(model=model, guidance_scale=scale, num_inference_steps=4)
    whole = our_latents(engine, job)
    assert torch.equal(our_latents(engine, job.model_copy(update=fields)), whole)


@pytest.mark.parametrize(
    ("fields", "looks"),
    [
        ({}, "1222222211"),
        ({"guidance_interval": None}, "2222222222"),
        ({"guidance_scale": 1.0}, "1111111111"),
        ({"guidance_interval": (0.31, 0.39)}, "1111111111"),
        ({"sampler": "Heun", "num_inference_steps": 5}, "112222221"),
        ({"sampler": "DPM++ SDE", "num_inference_steps": 5}, "112222221"),
        ({"sampler": "PLMS", "num_inference_steps": 5}, "112221"),
        ({"init_image": "init_image.png", "strength": 0.5, "num_inference_steps": 8}, "2221"),
        ({"num_inference_steps": 4, "hires": Hires(scale=1.5, strength=0.5)}, "12222221"),
    ],
)
def test_steps_outside_the_interval_look_once(
    fields: dict[str, Any], looks: str, engine: Engine, tmp_path: Path
) -> None:
    job = make_job(**{"num_inference_steps": 10, "guidance_interval": (0.1, 0.8), "count": 2, **fields})
    watched = out_of_memory(engine._models.get("sd"), times=0)
    make_kind(engine, job)
    assert "".join(str(shape[0]) for shape in watched.seen) == looks * 2
    watched.seen.clear()
    list(with_plan(engine, job, tmp_path, batch=2))
    assert [shape[0] for shape in watched.seen] == [2 * int(look) for look in looks]


# ---------------------------------------------------------------- the same again


@pytest.mark.parametrize(
    ("kind", "sampler"), [*((kind, "Euler a") for kind in EVERYTHING), ("mask", "DPM++ 2M"), ("hires", "DPM++ SDE")]
)
def test_a_picture_is_the_same_at_any_place_whatever_was_skipped(
    kind: str, sampler: str, with_inpainting: Config
) -> None:
    job = job_of(kind, sampler=sampler, count=3)
    whole = make_kind(Engine(with_inpainting), job)
    resumed = make_kind(Engine(with_inpainting), job, skip={0, 2})
    assert list(resumed) == [1]
    assert resumed[1] == whole[1]
    alone = make_kind(Engine(with_inpainting), job.model_copy(update={"seed": job.seed_of(2), "count": 1}))
    assert np.array_equal(pixels(alone[0]), pixels(whole[2]))
    assert len(set(whole.values())) == 3


def test_a_picture_is_the_same_after_any_other_job(engine: Engine) -> None:
    first = {kind: make_kind(engine, job_of(kind)) for kind in EVERYTHING}
    for between in EVERYTHING:
        make_kind(engine, job_of(between, seed=99, width=96, prompt="a blue house", clip_skip=2))
        for kind, made in first.items():
            assert make_kind(engine, job_of(kind)) == made, f"{kind} after {between}"
    pipeline = engine._models.get("sd")
    out_of_memory(pipeline, times=6)
    rungs = [
        event.rung for event in render(engine, job_of("text", width=128, height=128)) if isinstance(event, Fallback)
    ]
    assert "smaller_picture" in rungs
    for kind, made in first.items():
        assert make_kind(engine, job_of(kind)) == made, f"{kind} after memory ran out"


@pytest.mark.parametrize("kind", EVERYTHING)
def test_pictures_made_in_batches_are_those_made_alone(kind: str, engine: Engine, tmp_path: Path) -> None:
    job = job_of(kind, count=3)
    alone = make_kind(engine, job)
    events = list(with_plan(engine, job, tmp_path, batch=2))
    assert {event.batch for event in steps(events)} == {1, 2}
    together = pictures(events)
    assert list(together) == [0, 1, 2]
    for index, data in alone.items():
        assert np.abs(pixels(data) - pixels(together[index])).max() <= 1


@pytest.mark.parametrize("kind", ["inpaint", "hires"])
@pytest.mark.parametrize("changes", [{"texts": "dropped"}, {"texts": "dropped", "weights": "parts"}])
def test_parts_that_leave_memory_change_no_picture(
    kind: str, changes: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    job = job_of(kind, count=2)
    whole = make_kind(engine, job)
    made = pictures(list(with_plan(engine, job, tmp_path, **changes)))
    for index, data in whole.items():
        assert np.array_equal(pixels(made[index]), pixels(data))


@pytest.mark.parametrize("kind", ["mask", "hires"])
def test_it_can_be_stopped_at_every_turn_and_goes_on(kind: str, engine: Engine) -> None:
    job = job_of(kind, count=2)
    whole = make_kind(engine, job)
    images = {"init_image": png(drawing()), "mask_image": png(left_half())}
    for calls in count():
        left = iter([False] * calls)
        events: list[Event] = []
        try:
            for event in engine.render(job, frozenset(), lambda left=left: next(left, True), images):  # type: ignore[misc]
                events.append(event)
        except Stopped:
            made = pictures(events)
            assert make_kind(engine, job, set(made)) | made == whole if calls % 5 == 0 else True
        else:
            break
    assert calls > 8

"""Pictures that a job begins with, in the engine: image to image, masks, two passes, enlarging."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from darkroom.config import Config
from darkroom.engine.render import Engine
from darkroom.events import Event
from darkroom.job import Job
from darkroom.sampling import SAMPLERS
from engine_models import make_config, make_job, render, save_tiny, steps

pytest_plugins = ("engine_fixtures",)

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

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


@pytest.fixture(scope="session")
def tiny_inpaint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-inpaint", inpaints=True)


@pytest.fixture(scope="session")
def tiny_inpaint_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-inpaint-xl", "SDXL", inpaints=True)


@pytest.fixture
def config(tmp_path: Path, tiny_sd: Path, tiny_sdxl: Path, tiny_inpaint: Path, tiny_inpaint_xl: Path) -> Config:
    models = {"sd": tiny_sd, "sdxl": tiny_sdxl, "inpaint": tiny_inpaint, "inpaint-xl": tiny_inpaint_xl}
    return make_config(tmp_path, models)


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


def their_latents(folder: Path, task: str, job: Job, **images: Any) -> torch.Tensor:
    """What diffusers' pipeline makes with the same scheduler; ``task`` is ``""``, ``Img2Img`` or ``Inpaint``."""
    import diffusers

    from darkroom.engine.samplers import make_scheduler

    diffusers.utils.logging.disable_progress_bar()
    xl = "XL" if "xl" in job.model else ""
    kind = getattr(diffusers, f"StableDiffusion{xl}{task}Pipeline")
    theirs = kind.from_pretrained(folder, dtype=torch.float32, **({"add_watermarker": False} if xl else {}))
    theirs.set_progress_bar_config(disable=True)
    scheduler = make_scheduler(job.sampler, job.schedule, theirs.scheduler.config, job.num_inference_steps)
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


FIRST_ORDER = [name for name in SAMPLERS if name not in ("Heun", "DPM2", "DPM2 a", "DPM++ SDE")]
OURS_ALONE = ("LMS", "PLMS")
"""Which diffusers' image to image begins wrongly: LMS with an order higher than it has seen steps, PLMS in its second."""


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image_is_that_of_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, config: Config, engine: Engine
) -> None:
    job = make_job(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, num_inference_steps=6, height=96)
    assert_near(our_latents(engine, job), their_latents(config.models.named[model].path, "", job))


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in OURS_ALONE])
def test_image_to_image_is_that_of_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, config: Config, engine: Engine
) -> None:
    job = begun(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, height=96)
    theirs = their_latents(config.models.named[model].path, "Img2Img", job, image=drawing(64, 96))
    assert_near(our_latents(engine, job, init_image=drawing(64, 96)), theirs)


@pytest.mark.parametrize("strength", [0.21, 0.5, 0.79, 1.0])
def test_image_to_image_takes_as_many_steps_as_diffusers_at_any_strength(
    strength: float, config: Config, engine: Engine
) -> None:
    job = begun(strength=strength, num_inference_steps=8)
    theirs = their_latents(config.models.named["sd"].path, "Img2Img", job, image=drawing())
    assert_near(our_latents(engine, job, init_image=drawing()), theirs)
    assert len(steps(make(engine, job, init_image=drawing()))) == int(8 * strength)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
@pytest.mark.parametrize("sampler", [name for name in FIRST_ORDER if name not in (*OURS_ALONE, "Euler a", "LCM")])
def test_a_mask_works_as_in_diffusers_own_pipeline_to_a_thousandth(
    sampler: str, model: str, config: Config, engine: Engine
) -> None:
    """Not with samplers that make noise: there diffusers has drawn latents from the generator that it never uses."""
    if "SDE" in sampler:
        pytest.skip("makes noise")
    job = begun(model=model, sampler=sampler, schedule=SAMPLERS[sampler].automatic, mask_image="mask_image.png")
    theirs = their_latents(config.models.named[model].path, "Inpaint", job, image=drawing(), mask_image=left_half())
    assert_near(our_latents(engine, job, init_image=drawing(), mask_image=left_half()), theirs)


@pytest.mark.parametrize("model", ["sd", "inpaint", "inpaint-xl"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_mask_works_as_in_diffusers_at_any_strength_with_both_kinds_of_models(
    model: str, strength: float, config: Config, engine: Engine
) -> None:
    job = begun(model=model, strength=strength, mask_image="mask_image.png", num_inference_steps=8)
    theirs = their_latents(config.models.named[model].path, "Inpaint", job, image=drawing(), mask_image=left_half())
    assert_near(our_latents(engine, job, init_image=drawing(), mask_image=left_half()), theirs)


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "Heun", "DPM++ 2M SDE"])
def test_an_inpainting_model_without_a_mask_paints_everything(sampler: str, config: Config, engine: Engine) -> None:
    job = make_job(model="inpaint", sampler=sampler, num_inference_steps=5)
    grey, everything = Image.new("RGB", (64, 64), (127, 127, 127)), Image.new("L", (64, 64), 255)
    theirs = their_latents(
        config.models.named["inpaint"].path, "Inpaint", job, image=grey, mask_image=everything, strength=1.0
    )
    assert_near(our_latents(engine, job), theirs)

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from darkroom.config import Config
from darkroom.engine import preview
from darkroom.engine.preview import Previews, Sight, colors_of, expected, pixels
from darkroom.engine.render import Engine
from darkroom.engine.sampling.samplers import make_scheduler
from darkroom.events import Picture, Preview
from darkroom.sampling import SAMPLERS
from engine_models import make_job, render

pytest_plugins = ("engine_fixtures",)

TRAINED = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SEEDLING = {"block_out_channels": [16, 32, 64, 64], "scaling_factor": 0.18215}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Known:
    """A pipeline as far as previews look at it."""

    vae_config = SEEDLING


def small(data: bytes, size: tuple[int, int]) -> NDArray[np.float64]:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling.BOX)
    return np.asarray(image) / 255


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "SOONEST_S", 0.0)
    monkeypatch.setattr(preview, "SHARE", 0.0)


@pytest.fixture
def seedling(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    made = []

    def make(**output: bool) -> Engine:
        settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 1, "cache_dir": tmp_path}
        made.append(Engine(Config(engine=settings, output=output)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


JOB = make_job(
    model="seedling",
    prompt="a red circle on a blue background",
    negative_prompt="",
    width=128,
    height=128,
    num_inference_steps=12,
    sampler="DPM++ 2M",
    schedule="sgm_uniform",
)


@pytest.mark.usefixtures("often")
def test_a_preview_looks_like_the_picture_that_comes_of_it_and_changes_nothing(
    seedling: Callable[..., Engine],
) -> None:
    events = render(seedling(), JOB)
    previews = [event for event in events if isinstance(event, Preview)]
    (picture,) = [event for event in events if isinstance(event, Picture)]
    assert len(previews) == 12 - 3, "none in the first fifth, none after the last step"
    assert Image.open(io.BytesIO(previews[0].data)).size == (256, 256)
    wanted = small(picture.data, (8, 8))
    off = [float(np.abs(small(event.data, (8, 8)) - wanted).mean()) for event in previews]
    assert off[-1] < 0.06
    assert off[-1] < off[0] < 0.2
    without = render(seedling(previews=False), JOB)
    assert not any(isinstance(event, Preview) for event in without)
    assert [event.data for event in without if isinstance(event, Picture)] == [picture.data]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM", "DPM++ SDE", "UniPC", "LCM"])
def test_every_kind_of_sampler_shows_the_same_circle(sampler: str, seedling: Callable[..., Engine]) -> None:
    events = render(seedling(), JOB.model_copy(update={"sampler": sampler}))
    previews = [event.data for event in events if isinstance(event, Preview)]
    centre, corner = (small(previews[-1], (8, 8))[place] for place in ((4, 4), (0, 0)))
    assert centre[0] > centre[2] + 0.3, "red"
    assert corner[2] > corner[0] + 0.3, "blue"


@pytest.mark.usefixtures("often")
def test_a_vae_of_no_known_family_has_no_previews(tmp_path: Path, engine: Engine) -> None:
    assert not any(isinstance(event, Preview) for event in render(engine, make_job(num_inference_steps=8)))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_expected_latents_are_those_that_were_noised(sampler: str, prediction: str) -> None:
    schedule = "uniform" if "uniform" in SAMPLERS[sampler].schedules else SAMPLERS[sampler].schedules[0]
    scheduler = make_scheduler(sampler, schedule, TRAINED | {"prediction_type": prediction}, 10)
    timestep = scheduler.timesteps[5]
    kept = float(np.interp(float(timestep), range(1000), scheduler.alphas_cumprod.tolist()))
    alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
    picture, noise = torch.randn(2, 1, 4, 8, 8)
    predicted = {"epsilon": noise, "v_prediction": alpha * noise - sigma * picture}[prediction]
    sight = Sight(alpha * picture + sigma * noise, timestep, predicted)
    assert torch.allclose(expected(sight, scheduler), picture, atol=1e-3)


def test_a_model_that_predicts_the_picture_itself_is_believed() -> None:
    sight = Sight(torch.zeros(1, 4, 8, 8), torch.tensor(500), torch.ones(1, 4, 8, 8))
    assert expected(sight, scheduler_of("sample")).equal(sight.predicted)


def test_the_maps_are_those_of_the_three_families_and_no_others() -> None:
    sd, sdxl = {"block_out_channels": [128, 256, 512, 512]}, 0.13025
    assert colors_of(sd | {"scaling_factor": 0.18215}) is not None
    assert colors_of(sd | {"scaling_factor": sdxl}) not in (None, colors_of(sd | {"scaling_factor": 0.18215}))
    assert colors_of(SEEDLING) is not None
    assert colors_of(sd | {"scaling_factor": 0.5}) is None
    assert colors_of({"block_out_channels": [8]}) is None


def test_the_bundled_models_map_is_the_best_there_is() -> None:
    from diffusers import AutoencoderKL
    from tools.seedling.colors import fit

    folder = Path(preview.__file__).parents[1] / "seedling" / "vae"
    factors, offsets, error = fit(AutoencoderKL.from_pretrained(folder), pictures=40)
    assert error < 0.09
    shipped = torch.tensor(colors_of(SEEDLING))
    assert (torch.cat([factors, offsets[None]]) - shipped).abs().max() < 0.04


def test_a_batch_is_shown_side_by_side() -> None:
    latents = torch.zeros(2, 4, 6, 5)
    latents[1, 0] = 2.0
    shown = pixels(latents, ((0.5, 0.0, 0.0), *[(0.0,) * 3] * 3, (0.0, 0.0, 1.0)))
    assert shown.shape == (6, 10, 3)
    assert shown[0, 0].tolist() == [0, 0, 255]
    assert shown[5, 9].tolist() == [255, 0, 255]


def scheduler_of(prediction: str = "epsilon") -> Any:
    return make_scheduler("Euler", "uniform", TRAINED | {"prediction_type": prediction}, 100)


def shown(previews: Previews, scheduler: Any, done: int) -> bool:
    denoiser = previews.watch(lambda latents, timestep: latents)
    denoiser(torch.zeros(1, 4, 8, 8), scheduler.timesteps[done - 1])
    return previews.due(scheduler, done, 100) is not None


def test_previews_come_a_second_apart_and_the_first_after_a_second() -> None:
    clock = Clock()
    previews = Previews(Known(), wanted=True, clock=clock)  # type: ignore[arg-type]
    scheduler = scheduler_of()
    times = []
    for done in range(1, 100):
        clock.now += 0.3
        if shown(previews, scheduler, done):
            times.append(done)
    assert times[0] == 20, "there is nothing to be seen before"
    assert all(after - before == 4 for before, after in itertools.pairwise(times))
    assert not shown(previews, scheduler, 100), "the picture itself comes now"


def test_a_slow_preview_takes_one_percent_of_the_time_at_most() -> None:
    clock = Clock()

    class Slow(Clock):
        def __call__(self) -> float:
            clock.now += 0.05  # asked before and after each preview
            return clock.now

    previews = Previews(Known(), wanted=True, clock=Slow())  # type: ignore[arg-type]
    scheduler = scheduler_of()
    clock.now = 10.0
    assert shown(previews, scheduler, 30)
    clock.now += 4.8
    assert not shown(previews, scheduler, 31)
    clock.now += 0.3
    assert shown(previews, scheduler, 32)


def test_a_prediction_of_an_unknown_kind_ends_the_previews_not_the_job() -> None:
    clock = Clock()
    previews = Previews(Known(), wanted=True, clock=clock)  # type: ignore[arg-type]
    clock.now = 2.0
    flow = scheduler_of()
    flow.register_to_config(prediction_type="flow_prediction")
    assert not shown(previews, flow, 50)
    clock.now = 9.0
    assert not shown(previews, scheduler_of(), 50)

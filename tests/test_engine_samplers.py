"""Every sampler with every schedule, on a denoiser whose answer is known: data drawn from one Gaussian."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom.engine.sampling.samplers import add_noise, advance, begin_at, make_scheduler, step_arguments
from darkroom.errors import RenderFailed
from darkroom.sampling import SAMPLERS, find_schedule

TRAINED = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
"""SD 1.5's, with what must not be inherited."""

PAIRS = [(name, schedule) for name, sampler in SAMPLERS.items() for schedule in sampler.schedules]
NOISY = {"Euler a", "DPM++ SDE", "DPM2 a", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "LCM"}
ORDINARY = [(name, schedule) for name, schedule in PAIRS if name not in NOISY]

BETAS = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0)
LOG_SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt().log()


REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "data/k-diffusion.json").read_text())
"""What k-diffusion's samplers make of the same noise in 20 steps: see tools/reference_samplers.py."""

TOLERANCES = {
    "Euler": 2e-6,
    "Euler a": 4e-6,
    "Heun": 3e-6,
    "LMS": 5e-6,
    "DPM2": 7e-5,
    "DPM2 a": 7e-5,
    "DPM++ 2M": 5e-6,
    "DPM++ 2M SDE": 3e-5,
    "DPM++ 2M SDE Heun": 3e-5,
    "DPM++ SDE": 5e-6,
    "DDIM": 2e-6,
    "PLMS": 2e-6,
    "LCM": 2e-6,
}
"""Largest relative difference from the reference, in the Euclidean norm."""

WHOLE_STEPS = 3e-3
"""More for ``sgm_uniform``: diffusers' "trailing" takes whole timesteps (49), A1111 those between (49.95)."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, deviation²): the best denoiser and the exact end of every trajectory are formulas."""

    mean: float = 0.5
    deviation: float = 0.3

    def predict(self, scaled: torch.Tensor, timestep: torch.Tensor, kind: str) -> torch.Tensor:
        """What a perfect UNet answers, in float64 inside. ``scaled`` is what a UNet is given: of unit deviation."""
        sigma = torch.exp(self.log_sigma(float(timestep)))
        alpha = 1 / torch.sqrt(1 + sigma**2)
        noisy = scaled.double() / alpha
        share = self.deviation**2 / (self.deviation**2 + sigma**2)
        clean = self.mean + share * (noisy - self.mean)
        noise = (noisy - clean) / sigma
        return (noise if kind == "epsilon" else alpha * noise - sigma * alpha * clean).float()

    @staticmethod
    def log_sigma(time: float) -> torch.Tensor:
        """The noise at a timestep, between two whole ones too."""
        low = math.floor(time)
        high = min(low + 1, 999)
        return LOG_SIGMAS[low] + (time - low) * (LOG_SIGMAS[high] - LOG_SIGMAS[low])

    def exact(self, noise: torch.Tensor) -> torch.Tensor:
        """Where the probability flow ends that begins at this noise."""
        sigma = LOG_SIGMAS[-1].exp()
        return self.end(noise.double() * sigma, sigma)

    def end(self, start: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The same for a flow that begins with any latents of this noise."""
        return self.mean + (start - self.mean) * self.deviation / torch.sqrt(self.deviation**2 + sigma**2)


def sample(
    sampler: str, schedule: str, steps: int, data: Gaussian, *, kind: str = "epsilon", pictures: int = 2, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of 4 × 16 × 16 made of noise, and the noise."""
    scheduler = make_scheduler(sampler, schedule, TRAINED | {"prediction_type": kind}, steps)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(pictures)]
    noise = torch.cat([torch.randn((1, 4, 16, 16), generator=generator) for generator in generators])
    return walk(scheduler, noise, generators, data, kind), noise


def walk(
    scheduler: Any, noise: torch.Tensor, generators: list[torch.Generator], data: Gaussian, kind: str = "epsilon"
) -> torch.Tensor:
    """From noise to pictures, step by step as the engine does."""
    latents = noise * scheduler.init_noise_sigma
    return follow(scheduler, scheduler.timesteps, latents, step_arguments(scheduler, generators), data, kind)


def follow(
    scheduler: Any,
    timesteps: torch.Tensor,
    latents: torch.Tensor,
    arguments: Mapping[str, Any],
    data: Gaussian,
    kind: str = "epsilon",
) -> torch.Tensor:
    for timestep in timesteps:
        predicted = data.predict(scheduler.scale_model_input(latents, timestep), timestep, kind)
        latents = advance(scheduler, predicted, timestep, latents, arguments)
    return latents


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_every_sampler_finds_a_point_however_few_the_steps(sampler: str, schedule: str, kind: str) -> None:
    if sampler == "PLMS" and kind == "v_prediction":
        pytest.skip("PNDM mixes velocities of several steps, which is exact only in the limit")
    for steps in (1, 4, 20):
        found, _ = sample(sampler, schedule, steps, Gaussian(deviation=1e-3), kind=kind)
        # DDIM, PLMS and DEIS end at the model's least noise (0.03), not at none
        assert (found - 0.5).abs().max() < 0.15, steps
        assert (found - 0.5).abs().mean() < 0.03, steps


@pytest.mark.parametrize("skipped", [13, 30])
@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [("LMS", "karras"), ("LMS", "exponential"), ("LMS", "uniform"), ("PLMS", "uniform")],
)
def test_a_way_that_begins_with_a_picture_ends_where_the_mathematics_says(
    sampler: str, schedule: str, skipped: int
) -> None:
    """With those whose beginning diffusers' own pipelines get wrong (0.6 to 4 % off); the others are as theirs."""
    data = Gaussian()
    scheduler = make_scheduler(sampler, schedule, TRAINED, 40)
    timesteps = begin_at(scheduler, skipped)
    assert len(timesteps) == 40 - skipped + (sampler == "PLMS")
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    clean = data.mean + data.deviation * torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    sigma = torch.exp(data.log_sigma(float(timesteps[0])))
    found = follow(scheduler, timesteps, add_noise(scheduler, clean, noise, timesteps[0]), {}, data)
    assert (found - data.end(clean + sigma * noise, sigma)).norm() / clean.norm() < 0.005


@pytest.mark.parametrize(("sampler", "schedule"), ORDINARY)
def test_without_added_noise_the_way_ends_where_the_mathematics_says(sampler: str, schedule: str) -> None:
    data = Gaussian()
    found, noise = sample(sampler, schedule, 100, data)
    assert (found - data.exact(noise)).abs().mean() / data.deviation < 0.06


@pytest.mark.parametrize(("sampler", "schedule"), [pair for pair in PAIRS if pair[0] in NOISY - {"LCM"}])
def test_with_added_noise_the_pictures_spread_as_the_data_does(sampler: str, schedule: str) -> None:
    found, _ = sample(sampler, schedule, 100, Gaussian(), pictures=8)
    assert found.mean().item() == pytest.approx(0.5, abs=0.02)
    assert found.std().item() == pytest.approx(0.3, rel=0.3)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "uniform"])
def test_euler_is_the_five_lines_of_the_paper(schedule: str) -> None:
    """Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 2 without churn."""
    data, steps = Gaussian(), 20
    scheduler = make_scheduler("Euler", schedule, TRAINED, steps)
    found, noise = sample("Euler", schedule, steps, data)
    ends = LOG_SIGMAS[-1], LOG_SIGMAS[0]
    if schedule == "karras":
        sigmas = torch.linspace(ends[0].div(7).exp(), ends[1].div(7).exp(), steps, dtype=torch.float64) ** 7
    elif schedule == "exponential":
        sigmas = torch.linspace(*(end.item() for end in ends), steps, dtype=torch.float64).exp()
    else:
        times = torch.linspace(999, 0, steps, dtype=torch.float64)
        table = LOG_SIGMAS.exp()
        low = times.floor().long().clamp(max=998)
        sigmas = table[low] + (times - low) * (table[low + 1] - table[low])
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), sigmas, rtol=1e-4, atol=0)
    x = noise.double() * sigmas[0]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        clean = data.mean + data.deviation**2 / (data.deviation**2 + sigma**2) * (x - data.mean)
        x = x + (x - clean) / sigma * (following - sigma)
    assert (found - x).abs().max() < 2e-3


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [(sampler, schedule) for sampler, figures in REFERENCE["pictures"].items() for schedule in figures],
)
def test_the_numbers_are_those_of_k_diffusion(sampler: str, schedule: str) -> None:
    """``schedule`` as A1111 calls it; DDIM, PLMS and LCM are compared with their papers."""
    expected = torch.tensor(REFERENCE["pictures"][sampler][schedule], dtype=torch.float64)
    generator = torch.Generator().manual_seed(REFERENCE["seed"])
    noise = torch.randn(REFERENCE["shape"], generator=generator)
    torch.testing.assert_close(noise.flatten(), torch.tensor(REFERENCE["noise"]), msg="torch draws otherwise now")
    scheduler = make_scheduler(sampler, find_schedule(schedule), TRAINED, REFERENCE["steps"])
    found = walk(scheduler, noise, [generator], Gaussian())
    difference = (found.flatten().double() - expected).norm() / expected.norm()
    assert difference < (WHOLE_STEPS if schedule == "sgm_uniform" else TOLERANCES[sampler])


def test_the_reference_holds_every_sampler_that_k_diffusion_has() -> None:
    assert set(SAMPLERS) - set(REFERENCE["pictures"]) == {"UniPC", "DEIS"}
    for sampler, figures in REFERENCE["pictures"].items():
        assert {find_schedule(schedule) for schedule in figures} == set(SAMPLERS[sampler].schedules)


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta", "uniform", "simple"])
def test_the_noise_levels_are_those_of_a1111(schedule: str) -> None:
    expected = torch.tensor(REFERENCE["sigmas"][schedule])
    for sampler in ("Euler", "Euler a", "DPM++ 2M", "UniPC"):
        found = make_scheduler(sampler, find_schedule(schedule), TRAINED, REFERENCE["steps"]).sigmas
        torch.testing.assert_close(found, expected, rtol=3e-5, atol=0)


@pytest.mark.parametrize(
    ("sampler", "schedule", "plain"),
    [
        ("Heun", "karras", "Euler"),
        ("LMS", "karras", "Euler"),
        ("DPM2", "karras", "Euler"),
        ("DPM++ 2M", "karras", "Euler"),
        ("UniPC", "karras", "Euler"),
        ("DEIS", "karras", "Euler"),
        ("PLMS", "uniform", "DDIM"),
    ],
)
def test_samplers_of_higher_order_come_much_nearer_in_as_many_steps(sampler: str, schedule: str, plain: str) -> None:
    data = Gaussian()

    def error(name: str) -> float:
        found, noise = sample(name, schedule, 20, data)
        return float((found - data.exact(noise)).norm())

    assert error(sampler) < error(plain) / 4


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_picture_does_not_depend_on_its_place_in_a_batch(sampler: str, schedule: str) -> None:
    together, _ = sample(sampler, schedule, 5, Gaussian(), pictures=3, seed=10)
    alone, _ = sample(sampler, schedule, 5, Gaussian(), pictures=1, seed=12)
    assert torch.equal(together[2:], alone)


@pytest.mark.parametrize("sampler", sorted(NOISY))
def test_added_noise_is_the_pictures_own(sampler: str) -> None:
    schedule = SAMPLERS[sampler].automatic
    one, other, again = (sample(sampler, schedule, 5, Gaussian(), seed=seed)[0] for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_run_that_is_cut_short_leaves_nothing_to_the_next(sampler: str) -> None:
    schedule = SAMPLERS[sampler].automatic
    before, *_ = sample(sampler, schedule, 5, Gaussian(), seed=1)
    scheduler, latents = make_scheduler(sampler, schedule, TRAINED, 5), torch.ones(1, 4, 8, 8)
    arguments = step_arguments(scheduler, [torch.Generator().manual_seed(2)])
    for timestep in begin_at(scheduler, 1)[:3]:
        predicted = 0.9 * scheduler.scale_model_input(latents, timestep)
        latents = advance(scheduler, predicted, timestep, latents, arguments)
    after, *_ = sample(sampler, schedule, 5, Gaussian(), seed=1)
    assert torch.equal(before, after)


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_as_many_steps_as_a_job_may_have_can_be_set(sampler: str, schedule: str) -> None:
    for steps in (1, 3, 150):
        scheduler: Any = make_scheduler(sampler, schedule, TRAINED, steps)
        assert steps <= len(scheduler.timesteps) <= 2 * steps
        # "leading" spacing begins a step early, as it does in CompVis's code, but never when there is only one step
        assert scheduler.timesteps[0] >= (999 if steps == 1 else 1000 // steps * (steps - 1))
        # DPM2's are rounded in part, so that one may be a fraction later than the one before
        assert (scheduler.timesteps.diff() <= 0.5).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_diffusers_name_of_a_sampler_is_the_scheduler_that_it_gets(sampler: str) -> None:
    kinds = [kind.__name__ for kind in type(make_scheduler(sampler, "uniform", TRAINED, 4)).__mro__]
    names = [alias for alias in SAMPLERS[sampler].aliases if alias.endswith("Scheduler")]
    if sampler == "DPM++ SDE":  # ours, after diffusers' of this name
        assert (kinds[0], names) == ("DPMPlusPlusSDE", ["DPMSolverSDEScheduler"])
    elif names:
        assert names[0] in kinds
    else:
        assert "DPMSolverMultistepScheduler" in kinds  # whose plain name is DPM++ 2M's


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, which we keep from our own
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("begin", [0, 5])
def test_our_steps_of_euler_are_to_the_bit_those_of_diffusers(kind: str, begin: int) -> None:
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    ours = make_scheduler("Euler", "uniform", TRAINED | {"prediction_type": kind}, 12)
    theirs: Any = EulerDiscreteScheduler.from_config(dict(ours.config))
    theirs.set_timesteps(12)
    theirs.set_begin_index(begin)
    generator = torch.Generator().manual_seed(begin)
    latents = torch.randn(2, 4, 8, 8, generator=generator) * 10
    for timestep in begin_at(ours, begin):
        predicted = torch.randn(latents.shape, generator=generator)
        scaled = ours.scale_model_input(latents, timestep)
        assert torch.equal(scaled, theirs.scale_model_input(latents, timestep))
        stepped = advance(ours, predicted, timestep, latents, {})
        latents = theirs.step(predicted, timestep, latents, return_dict=False)[0]
        assert torch.equal(stepped, latents)
    assert ours.step_index == theirs.step_index == 12


def test_dpmpp_2m_goes_by_uniform_timesteps_down_to_the_last() -> None:
    timesteps = make_scheduler("DPM++ 2M", "uniform", TRAINED, 4).timesteps
    assert timesteps.tolist() == [999, 666, 333, 0]


def test_nothing_but_the_training_is_inherited_from_the_model() -> None:
    ddim = make_scheduler("DDIM", "uniform", TRAINED, 10).config
    assert (ddim.clip_sample, ddim.set_alpha_to_one, ddim.steps_offset) == (False, False, 1)
    euler = make_scheduler("Euler", "uniform", TRAINED | {"prediction_type": "v_prediction"}, 10).config
    assert (euler.timestep_spacing, euler.prediction_type, euler.beta_end) == ("linspace", "v_prediction", 0.012)


def test_a_model_that_begins_at_pure_noise_refuses_samplers_that_cannot() -> None:
    trained = TRAINED | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with pytest.raises(RenderFailed, match='"Heun" cannot begin at pure noise'):
        make_scheduler("Heun", "uniform", trained, 10)
    assert make_scheduler("Euler", "sgm_uniform", trained, 10).sigmas[0] > 1000


def test_both_noises_of_a_step_of_dpmpp_sde_are_of_one_path() -> None:
    """The second is as new as the way from halfway to the end is long, and of unit deviation like the first."""
    scheduler = make_scheduler("DPM++ SDE", "karras", TRAINED, 3)
    generator = torch.Generator().manual_seed(1)
    shape = (1, 4, 256, 256)
    start, middle, end = (float(sigma) for sigma in scheduler.sigmas[:3])
    still = torch.zeros(shape)

    def noise(following: float, time: torch.Tensor) -> torch.Tensor:
        """What the step adds where nothing was, and the model finds nothing but nothing."""
        added = advance(scheduler, still, time, still, {"generator": [generator]})
        return added / math.sqrt(following**2 - (following**2 / start) ** 2)

    first, second = noise(middle, scheduler.timesteps[0]), noise(end, scheduler.timesteps[1])
    assert first.std().item() == pytest.approx(1, abs=0.01)
    assert second.std().item() == pytest.approx(1, abs=0.01)
    shared = math.sqrt((start - middle) / (start - end))
    assert (first * second).mean().item() == pytest.approx(shared, abs=0.01)

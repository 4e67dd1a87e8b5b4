"""Names of samplers and schedules to diffusers' schedulers, set up as A1111 and k-diffusion mean them.

A scheduler keeps of the model's own configuration only what the model was trained with: betas, prediction type,
terminal SNR. All else is the sampler's business and stands here, because an inherited "leading" spacing or clipping
would change the pictures.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from darkroom.engine.sampling import schedulers
from darkroom.errors import RenderFailed

_TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)

_LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
"""DDIM and PLMS as CompVis's code has them: timesteps 1, 1 + 1000/n, …"""

_SCHEDULES: dict[str, dict[str, Any]] = {
    "uniform": {"timestep_spacing": "linspace"},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
    "beta": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},  # see schedulers.with_beta
    "sgm_uniform": {"timestep_spacing": "trailing"},
}


@dataclass(frozen=True)
class _Recipe:
    """A scheduler class of diffusers and what it is given besides the schedule."""

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False
    """Noise levels and times are Euler's. The class's own are cut to whole timesteps, where A1111's are not, or end
    elsewhere (13 % off); or it does not know all schedules."""


_RECIPES = {
    "Euler": _Recipe("EulerDiscreteScheduler"),
    "Euler a": _Recipe("EulerAncestralDiscreteScheduler", guided=True),
    "Heun": _Recipe("HeunDiscreteScheduler"),
    "LMS": _Recipe("LMSDiscreteScheduler"),
    "DPM2": _Recipe("KDPM2DiscreteScheduler"),
    "DPM2 a": _Recipe("KDPM2AncestralDiscreteScheduler"),
    "DPM++ 2M": _Recipe("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, guided=True),
    "DPM++ 2M SDE": _Recipe("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, guided=True),
    "DPM++ 2M SDE Heun": _Recipe(
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, guided=True
    ),
    "DPM++ SDE": _Recipe("EulerDiscreteScheduler"),  # see schedulers.dpmpp_sde
    "DDIM": _Recipe("DDIMScheduler", _LEADING | {"clip_sample": False}),
    "UniPC": _Recipe("UniPCMultistepScheduler", guided=True),
    "PLMS": _Recipe("PNDMScheduler", _LEADING | {"skip_prk_steps": True}),
    "LCM": _Recipe("LCMScheduler", {"clip_sample": False}),
    "DEIS": _Recipe("DEISMultistepScheduler"),
}

_LCM_GRIDS = (50, 100, 125, 200)
"""How finely LCM's timesteps may be cut: divisors of 1000. It was distilled on 50."""


def make_scheduler(sampler: str, schedule: str, trained: Mapping[str, Any], steps: int) -> Any:
    """A fresh diffusers scheduler with its timesteps set, on the CPU.

    ``sampler`` and ``schedule`` are names of ``darkroom.sampling``, resolved; ``trained`` is the model's scheduler
    configuration. Raises RenderFailed where the model needs what the sampler lacks.
    """
    known = ((key, trained[key]) for key in _TRAINED if key in trained)
    hashable = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in known)
    prepared = _prepared(sampler, schedule, hashable, steps)
    scheduler = object.__new__(type(prepared))
    for name, value in vars(prepared).items():
        # lists are what it remembers of its steps; tensors it replaces, and never writes into
        vars(scheduler)[name] = value.copy() if isinstance(value, list) else value
    return scheduler


@functools.lru_cache(maxsize=16)
def _prepared(sampler: str, schedule: str, trained: tuple[tuple[str, Any], ...], steps: int) -> Any:
    """What ``make_scheduler`` gives copies of: to make one takes longer than a dozen of its steps."""
    recipe = _RECIPES[sampler]
    kind = _kind(sampler, beta=schedule == "beta")
    accepted = _parameters(kind)
    known = dict(trained)
    if known.pop("rescale_betas_zero_snr", False):
        if "rescale_betas_zero_snr" not in accepted:
            raise RenderFailed(
                f'The sampler "{sampler}" cannot begin at pure noise, which this model was trained for '
                '(zero terminal SNR); use "Euler", "DPM++ 2M" or "DDIM"'
            )
        known["rescale_betas_zero_snr"] = True
    options = known | _SCHEDULES[schedule] | dict(recipe.options)
    if steps == 1:  # all schedules but this one would take the last step, not the first
        options = known | dict(recipe.options) | _SCHEDULES["sgm_uniform"]
    with _numpy_quiet():
        scheduler = kind(**{key: value for key, value in options.items() if key in accepted})
        _set_timesteps(scheduler, recipe, steps)
    if recipe.guided:
        _follow(scheduler, _prepared("Euler", schedule, trained, steps))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it looks its place up by the timestep, of which rounding makes doubles
    return scheduler


@functools.cache
def _kind(sampler: str, *, beta: bool) -> Any:
    """The class: diffusers' own, or one of ours over it."""
    import diffusers

    scheduler = _RECIPES[sampler].scheduler
    match sampler:
        case "Euler":
            kind = schedulers.euler(getattr(diffusers, scheduler))
        case "LMS":
            kind = schedulers.lms()
        case "DPM2" | "DPM2 a":
            kind = schedulers.dpm2(getattr(diffusers, scheduler))
        case "DPM++ SDE":
            kind = schedulers.dpmpp_sde(getattr(diffusers, scheduler))
        case _:
            kind = getattr(diffusers, scheduler)
    return schedulers.with_beta(kind) if beta else kind


@functools.cache
def _parameters(call: Any) -> frozenset[str]:
    """The names of what it can be given."""
    return frozenset(inspect.signature(call).parameters)


def _set_timesteps(scheduler: Any, recipe: _Recipe, steps: int) -> None:
    if recipe.scheduler == "LCMScheduler":
        grid = next(grid for grid in _LCM_GRIDS if grid >= steps)
        scheduler.set_timesteps(steps, original_inference_steps=grid)
    else:
        scheduler.set_timesteps(steps)


def begin_at(scheduler: Any, skipped: int) -> Any:
    """The timesteps that are left after so many steps, where the loop begins with a picture, noised to that point."""
    timesteps = scheduler.timesteps
    if type(scheduler).__name__ == "PNDMScheduler":
        # it looks twice in its first step, whichever that is; diffusers' own pipelines begin here with its second look
        steps = torch.cat([timesteps[:1], timesteps[2:]])[skipped:]
        scheduler.timesteps = torch.cat([steps[:2], steps[1:]])
        return scheduler.timesteps
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    return timesteps[skipped * scheduler.order :]


def step_of(scheduler: Any, look: int) -> int:
    """The step that one of the model's looks belongs to, both counted from 0: some samplers take two for a step."""
    if type(scheduler).__name__ == "PNDMScheduler":  # two for its first one
        return max(look - 1, 0)
    return look // int(scheduler.order)


def add_noise(scheduler: Any, latents: Any, noise: Any, timestep: Any) -> Any:
    """``latents`` as noisy as they are at ``timestep``, which is the one that the scheduler comes to next."""
    with _numpy_quiet():
        return scheduler.add_noise(latents, noise, timestep.reshape(1))


def _follow(scheduler: Any, guide: Any) -> None:
    """Go by the noise levels and times of ``guide``, and begin with as much noise as it does."""
    scheduler.sigmas, scheduler.timesteps = guide.sigmas, guide.timesteps
    if scheduler.init_noise_sigma == 1:  # latents of unit deviation, where the guide's have the noise's own
        highest = float(guide.sigmas[0])
        scheduler.init_noise_sigma = highest / math.sqrt(highest**2 + 1)


def step_arguments(scheduler: Any, generators: list[Any]) -> dict[str, Any]:
    """What ``advance`` hands to the scheduler: the pictures' generators, where it makes noise."""
    return {"generator": generators} if "generator" in _parameters(type(scheduler).step) else {}


def advance(scheduler: Any, predicted: Any, timestep: Any, latents: Any, arguments: Mapping[str, Any]) -> Any:
    """The latents after one step, given what the model predicted for them at ``timestep``."""
    with _numpy_quiet() if type(scheduler).__name__ == "DEISMultistepScheduler" else nullcontext():
        return scheduler.step(predicted, timestep, latents, **arguments, return_dict=False)[0]


@contextmanager
def _numpy_quiet() -> Iterator[None]:
    """Some schedulers hand tensors to numpy in a way that numpy 2 warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="__array", category=DeprecationWarning)
        yield

"""darkroom's names of samplers and schedules, for the few that seedling is measured with.

The same settings as in ``darkroom.engine.sampling.samplers``; only "uniform" differs, in its last step."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

SAMPLERS = {
    "DDIM": DDIMScheduler,
    "Euler": EulerDiscreteScheduler,
    "DPM++ 2M": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "uniform": {"timestep_spacing": "linspace"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
}


def use(pipeline: StableDiffusionPipeline, sampler: str, schedule: str) -> None:
    """Put a sampler in place, with the pipeline's own noise schedule."""
    pipeline.scheduler = SAMPLERS[sampler].from_config(pipeline.scheduler.config, **SCHEDULES[schedule])

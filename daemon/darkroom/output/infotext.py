"""The recipe of a picture in A1111's words, which most tools read."""

from __future__ import annotations

import json
from typing import Any

from darkroom import __version__
from darkroom.job import Job

_SCHEDULES = {"karras": "Karras", "exponential": "Exponential", "uniform": "Uniform", "sgm_uniform": "SGM Uniform"}


def infotext(job: Job, *, seed: int, width: int, height: int, model_hash: str | None = None) -> str:
    """The text of the PNG chunk ``parameters`` for the picture with ``seed``, whose size is in pixels.

    ``model_hash`` is the first ten hex digits of the checkpoint's sha256, where the model is one file.
    """
    facts: dict[str, Any] = {
        "Steps": job.num_inference_steps,
        "Sampler": job.sampler,
        "Schedule type": _SCHEDULES.get(job.schedule, job.schedule),
        "CFG scale": _plain(job.guidance_scale),
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model hash": model_hash,
        "Model": job.model,
        "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
        "RNG": "CPU",
        "Version": f"darkroom {__version__}",
    }
    lines = [job.prompt]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def _plain(number: float) -> float | int:
    """7.0 is written 7."""
    return int(number) if number == int(number) else number


def _quoted(value: str) -> str:
    """As JSON where readers would otherwise split it."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value

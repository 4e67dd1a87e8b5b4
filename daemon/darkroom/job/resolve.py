"""``Request`` → ``Job``: every gap filled from the model's defaults and the config, every limit checked."""

from __future__ import annotations

import difflib
import secrets
from typing import Any

from darkroom.catalog import Catalog, Model
from darkroom.config import Config
from darkroom.errors import FieldError, InvalidRequest
from darkroom.job.types import Job, Request
from darkroom.sampling import UnknownName, choose_schedule, find_sampler, find_schedule

DEFAULT_STEPS = 50
DEFAULT_GUIDANCE = 7.5
DEFAULT_SAMPLER = "DPM++ 2M"
_LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}


def resolve(request: Request, config: Config, catalog: Catalog, id: str) -> Job:
    """Decide every field. A seed is chosen (32 bits) where none was asked.

    Raises InvalidRequest (unknown model or sampler, over a limit) or ModelUnavailable (a model's folder is broken).
    """
    model = _find_model(request.model or catalog.default, catalog)
    defaults = model.defaults
    errors: list[FieldError] = []
    sampler, schedule = _sampling(request, defaults.sampler, defaults.schedule, errors)

    def first(*choices: Any) -> Any:
        return next((choice for choice in choices if choice is not None), None)

    seed = request.seed
    job = Job(
        id=id,
        prompt=request.prompt,
        negative_prompt=first(request.negative_prompt, defaults.negative_prompt, ""),
        num_inference_steps=first(request.num_inference_steps, defaults.num_inference_steps, DEFAULT_STEPS),
        guidance_scale=first(request.guidance_scale, defaults.guidance_scale, DEFAULT_GUIDANCE),
        seed=secrets.randbits(32) if seed is None or seed < 0 else seed,
        width=first(request.width, defaults.width),
        height=first(request.height, defaults.height),
        count=first(request.count, 1),
        model=model.name,
        sampler=sampler,
        schedule=schedule,
        clip_skip=first(request.clip_skip, defaults.clip_skip, 1),
        long_prompt=first(request.long_prompt, "chunk"),
        on_oom=first(request.on_oom, config.engine.on_oom),
        output_format=first(request.output_format, config.output.format),
        quality=first(request.quality, config.output.quality),
    )
    _check_limits(job, config, errors)
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InvalidRequest(f"The job cannot be done here: {errors[0]}{more}.", errors=tuple(errors))
    return job


def _find_model(name: str, catalog: Catalog) -> Model:
    model = catalog.get(name)
    if model is not None:
        return model
    names = catalog.names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "there are: " + ", ".join(names[:20])
    error = FieldError(f'there is no model "{name}"', "model", got=name, hint=hint)
    raise InvalidRequest(f'There is no model "{name}": {hint}', errors=(error,))


def _sampling(
    request: Request, sampler_default: str | None, schedule_default: str | None, errors: list[FieldError]
) -> tuple[str, str]:
    """The sampler's and schedule's names; a schedule in the sampler's name counts unless one is given by itself."""
    field = "sampler"
    try:
        sampler, implied = find_sampler(request.sampler or sampler_default or DEFAULT_SAMPLER)
        field = "schedule"
        written = request.schedule or implied
        if written is None and request.sampler is None:
            written = schedule_default
        schedule = None if written is None else find_schedule(written)
        return sampler.name, choose_schedule(sampler, schedule)
    except UnknownName as error:
        asked = getattr(request, field)
        source = "" if asked or request.sampler else "; it is a default of the model"
        errors.append(FieldError(str(error), field, got=asked, hint=error.hint + source))
        return DEFAULT_SAMPLER, "karras"


def _check_limits(job: Job, config: Config, errors: list[FieldError]) -> None:
    limits = config.limits
    for field, value, limit in (
        ("width", job.width, limits.max_width),
        ("height", job.height, limits.max_height),
        ("count", job.count, limits.max_count),
        ("num_inference_steps", job.num_inference_steps, limits.max_steps),
    ):
        if value > limit:
            errors.append(FieldError(f"must be at most {limit} here", field, got=value, hint="a limit of config.toml"))
    longest = _LONGEST_SIDE.get(job.output_format)
    if longest is not None and max(job.width, job.height) > longest:
        field = "width" if job.width > longest else "height"
        message = f"must be at most {longest:,} for {job.output_format}"
        errors.append(
            FieldError(message, field, got=getattr(job, field), hint='"output_format": "png" has no such limit')
        )
    if not errors and job.width * job.height > limits.max_pixels:
        hint = f"[limits] max_pixels is {limits.max_pixels:,}"
        errors.append(FieldError(f"{job.width} × {job.height} is too many pixels", "width", got=job.width, hint=hint))

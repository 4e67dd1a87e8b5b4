"""``Request`` → ``Job``: every gap filled from the model's defaults and the config, every limit checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from darkroom.config import Config, Limits
from darkroom.errors import FieldError, InvalidRequest
from darkroom.job.dynamic import NOT_DYNAMIC, choose_words
from darkroom.job.entry import named
from darkroom.job.lone import LIMITED, lone_faults, no_model, over_limit
from darkroom.job.loras import check_loras
from darkroom.job.misfits import misfits
from darkroom.job.passes import final_size, passes
from darkroom.job.size import size_after
from darkroom.job.types import IMAGE_FIELDS, NO_PICTURES, Given, Job, Request
from darkroom.job.variations import cells_of, gather, one_of, values_of, with_seeds
from darkroom.models.catalog import Catalog
from darkroom.models.families import Flow
from darkroom.sampling import UnknownName, choose_schedule, find_sampler, find_schedule

DEFAULT_SAMPLER = "DPM++ 2M"
DEFAULT_STRENGTH = 0.75
_DEFAULTS = {
    "negative_prompt": "",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "count": 1,
    "clip_skip": 1,
    "long_prompt": "chunk",
}
_SETTLED = ("dynamic", "preset", "matrix", "cells")
"""Fields of a request that are no field of a job."""
_CANNOT = "The job cannot be done here"
_LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}


def resolve(
    request: Request, config: Config, catalog: Catalog, id: str, pictures: Mapping[str, Given] = NO_PICTURES
) -> Job:
    """Decide every field, of each cell; choose a seed (32 bits) where none was asked, and the words of dynamic prompts.

    ``pictures`` are those that the job begins with, by their field; one that is not here yet may be left out.
    Raises InvalidRequest (unknown model or sampler, over a limit) or ModelUnavailable (a model's folder is broken).
    """
    try:
        request = _with_words(with_seeds(request), config, catalog)
        cells = cells_of(request)
        if not cells:
            return _decide(request, config, catalog, id, pictures)
        faults = [*_too_many(len(cells), request.count or 1, config), *lone_faults(request, config, catalog)]
        if faults:
            raise InvalidRequest.of(_CANNOT, faults)
        jobs = [
            _decide_cell(request, cell, number, config, catalog, id, pictures) for number, cell in enumerate(cells, 1)
        ]
        return gather(request, cells, jobs)
    except InvalidRequest as error:
        raise InvalidRequest(named(request.source) + error.message, errors=error.errors) from None


def _with_words(request: Request, config: Config, catalog: Catalog) -> Request:
    """With those of dynamic prompts chosen. Raises InvalidRequest, for all else that is wrong too."""
    try:
        return choose_words(request, config.prompts)
    except InvalidRequest as error:
        raise InvalidRequest.of(NOT_DYNAMIC, [*error.errors, *lone_faults(request, config, catalog)]) from None


def _too_many(cells: int, count: int, config: Config) -> Iterator[FieldError]:
    limit = config.limits.max_count
    if cells * count > limit:
        message = f"{cells:,} cells × {count:,} are {cells * count:,} pictures"
        yield FieldError(message, "matrix", hint=f"at most {limit:,} are allowed here")


def _decide_cell(
    request: Request,
    cell: dict[str, Any],
    number: int,
    config: Config,
    catalog: Catalog,
    id: str,
    pictures: Mapping[str, Given],
) -> Job:
    """Raises InvalidRequest, saying in which cell the fault is."""
    try:
        return _decide(one_of(request, cell), config, catalog, id, pictures)
    except InvalidRequest as error:
        message = f"{error.message.removesuffix('.')}, in cell {number} ({values_of(cell)})."
        raise InvalidRequest(message, errors=error.errors) from None


def _decide(request: Request, config: Config, catalog: Catalog, id: str, pictures: Mapping[str, Given]) -> Job:
    """One job, without cells."""
    name = request.model or catalog.default
    model = catalog.get(name)
    if model is None:
        others = [fault for fault in lone_faults(request, config, catalog) if fault.field != "model"]
        raise InvalidRequest.of(_CANNOT, [no_model("model", name, catalog), *others])
    defaults = model.defaults
    errors: list[FieldError] = []
    sampler, schedule = _sampling(request, defaults.sampler, defaults.schedule, model.flow, errors)
    chosen: dict[str, Any] = (
        _DEFAULTS
        | {
            "on_oom": config.engine.on_oom,
            "output_format": config.output.format,
            "quality": config.output.quality,
        }
        | _said(defaults)
        | _said(request)
        | {"id": id, "model": model.name, "sampler": sampler, "schedule": schedule, "source": _source(request)}
        | _pictured(request, config, pictures, errors)
    )
    for field in _SETTLED:
        chosen.pop(field, None)
    job = Job(**chosen)
    _check_limits(job, config, errors)
    if model.flow is None:
        check_loras(job, model, catalog, errors)
        if job.decoder == "tiny" and model.configured.tiny_vae is None:
            hint = 'set tiny_vae in its section of config.toml, or write "full"'
            errors.append(FieldError(f'the model "{model.name}" has no tiny VAE', "decoder", got="tiny", hint=hint))
    else:
        errors += misfits(job, model.flow)
    if errors:
        raise InvalidRequest.of(_CANNOT, errors)
    return job


def _source(request: Request) -> dict[str, Any]:
    return (request.source or {}) | ({"preset": request.preset} if request.preset is not None else {})


def _said(model: BaseModel) -> dict[str, Any]:
    return {field: value for field, value in model if value is not None}


def _pictured(
    request: Request, config: Config, pictures: Mapping[str, Given], errors: list[FieldError]
) -> dict[str, Any]:
    """The fields that hang together with the picture to begin with."""
    if request.init_image is None:
        for field, hint in (("strength", "remove the field"), ("mask_image", "what it covers is not there")):
            if getattr(request, field) is not None:
                errors.append(FieldError("means nothing without init_image, a picture to begin with", field, hint=hint))
        return {"mask_image": None, "strength": None}
    fields: dict[str, Any] = {"strength": DEFAULT_STRENGTH if request.strength is None else request.strength}
    for field in IMAGE_FIELDS:
        if getattr(request, field) is not None:
            fields[field] = pictures[field].file if field in pictures else field
    if (first := pictures.get("init_image")) is not None:
        size = size_after(first[1:], request.width, request.height, config.limits)
        fields["width"], fields["height"] = size
    return fields


def _sampling(
    request: Request,
    sampler_default: str | None,
    schedule_default: str | None,
    flow: Flow | None,
    errors: list[FieldError],
) -> tuple[str, str]:
    """The sampler's and schedule's names; a schedule in the sampler's name counts unless one is given by itself."""
    sampler, implied = find_sampler(DEFAULT_SAMPLER)
    field, known = "sampler", False
    try:
        sampler, implied = find_sampler(request.sampler or sampler_default or DEFAULT_SAMPLER)
        if flow is not None:
            sampler = flow.sampler(sampler)
        known = True
    except UnknownName as error:
        errors.append(_unknown(field, request, error))
    field = "schedule"
    written = request.schedule or implied
    if written is None and request.sampler is None:
        written = schedule_default
    try:
        schedule = None if written is None else find_schedule(written)
        return sampler.name, choose_schedule(sampler, schedule) if known else sampler.automatic
    except UnknownName as error:
        errors.append(_unknown(field, request, error))
        return sampler.name, sampler.automatic


def _unknown(field: str, request: Request, error: UnknownName) -> FieldError:
    asked = getattr(request, field)
    source = "" if asked or request.sampler else "; it is a default of the model"
    return FieldError(str(error), field, got=asked, hint=error.hint + source)


def _check_limits(job: Job, config: Config, errors: list[FieldError]) -> None:
    limits = config.limits
    for field in LIMITED:
        errors += over_limit(field, field, getattr(job, field), limits)
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
    if job.hires is not None and (job.hires.steps or 0) > limits.max_steps:
        message = f"must be at most {limits.max_steps} here"
        errors.append(FieldError(message, "hires.steps", got=job.hires.steps, hint="a limit of config.toml"))
    if not errors:
        _check_enlarged(job, limits, errors)


def _check_enlarged(job: Job, limits: Limits, errors: list[FieldError]) -> None:
    """What becomes of a size that is allowed by itself."""
    enlarged: list[tuple[str, float, tuple[int, int]]] = []
    if job.hires is not None:
        last = passes(job)[-1]
        enlarged.append(("hires.scale", job.hires.scale, (last.width, last.height)))
    if job.upscale is not None:
        enlarged.append(("upscale", job.upscale, final_size(job)))
    widest, highest = (
        min(side, _LONGEST_SIDE.get(job.output_format, side)) for side in (limits.max_width, limits.max_height)
    )
    for field, scale, (width, height) in enlarged:
        if width > widest or height > highest or width * height > limits.max_pixels:
            hint = f"{widest:,} × {highest:,} and {limits.max_pixels:,} pixels are allowed, see [limits]"
            message = f"makes it {width} × {height}, which is too large here"
            errors.append(FieldError(message, field, got=scale, hint=hint))
            return

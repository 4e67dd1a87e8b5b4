"""Faults of a value by itself: a name that nothing here has, a number over a limit. They can be told whatever else is
wrong with a job.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from darkroom.config import Config, Limits
from darkroom.errors import FieldError, ModelUnavailable
from darkroom.job.loras import missing_lora
from darkroom.job.types import LoraUse, Request
from darkroom.models.catalog import Catalog
from darkroom.prompt_syntax import BadTag, take_loras
from darkroom.sampling import UnknownName, find_sampler, find_schedule

LIMITED = {"width": "max_width", "height": "max_height", "count": "max_count", "num_inference_steps": "max_steps"}
"""Fields that are limited here, and by which key of ``[limits]``."""


def lone_faults(request: Request, config: Config, catalog: Catalog) -> list[FieldError]:
    """All of a request, its cells included, each with its place. The default model is none of its values."""
    dynamic = config.prompts.dynamic if request.dynamic is None else request.dynamic
    faults: dict[str, FieldError] = {}
    for place, field, value in _values(request):
        if value is None or (field == "prompt" and dynamic):
            continue  # wrong in another way, or not chosen yet
        with suppress(ModelUnavailable):  # which is told when all else is well
            for fault in _faults(place, field, value, config.limits, catalog):
                faults.setdefault(f"{fault.field} {fault.message}", fault)
    return list(faults.values())


def no_model(place: str, name: str, catalog: Catalog) -> FieldError:
    """That there is none of that name, and which there are."""
    names = catalog.names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "there are: " + ", ".join(names[:20])
    return FieldError(f'there is no model "{name}"', place, got=name, hint=hint)


def over_limit(place: str, field: str, value: int, limits: Limits) -> Iterator[FieldError]:
    """That it is."""
    limit = getattr(limits, LIMITED[field])
    if value > limit:
        yield FieldError(f"must be at most {limit} here", place, got=value, hint="a limit of config.toml")


def _values(request: Request) -> Iterator[tuple[str, str, Any]]:
    """Place, field and value. Of a field that varies the values of the cells alone count."""
    cells, matrix = request.cells or [], request.matrix or {}
    for field, value in request:
        varies = field in matrix or (cells and all(field in cell for cell in cells))
        if not varies:
            yield field, field, value
    if cells:
        for index, cell in enumerate(cells):
            yield from ((f"cells[{index}].{field}", field, value) for field, value in cell.items())
        return
    for field, values in matrix.items():
        yield from ((f"matrix.{field}[{index}]", field, value) for index, value in enumerate(values))


def _faults(place: str, field: str, value: Any, limits: Limits, catalog: Catalog) -> Iterator[FieldError]:
    match field:
        case "model" if catalog.get(value) is None:
            yield no_model(place, value, catalog)
        case "sampler" | "schedule":
            try:
                _ = find_sampler(value) if field == "sampler" else find_schedule(value)
            except UnknownName as error:
                yield FieldError(str(error), place, got=value, hint=error.hint)
        case "loras":
            for number, use in enumerate(map(_use, value)):
                yield from _missing(f"{place}[{number}]" if place == field else place, use.name, catalog)
        case "prompt":
            try:
                for name, _ in take_loras(value)[1]:
                    yield from _missing(place, name, catalog)
            except BadTag as tag:
                yield FieldError(str(tag), place, hint=tag.hint)
        case _ if field in LIMITED:
            yield from over_limit(place, field, value, limits)


def _use(value: Any) -> LoraUse:
    """One of a request's, or one that varies, which is as it was written."""
    return LoraUse.model_validate({"name": value} if isinstance(value, str) else value)


def _missing(place: str, name: str, catalog: Catalog) -> Iterator[FieldError]:
    if (fault := missing_lora(place, name, catalog)) is not None:
        yield fault

"""What people drop, of whatever kind, as a ``Request`` or a list of them: a job file, or a picture with its recipe."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from darkroom.config import Limits
from darkroom.errors import FieldError, InvalidRequest
from darkroom.job import (
    NO_PRESETS,
    JobList,
    Others,
    Presets,
    Request,
    no_others,
    parse,
    parse_fields,
    preset_of,
    read_list,
)
from darkroom.spool import MAX_FOLDER_DEPTH, is_picture


def _begins_with_pictures(preset: Mapping[str, Any]) -> bool:
    """Whether it is for pictures that are dropped in, by saying how much of them is to be given up."""
    return "strength" in preset and "init_image" not in preset


def read(
    name: str, data: bytes | None, limits: Limits, presets: Presets = NO_PRESETS, others: Others = no_others
) -> Request | JobList:
    """What is in a file of that name; ``data`` is None where it is larger than the limits allow.

    Where it is no job, ``others`` says what is wrong with what is left of one.

    Raises InvalidRequest; Unfinished, a kind of it, where the file may not be whole yet.
    """
    if data is None:
        key = "max_picture_bytes" if is_picture(name) else "max_job_bytes"
        fault = FieldError(f"the file is larger than {getattr(limits, key):,} bytes", hint=f"see [limits] {key}")
        raise InvalidRequest(f"This is too large for a job: {fault}.", errors=(fault,))
    preset = preset_of(name, presets)
    if is_picture(name):
        if preset is not None and _begins_with_pictures(presets[preset]):
            picture = "data:;base64," + base64.b64encode(data).decode()
            return parse_fields({"init_image": picture}, presets=presets, preset=preset)
        from darkroom.output import job_in  # brings Pillow, which a daemon that gets no pictures need not load

        return parse_fields(job_in(data), given={"dynamic": False}, presets=presets, preset=preset, others=others)
    found = read_list(name, data, most=limits.max_jobs_per_file, most_bytes=limits.max_job_bytes)
    if found is None:
        return parse(data, presets, preset, others)
    if name.count("/") >= MAX_FOLDER_DEPTH:
        fault = FieldError(f"a list in {MAX_FOLDER_DEPTH} folders is too deep: its jobs get one more")
        raise InvalidRequest(f"This list cannot be taken: {fault}.", errors=(fault,))
    return found

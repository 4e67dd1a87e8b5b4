"""What a job asks for that its model's family cannot do."""

from __future__ import annotations

from darkroom.errors import FieldError
from darkroom.families import Flow
from darkroom.job.types import Job


def misfits(job: Job, flow: Flow) -> list[FieldError]:
    """The fields of a resolved job that do not go with a family that follows a flow; its sampler is looked at apart."""
    refused = f"darkroom cannot do this with {flow.name} models"
    unfit = f"{flow.name} models need multiples of {flow.grain}"
    asked = {
        "clip_skip": job.clip_skip > 1,
        "loras": bool(job.loras),
        "init_image": job.init_image is not None,
        "hires": job.hires is not None,
    }
    return [
        FieldError(unfit, side, got=value, hint=_nearest(value, flow.grain))
        for side, value in (("width", job.width), ("height", job.height))
        if value % flow.grain
    ] + [FieldError(refused, field, hint="remove the field") for field, is_asked in asked.items() if is_asked]


def _nearest(value: int, grain: int) -> str:
    below = value // grain * grain
    return f"the nearest are {below} and {below + grain}" if below else f"the nearest is {grain}"

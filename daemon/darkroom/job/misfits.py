"""What a job asks for that its model's family cannot do."""

from __future__ import annotations

from darkroom.errors import FieldError
from darkroom.job.types import Job
from darkroom.models.families import Flow
from darkroom.prompt_syntax import BadTag, take_loras


def misfits(job: Job, flow: Flow) -> list[FieldError]:
    """The fields of a resolved job that do not go with a family that follows a flow; its sampler is looked at apart."""
    no_loras = f"darkroom loads no LoRA into {flow.name} models"
    asked = {
        "clip_skip": (job.clip_skip > 1, f"darkroom leaves out no layers of what reads prompts in {flow.name} models"),
        "loras": (bool(job.loras), no_loras),
        "prompt": (_has_loras(job.prompt), no_loras),
        "negative_prompt": (_has_loras(job.negative_prompt), no_loras),
        "init_image": (job.init_image is not None, f"darkroom begins with noise alone in {flow.name} models"),
        "guidance_interval": (job.guidance_interval is not None, f"darkroom guides {flow.name} models in every step"),
        "reuse_features": (
            (job.reuse_features or 1) > 1,
            f"darkroom computes all of {flow.name} models in every step",
        ),
        "decoder": (job.decoder == "tiny", f"darkroom has no tiny VAE for {flow.name} models"),
        "hires": (job.hires is not None, f"darkroom makes pictures of {flow.name} models in one pass"),
    }
    unfit = f"{flow.name} models need multiples of {flow.grain}"
    return [
        FieldError(unfit, side, got=value, hint=_nearest(value, flow.grain))
        for side, value in (("width", job.width), ("height", job.height))
        if value % flow.grain
    ] + [
        FieldError(message, field, hint="take the tag out" if field.endswith("prompt") else "remove the field")
        for field, (is_asked, message) in asked.items()
        if is_asked
    ]


def _has_loras(text: str) -> bool:
    try:
        return bool(take_loras(text)[1])
    except BadTag:
        return False  # which is said elsewhere


def _nearest(value: int, grain: int) -> str:
    below = value // grain * grain
    return f"the nearest are {below} and {below + grain}" if below else f"the nearest is {grain}"

"""A job's LoRAs against those that there are: what cannot be applied is refused when the file arrives."""

from __future__ import annotations

import difflib

from pydantic import ValidationError

from darkroom.errors import FieldError
from darkroom.job.types import Job, LoraUse
from darkroom.models.catalog import Catalog, Model
from darkroom.models.loras import Lora
from darkroom.prompt_syntax import BadTag, take_loras
from darkroom.strict_json import shown

MOST = 20
"""LoRAs of one job."""

FAMILIES = ("SD 1", "SD 2", "SDXL")
"""Of models that LoRAs can be applied to."""


def check_loras(job: Job, model: Model, catalog: Catalog, errors: list[FieldError]) -> None:
    """Raises ModelUnavailable where a LoRA's file is broken, or two have its name."""
    uses = [(f"loras[{index}]", use) for index, use in enumerate(job.loras)]
    uses += [("prompt", use) for use in _tags(job, errors)]
    if len(uses) > MOST:
        field = "loras" if job.loras else "prompt"
        errors.append(FieldError(f"asks for {len(uses)} LoRAs; at most {MOST} are applied at once", field))
        return
    for field, use in uses:
        lora = catalog.loras.get(use.name)
        if lora is None and (missing := missing_lora(field, use.name, catalog)) is not None:
            errors.append(missing)
        if lora is not None:
            misfit = _misfit(lora, model)
            if misfit is not None:
                errors.append(FieldError(misfit, field, got=shown(use.name)))


def _tags(job: Job, errors: list[FieldError]) -> list[LoraUse]:
    for field in ("negative_prompt", "prompt"):
        try:
            _, tags = take_loras(getattr(job, field))
        except BadTag as tag:
            errors.append(FieldError(str(tag), field, hint=tag.hint))
            return []
        if tags and field == "negative_prompt":
            message = "has a LoRA's tag, but a LoRA changes the picture as a whole, and not what it is kept away from"
            hint = "put the tag into the prompt; a negative weight turns a LoRA round"
            errors.append(FieldError(message, field, got=shown(tags[0][0]), hint=hint))
    uses = []
    for name, weight in tags:
        try:
            uses.append(LoraUse(name=name, weight=weight))
        except ValidationError:
            message = f'wants the LoRA "{shown(name)}" with the weight {weight:g}'
            errors.append(FieldError(message, "prompt", hint="a weight is from -10 to 10, a name of up to 200 letters"))
    return uses


def missing_lora(field: str, name: str, catalog: Catalog) -> FieldError | None:
    """That there is none of that name, and which there are; None where there is, or where jobs do without.

    Raises ModelUnavailable where two have it.
    """
    if catalog.models.missing_lora != "fail" or catalog.loras.get(name) is not None:
        return None
    names = catalog.loras.names()
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names[:20])}"
    return FieldError(f'there is no LoRA "{shown(name)}"', field, got=shown(name), hint=hint)


def _misfit(lora: Lora, model: Model) -> str | None:
    """One sentence on why it cannot be applied to that model; None where it can be, or where that is not known yet."""
    about = lora.about
    if not model.fetched:
        return None
    if model.family not in FAMILIES:
        return f'LoRAs are for SD 1, SD 2 and SDXL alone, and "{model.name}" is {model.family}'
    width = model.read("unet/config.json").get("cross_attention_dim")
    if about.width is None or about.width == width:
        return None
    if about.family != model.family:
        return f'"{lora.name}" is for {about.family}, and the model "{model.name}" is {model.family}'
    return (
        f'"{lora.name}" is for models whose prompts are {about.width} numbers wide, and those of "{model.name}" '
        f"are {width}"
    )

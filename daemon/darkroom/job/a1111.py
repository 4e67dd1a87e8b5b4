"""Fields of A1111's API of which several make one of ours, or one of ours holds what is a list there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from darkroom.errors import FieldError
from darkroom.job.aliases import ALIASES

Take = Callable[[str, Any, str], None]
"""Told our name, the value, and the name by which it was written."""

SPELLED = frozenset(
    {
        *("batch_size", "n_iter", "init_images", "mask", "init_image", "mask_image", "denoising_strength"),
        *("enable_hr", "hr_scale", "hr_second_pass_steps", "hr_upscaler"),
    }
)
"""The fields that are read here."""

SPELLINGS = {
    "count": ("batch_size", "n_iter"),
    "init_image": ("init_images",),
    "mask_image": ("mask",),
    "strength": ("denoising_strength",),
    "hires": ("enable_hr",),
}
"""How else our fields may be written."""


def spellings(field: str) -> frozenset[str]:
    """All names of a field that may be written by several, ``field`` among them."""
    ours = ALIASES.get(field) or next((name for name, others in SPELLINGS.items() if field in others), field)
    return frozenset(
        {field, ours, *SPELLINGS.get(ours, ()), *(other for other, name in ALIASES.items() if name == ours)}
    )


HIRES_FIELDS = {"scale": "hr_scale", "strength": "denoising_strength", "steps": "hr_second_pass_steps"}
"""The same for the parts of ``hires``."""

HIRES_SCALE, HIRES_STRENGTH = 2.0, 0.75
HIRES_UPSCALERS = (None, "", "None", "Lanczos")
"""What is honoured: A1111 too enlarges by Lanczos' filter where it has none of its own."""

NEUTRAL_STRENGTHS = (0, 0.75, None)
"""What clients send along where there is nothing that it would change."""

NO_PICTURE = (None, "")


def take_several(fields: dict[str, Any], take: Take, errors: list[FieldError]) -> None:
    """Read the fields of ``SPELLED``."""
    _take_batches(fields, take, errors)
    pictured = _take_pictures(fields, take, errors)
    _take_hires_and_strength(fields, take, errors, pictured=pictured)


def _take_batches(fields: dict[str, Any], take: Take, errors: list[FieldError]) -> None:
    count = 1
    written = [spelling for spelling in ("batch_size", "n_iter") if spelling in fields]
    for spelling in written:
        value = fields[spelling]
        if value is None:
            continue
        if type(value) is not int or not 1 <= value <= 1000:
            got = value if isinstance(value, int | float) else str(value)[:80]
            errors.append(FieldError("must be a whole number from 1 to 1000", spelling, got=got))
            return
        count *= value
    if count > 1000:
        errors.append(FieldError(f"batch_size × n_iter is {count:,} pictures; at most 1,000 are allowed", "batch_size"))
    elif written:
        take("count", count, written[0])


def _take_pictures(fields: dict[str, Any], take: Take, errors: list[FieldError]) -> bool:
    """Returns whether there is a picture to begin with."""
    pictured = False
    for spelling in ("init_image", "init_images", "mask_image", "mask"):
        value = fields.get(spelling)
        if spelling == "init_images" and value is not None:
            if not isinstance(value, list):
                errors.append(FieldError("must be a list of one picture", spelling, hint="or write init_image"))
                continue
            if len(value) > 1:
                message = f"holds {len(value)} pictures; a job begins with one"
                errors.append(FieldError(message, spelling, hint="make a job of each"))
                continue
            value = value[0] if value else None
        if value in NO_PICTURE:
            continue
        pictured |= spelling.startswith("init")
        take("mask_image" if spelling.startswith("mask") else "init_image", value, spelling)
    return pictured


def _take_hires_and_strength(fields: dict[str, Any], take: Take, errors: list[FieldError], *, pictured: bool) -> None:
    strength, enabled = fields.get("denoising_strength"), fields.get("enable_hr")
    if enabled is not None and not isinstance(enabled, bool):
        errors.append(FieldError("must be true or false", "enable_hr", hint="remove the quotes"))
    elif enabled and pictured:
        message = "two passes are for pictures that begin from nothing"
        errors.append(FieldError(message, "enable_hr", hint="write false, or remove init_images"))
    elif enabled:
        if fields.get("hr_upscaler") not in HIRES_UPSCALERS:
            upscaler = str(fields["hr_upscaler"])[:80]
            message = "between two passes darkroom enlarges by Lanczos' filter alone"
            errors.append(FieldError(message, "hr_upscaler", got=upscaler, hint='write "Lanczos"'))
        hires = {
            "scale": _number(fields.get("hr_scale"), HIRES_SCALE),
            "strength": _number(strength, HIRES_STRENGTH),
            "steps": fields.get("hr_second_pass_steps") or None,
        }
        take("hires", hires, "enable_hr")
    elif strength is not None and (pictured or isinstance(strength, bool) or strength not in NEUTRAL_STRENGTHS):
        take("strength", strength, "denoising_strength")


def _number(value: Any, default: float) -> Any:
    return default if value is None else value

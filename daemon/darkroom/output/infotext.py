"""The recipe of a picture in A1111's words, which most tools read: written, and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from darkroom import __version__
from darkroom.errors import FieldError, InvalidRequest, Unfinished
from darkroom.job import Job, LoraUse

_SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "uniform": "Uniform",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
}


NO_HASHES: Mapping[str, str] = MappingProxyType({})
_UPSCALER = "Lanczos"


def infotext(job: Job, *, seed: int, model_hash: str | None = None, lora_hashes: Mapping[str, str] = NO_HASHES) -> str:
    """The text of the PNG chunk ``parameters`` for the picture with ``seed``. Its size there is before any enlarging.

    ``model_hash`` is the first ten hex digits of the checkpoint's sha256, where the model is one file;
    ``lora_hashes``, by name, the first twelve of the sha256 of all but the header of those that were applied.
    """
    hires = job.hires
    strength = job.strength if hires is None else hires.strength
    facts: dict[str, Any] = {
        "Steps": job.num_inference_steps,
        "Sampler": job.sampler,
        "Schedule type": _SCHEDULES.get(job.schedule, job.schedule),
        "CFG scale": _plain(job.guidance_scale),
        "Seed": seed,
        "Size": f"{job.width}x{job.height}",
        "Model hash": model_hash,
        "Model": job.model,
        "Denoising strength": None if strength is None else _plain(strength),
        "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
        "Hires upscale": None if hires is None else _plain(hires.scale),
        "Hires steps": None if hires is None else hires.steps,
        "Hires upscaler": None if hires is None else _UPSCALER,
        "Postprocess upscale by": None if job.upscale is None else _plain(job.upscale),
        "Postprocess upscaler": None if job.upscale is None else _UPSCALER,
        "Template": job.template,
        "Negative Template": job.negative_template,
        "RNG": "CPU",
        "Lora hashes": _hashes(lora_hashes),
        "Version": f"darkroom {__version__}",
    }
    lines = [job.prompt + "".join(_tag(use) for use in job.loras)]
    if job.negative_prompt:
        lines.append(f"Negative prompt: {job.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in facts.items() if value is not None))
    return "\n".join(lines)


def _tag(use: LoraUse) -> str:
    """A LoRA of the field ``loras`` as A1111 has them all, in the prompt; nothing for a name that would end the tag."""
    return "" if re.search("[<>:]", use.name) else f" <lora:{use.name}:{_plain(use.weight)}>"


def _hashes(hashes: Mapping[str, str]) -> str | None:
    return ", ".join(f"{re.sub('[:,]', '', name)}: {digest}" for name, digest in hashes.items()) or None


def _plain(number: float) -> float | int:
    """7.0 is written 7."""
    return int(number) if number == int(number) else number


def _quoted(value: str) -> str:
    """As JSON where readers would otherwise split it."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


_FACT = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_FEWEST_FACTS = 3

_READ = {
    "Steps": "num_inference_steps",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Model": "model",
    "Clip skip": "clip_skip",
}
_READ_OF_HIRES = {"Hires upscale": "scale", "Hires steps": "steps", "Denoising strength": "strength"}

_NUMBERS = frozenset({"num_inference_steps", "guidance_scale", "seed", "clip_skip"})

_BESIDE = frozenset(
    {
        *("Model hash", "VAE", "VAE hash", "Hashes", "Lora hashes", "TI hashes", "Version", "RNG", "User"),
        *("Emphasis", "Pad conds", "Cond concat", "Prompt editing", "Discard penultimate sigma", "NGMS"),
        *("Template", "Negative Template"),
        *("Module 1", "Module 2", "Module 3", "Diffusion in Low Bits", "Precision"),
    }
)
"""What says where a picture came from, or how it was computed, and not what it is to show."""


def read_infotext(text: str) -> dict[str, Any]:
    """The fields of the job that an infotext describes, as far as they are valid ones: see ``parse_fields``.

    The grammar is A1111's: prompt, a line that begins the negative prompt, and last a line of at least three facts
    ``key: value``. Raises Unfinished where there are no facts, InvalidRequest where one of them is nothing that
    darkroom can do, such as ``Hires upscale``.
    """
    *lines, last = text.strip().split("\n")
    found = _FACT.findall(last)
    if len(found) < _FEWEST_FACTS:
        fault = FieldError("the text in it is no infotext of A1111's: its last line does not tell Steps, Sampler, …")
        raise Unfinished(f"This picture has no recipe: {fault}.", errors=(fault,))
    facts = {key: _unquoted(value) for key, value in found}
    fields: dict[str, Any] = {}
    prompt, negative = _prompts(lines)
    fields["prompt"] = prompt
    if negative:
        fields["negative_prompt"] = negative
    for key, field in _READ.items():
        if key in facts:
            fields[field] = _number(facts[key]) if field in _NUMBERS else facts[key]
    if (size := re.fullmatch(r"(\d{1,6})x(\d{1,6})", facts.get("Size", ""))) is not None:
        fields["width"], fields["height"] = int(size[1]), int(size[2])
    fields |= _enlarging(facts)
    strange = [key for key in facts if key not in _READ and key not in _BESIDE and key != "Size"]
    if strange:
        faults = tuple(FieldError(_why_not(key), key, got=facts[key][:80]) for key in strange)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InvalidRequest(f"The picture cannot be made again from its recipe: {faults[0]}{more}.", errors=faults)
    return fields


def _enlarging(facts: dict[str, str]) -> dict[str, Any]:
    """``hires`` and ``upscale``, which leave ``facts``; of enlarging by another filter its name is left there."""
    fields: dict[str, Any] = {}
    if "Hires upscale" in facts and "Hires upscaler" in facts:
        fields["hires"] = {part: _number(facts.pop(name)) for name, part in _READ_OF_HIRES.items() if name in facts}
    if "Postprocess upscale by" in facts and "Postprocess upscaler" in facts:
        fields["upscale"] = _number(facts.pop("Postprocess upscale by"))
    for key in ("Hires upscaler", "Postprocess upscaler"):
        if facts.get(key) in (_UPSCALER, "None"):  # with A1111 no upscaler means Lanczos' filter too
            del facts[key]
    return fields


def _prompts(lines: list[str]) -> tuple[str, str]:
    """Prompt and negative prompt, each of any number of lines."""
    begin = next((number for number, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = lines[begin:]
    if negative:
        negative[0] = negative[0].strip().removeprefix(_NEGATIVE)
    return "\n".join(lines[:begin]).strip(), "\n".join(negative).strip()


def _unquoted(value: str) -> str:
    if value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value.strip()


def _number(value: str) -> int | float | str:
    """As JSON would have it; what is no number stays a text, which the job's own check refuses by name."""
    for kind in (int, float):
        try:
            return kind(value[:40])
        except ValueError:
            continue
    return value


def _why_not(key: str) -> str:
    if key == "Denoising strength":
        return "it was made from another picture, and darkroom has only this one"
    if key in ("Hires upscaler", "Postprocess upscaler"):
        return f'darkroom enlarges by "{_UPSCALER}" only'
    return "darkroom does not know how to do this"

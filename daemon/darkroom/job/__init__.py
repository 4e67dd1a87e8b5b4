"""Jobs: what the user wrote (``Request``), what is rendered (``Job``), what came of it (``Result``)."""

from darkroom.job.a1111 import spellings
from darkroom.job.entry import is_entry_file
from darkroom.job.lists import JobList, goes_by_lines, read_list
from darkroom.job.lone import lone_faults
from darkroom.job.misfits import misfits
from darkroom.job.parse import NO_PRESETS, Others, Presets, no_others, parse, parse_fields, placed
from darkroom.job.presets import preset_of, read_presets
from darkroom.job.resolve import resolve
from darkroom.job.types import (
    IMAGE_FIELDS,
    NO_IMAGES,
    NO_PICTURES,
    ErrorReport,
    Given,
    Hires,
    Images,
    Job,
    LoraUse,
    PictureRecord,
    Request,
    Result,
)
from darkroom.job.variations import running_order, values_of

__all__ = [
    "IMAGE_FIELDS",
    "NO_IMAGES",
    "NO_PICTURES",
    "NO_PRESETS",
    "ErrorReport",
    "Given",
    "Hires",
    "Images",
    "Job",
    "JobList",
    "LoraUse",
    "Others",
    "PictureRecord",
    "Presets",
    "Request",
    "Result",
    "goes_by_lines",
    "is_entry_file",
    "lone_faults",
    "misfits",
    "no_others",
    "parse",
    "parse_fields",
    "placed",
    "preset_of",
    "read_list",
    "read_presets",
    "resolve",
    "running_order",
    "spellings",
    "values_of",
]

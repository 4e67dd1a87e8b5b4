"""Jobs: what the user wrote (``Request``), what is rendered (``Job``), what came of it (``Result``)."""

from darkroom.job.misfits import misfits
from darkroom.job.parse import parse, parse_fields, placed
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

__all__ = [
    "IMAGE_FIELDS",
    "NO_IMAGES",
    "NO_PICTURES",
    "ErrorReport",
    "Given",
    "Hires",
    "Images",
    "Job",
    "LoraUse",
    "PictureRecord",
    "Request",
    "Result",
    "misfits",
    "parse",
    "parse_fields",
    "placed",
    "resolve",
]

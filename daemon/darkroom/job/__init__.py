"""Jobs: what the user wrote (``Request``), what is rendered (``Job``), what came of it (``Result``)."""

from darkroom.job.misfits import misfits
from darkroom.job.parse import parse, parse_fields
from darkroom.job.resolve import resolve
from darkroom.job.types import NO_IMAGES, ErrorReport, Hires, Images, Job, LoraUse, PictureRecord, Request, Result

__all__ = [
    "NO_IMAGES",
    "ErrorReport",
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
    "resolve",
]

"""Jobs: what the user wrote (``Request``), what is rendered (``Job``), what came of it (``Result``)."""

from darkroom.job.parse import parse, parse_fields
from darkroom.job.resolve import resolve
from darkroom.job.types import ErrorReport, Job, PictureRecord, Request, Result

__all__ = ["ErrorReport", "Job", "PictureRecord", "Request", "Result", "parse", "parse_fields", "resolve"]

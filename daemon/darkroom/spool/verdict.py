"""How a job ended, and the files that say so: result.json, and error.json beside it where it failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darkroom.job import ErrorReport, Result
from darkroom.spool.ticket import ERROR, RESULT


@dataclass(frozen=True)
class Verdict:
    """How a job ended: ``error`` is None for one that is done. ``retry`` is a job file for the pictures not made."""

    result: Result
    error: ErrorReport | None = None
    retry: bytes | None = None


_RARE = ("original_name_base64", "grid", "shared_batch", "entries", "source")
"""Fields of a result that are left out where there is nothing to say."""


def as_json(model: Result | ErrorReport) -> bytes:
    """What result.json or error.json says."""
    exclude: dict[str, Any] = {field: True for field in _RARE if not getattr(model, field, None)}
    if isinstance(model, Result) and all(picture.cell is None for picture in model.pictures):
        exclude["pictures"] = {"__all__": {"cell"}}
    return model.model_dump_json(indent=2, exclude=exclude).encode() + b"\n"


def written_verdict(folder: Path) -> Verdict | None:
    """The verdict that an earlier daemon had written when it was cut short."""
    try:
        result = Result.model_validate_json((folder / RESULT).read_bytes())
        if result.status == "done":
            return Verdict(result)
        return Verdict(result, ErrorReport.model_validate_json((folder / ERROR).read_bytes()))
    except (FileNotFoundError, ValidationError):
        return None

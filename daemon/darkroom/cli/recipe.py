"""``darkroom recipe``: the job inside a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from darkroom.errors import InvalidRequest, UsageError
from darkroom.output import job_in


def print_recipe(picture: Path) -> None:
    """Print it as a job file. Raises UsageError where there is none, or none that darkroom can do."""
    try:
        data = picture.read_bytes()
    except OSError as error:
        raise UsageError(f"{picture}: {error.strerror}") from None
    print(json.dumps(recipe_of(str(picture), data), ensure_ascii=False, indent=2))


def recipe_of(picture: str, data: bytes) -> dict[str, Any]:
    """The fields of the job inside a picture of that name. Raises UsageError."""
    try:
        return job_in(data)
    except InvalidRequest as error:
        raise UsageError(f"{picture}: {error.message}") from None

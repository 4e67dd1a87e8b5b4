"""``darkroom recipe``: the job inside a picture."""

from __future__ import annotations

import json
from pathlib import Path

from darkroom.errors import InvalidRequest, UsageError
from darkroom.output import job_in


def print_recipe(picture: Path) -> None:
    """Print it as a job file. Raises UsageError where there is none, or none that darkroom can do."""
    try:
        fields = job_in(picture.read_bytes())
    except OSError as error:
        raise UsageError(f"{picture}: {error.strerror}") from None
    except InvalidRequest as error:
        raise UsageError(f"{picture}: {error.message}") from None
    print(json.dumps(fields, ensure_ascii=False, indent=2))

"""Pictures that a job names by their paths, put into the job itself: then it can be dropped anywhere, in one piece."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from darkroom.errors import UsageError
from darkroom.inputs.sources import is_embedded
from darkroom.spool import DROPPED

_FIELDS = {"init_image": "init_image", "init_images": "init_image", "mask_image": "mask_image", "mask": "mask_image"}
"""How the fields may be written, and which they are."""

Find = Callable[[str, str], Path | None]
"""Given a field and the path in it: the file that is meant, None where it is left as it is."""


def beside(folder: Path) -> Find:
    """Paths that begin in a folder; one at which there is nothing may be meant for the daemon's side."""

    def find(field: str, text: str) -> Path | None:
        path = folder / text
        return path if os.path.exists(path) else None  # noqa: PTH110  # a text too long for a path raises there

    return find


def in_job_folder(folder: Path) -> Find:
    """Of a published job: the copies that it had, by their field; or what is left of the folder that was dropped."""

    dropped = folder / DROPPED

    def find(field: str, text: str) -> Path | None:
        for path in (*sorted(folder.glob(f"{field}.*")), dropped / text):
            # A job is not trusted: nothing outside its folder is read for it, nor through a link.
            if path.is_file() and path.resolve().is_relative_to(folder.resolve()) and not path.is_symlink():
                return path
        return None

    return find


def with_pictures(value: Any, find: Find) -> Any:
    """A job's fields, or a ``result.json``, with its pictures inside. Raises UsageError for one that cannot be read."""
    if not isinstance(value, dict):
        return value
    if "darkroom" in value and isinstance(value.get("job"), dict):
        return value | {"job": with_pictures(value["job"], find)}
    return {key: _inside(_FIELDS[key], part, find) if key in _FIELDS else part for key, part in value.items()}


def _inside(field: str, text: Any, find: Find) -> Any:
    if isinstance(text, list):
        return [_inside(field, part, find) for part in text]
    if not isinstance(text, str) or not text or "\0" in text or is_embedded(text):
        return text
    path = find(field, text)
    return text if path is None else read_picture(path)


def read_picture(path: Path) -> str:
    """A picture's file as a data URI. Raises UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return f"data:{guess_type(path.name)[0] or ''};base64,{base64.b64encode(data).decode('ascii')}"

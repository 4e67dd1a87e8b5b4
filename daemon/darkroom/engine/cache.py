"""Small files that the engine keeps about this machine, for itself: each a JSON object, whole or not there."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from darkroom.config import EngineSettings, user_cache


def cache_dir(settings: EngineSettings) -> Path:
    """Where small facts about this machine are kept: ``[engine] cache_dir``, else the user's cache."""
    return settings.cache_dir or user_cache()


def read(file: Path | str) -> dict[str, Any]:
    """Lost, unreadable and damaged all mean that nothing is known."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 - for every job: a Path takes longer
            content = json.load(stream)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write(file: Path, content: Mapping[str, Any]) -> bool:
    """Whole or not at all. Returns whether it is there."""
    temporary: Path | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as stream:
            temporary = Path(stream.name)
            json.dump(content, stream)
        temporary.replace(file)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        return False
    return True


def forget(file: Path | str) -> None:
    """Remove it, if it is there."""
    with contextlib.suppress(OSError):
        Path(file).unlink()

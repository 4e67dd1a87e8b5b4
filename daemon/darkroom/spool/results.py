"""Published results: each folder in ``done/`` or ``failed/`` that holds a result.json, those in groups too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from darkroom.spool.disk import StrPath
from darkroom.spool.inbox import MAX_FOLDER_DEPTH, read
from darkroom.spool.ticket import RESULT

OF_LIST = "list"
"""What the verdict of a list itself is called, beside those of its entries."""

_MOST_BYTES = 1 << 20


def results(base: StrPath, prefix: str = "", depth: int = MAX_FOLDER_DEPTH) -> Iterator[tuple[str, str]]:
    """Names, as ``team/cat``, and paths, in no order. Links are not followed, hidden folders passed over.

    Raises OSError where ``base`` cannot be read; of a group that cannot, nothing is yielded.
    """
    with os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
                continue
            if os.path.exists(f"{entry.path}/{RESULT}"):
                yield prefix + entry.name, entry.path
            elif depth > 0:
                try:
                    yield from results(entry.path, f"{prefix}{entry.name}/", depth - 1)
                except OSError:
                    continue


def is_of_list(name: str, path: StrPath) -> bool:
    """Whether a result is a list's own, and not a job's that has its name."""
    group, _, leaf = name.rpartition("/")
    if not group or leaf.partition("~")[0] != OF_LIST:
        return False
    try:
        said = json.loads(read(f"{path}/{RESULT}", _MOST_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("entries") is not None

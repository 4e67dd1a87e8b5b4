"""Published results: each folder in ``done/`` or ``failed/`` that holds a result.json, those in groups too."""

from __future__ import annotations

import os
from collections.abc import Iterator

from darkroom.spool.disk import StrPath
from darkroom.spool.inbox import MAX_FOLDER_DEPTH
from darkroom.spool.ticket import RESULT


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

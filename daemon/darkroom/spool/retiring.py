"""The end of a job's way: its verdict is written, and its folder moves to ``done/`` or ``failed/`` by one rename."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.spool.disk import Disk
from darkroom.spool.names import free_number
from darkroom.spool.ticket import (
    ATTEMPT,
    CANCEL,
    ERROR,
    LOG,
    ORIGIN,
    PLAN,
    PREVIEW,
    PROGRESS,
    RESULT,
    RETRY,
    STATE,
)

if TYPE_CHECKING:
    from darkroom.spool.verdict import Verdict

MOST_GROUPS = 1000
"""How many folders of results are remembered as durable."""

_PRIVATE = frozenset({ORIGIN, STATE, PROGRESS, PREVIEW, CANCEL, PLAN})

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)


class Retiring:
    """Goes on where it was when it is asked again. The folders are given by their paths."""

    def __init__(self, working: str, done: str, failed: str, disk: Disk) -> None:
        self._working = working
        self._done = done
        self._failed = failed
        self._disk = disk
        self._moved: dict[str, str] = {}
        """Where those are that were renamed, which is not known to be durable."""
        self._groups: set[str] = set()

    def retire(self, folder: str, verdict: Verdict) -> Path:
        """Returns where it is. Raises StorageTrouble."""
        if folder in self._moved:
            return self._settle(folder)
        base = self._done if verdict.error is None else self._failed
        self._disk.sync_file(f"{folder}/{LOG}")
        if not os.path.isdir(base):  # somebody cleaned up more than was in it
            self._groups.clear()
            self._disk.mkdir(base)
            # kept: or what is published next is in a folder that a power cut takes
            self._disk.sync_folder(Path(base).parent)
        wanted, tried = verdict.result.name, 0

        def is_taken(number: int) -> bool:
            return os.path.lexists(self._target(base, _numbered(wanted, number)))

        while True:
            tried = free_number(is_taken, tried + 1)
            name = _numbered(wanted, tried)
            target = self._target(base, name)
            self._write_verdict(folder, verdict, name)
            try:
                self._disk.rename(folder, target)
            except OSError as error:
                if error.errno in _TAKEN:
                    continue  # somebody else was quicker
                raise
            self._moved[folder] = target
            self._disk.let_go(folder)
            return self._settle(folder)

    def _settle(self, folder: str) -> Path:
        """Make the rename that published a job durable."""
        target = self._moved[folder]
        self._disk.sync_folder(target.rpartition("/")[0])
        self._disk.sync_folder(self._working)
        del self._moved[folder]
        return Path(target)

    def _target(self, base: str, name: str) -> str:
        """Where a result goes; the folder of its group is made. A group never lies inside somebody's result."""
        *groups, leaf = name.split("/")
        parent = base
        for group in groups:
            number = 1
            while _is_result(candidate := f"{parent}/{_numbered(group, number)}"):
                number += 1
            if not os.path.isdir(candidate):
                self._disk.mkdir(candidate)
                self._groups.discard(candidate)
            if candidate not in self._groups:  # made now, or by an earlier daemon that did not live to sync it
                self._disk.sync_folder(parent)
                if len(self._groups) >= MOST_GROUPS:
                    self._groups.clear()
                self._groups.add(candidate)
            parent = candidate
        return f"{parent}/{leaf}"

    def _write_verdict(self, folder: str, verdict: Verdict, name: str) -> None:
        """error.json first: result.json is what says that the verdict is complete.

        Changes to one folder become durable in their order, so one fsync serves the rename and the removals after it.
        """
        from darkroom.spool.verdict import as_json  # brings the types of jobs

        if verdict.retry is not None:
            self._disk.replace(f"{folder}/{RETRY}", verdict.retry)
        if verdict.error is not None:
            self._disk.replace(f"{folder}/{ERROR}", as_json(verdict.error))
        result = verdict.result if name == verdict.result.name else verdict.result.model_copy(update={"name": name})
        self._disk.replace(f"{folder}/{RESULT}", as_json(result))
        for file in os.listdir(folder):
            if file in _PRIVATE or file.startswith((ATTEMPT, ".")):
                self._disk.unlink(f"{folder}/{file}")
        self._disk.sync_folder(folder)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}~{number}"


def _is_result(folder: str) -> bool:
    return os.path.lexists(f"{folder}/{RESULT}") or (os.path.lexists(folder) and not os.path.isdir(folder))

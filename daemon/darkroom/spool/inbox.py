"""Looking into the inbox: which files lie there, in which order they are to run. Changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from darkroom.spool.names import is_conflict_copy, is_job, is_temporary, is_urgent

MAX_FOLDER_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one content of a path from another without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        """From a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A regular file in the inbox that may be a job. ``name`` is relative to the inbox, with slashes."""

    name: str
    path: Path
    fingerprint: Fingerprint

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sort key: ``!`` names first, then oldest arrival, then name. ctime, since copies carry old mtimes."""
        return (not is_urgent(self.name), self.fingerprint.ctime_ns, self.name)


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something in the inbox that is left where it is; ``why`` is for the log, once."""

    name: str
    path: Path
    why: str


def look(inbox: Path, window: int) -> Iterator[Arrival | Oddity]:
    """Everything in the inbox and its sub-folders but temporaries: up to ``window`` arrivals, and the urgent ones.

    Raises OSError where the inbox itself cannot be read; a sub-folder that cannot is an Oddity.
    """
    folders = [("", inbox, 0)]
    while folders:
        prefix, folder, depth = folders.pop()
        try:
            entries = os.scandir(folder)
        except OSError as error:
            if not prefix:
                raise
            yield Oddity(prefix.rstrip("/"), folder, f"this folder cannot be looked into: {error.strerror}")
            continue
        with entries:
            for entry in entries:
                if is_temporary(entry.name):
                    continue
                name = prefix + entry.name
                if window <= 0 and not is_urgent(name) and not entry.is_dir(follow_symlinks=False):
                    continue
                found = _classify(name, entry, depth)
                if isinstance(found, Arrival):
                    window -= 1
                if found is not None:
                    yield found
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((f"{name}/", Path(entry.path), depth + 1))


def count(inbox: Path) -> int:
    """How many files wait, by their names alone. Raises OSError where the inbox cannot be read."""
    total = 0
    with os.scandir(inbox) as entries:
        for entry in entries:
            if is_temporary(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                total += count(Path(entry.path))
            elif is_job(entry.name) and not is_conflict_copy(entry.name) and entry.is_file(follow_symlinks=False):
                total += 1
    return total


def _classify(name: str, entry: os.DirEntry[str], depth: int) -> Arrival | Oddity | None:
    """What an entry is; None for a folder to look into and for a file that vanished meanwhile."""
    path = Path(entry.path)
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Oddity(name, path, f"it cannot be looked at: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return Oddity(name, path, "folders are too deep here") if depth + 1 > MAX_FOLDER_DEPTH else None
    if stat.S_ISLNK(status.st_mode):
        return Oddity(name, path, "it is a symbolic link; links are never followed: copy the file itself")
    if not stat.S_ISREG(status.st_mode):
        return Oddity(name, path, "it is not a regular file")
    if is_conflict_copy(entry.name):
        return Oddity(name, path, "it is a synchroniser's conflict copy; rename it to run it, or delete it")
    if not is_job(entry.name):
        return Oddity(name, path, "it is not a job: jobs are *.json files")
    return Arrival(name, path, Fingerprint.of(status))


def fingerprint(path: Path) -> Fingerprint | None:
    """The fingerprint of what is at ``path`` now; None if there is no regular file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return Fingerprint.of(status) if stat.S_ISREG(status.st_mode) else None


def read(path: Path, limit: int) -> bytes | None:
    """A regular file's content, without following a link or waiting on a pipe; None where it is over ``limit`` bytes.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        if status.st_size > limit:
            return None
        data = file.read(limit + 1)
        return data if len(data) <= limit else None

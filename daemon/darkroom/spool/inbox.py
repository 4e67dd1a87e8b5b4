"""Looking into the inbox: which files lie there, in which order they are to run. Changes nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from darkroom.spool.fingerprint import Fingerprint
from darkroom.spool.folders import folders_job, of_folder
from darkroom.spool.names import JOBS_OF_FOLDERS, is_conflict_copy, is_job, is_temporary, is_urgent

MAX_FOLDER_DEPTH = 8


class Arrival(NamedTuple):
    """A regular file in the inbox that may be a job. ``name`` is relative to the inbox, with slashes."""

    name: str
    path: str
    fingerprint: Fingerprint
    whole_folder: bool = False
    """The folder that it lies in is the job, with all that is in it: see ``folders``."""
    takes: tuple[str, ...] = ()
    """Names of pictures in the inbox that go with the job, since no other job that waits names them."""

    @property
    def dropped(self) -> str:
        """The name of what was dropped: the file's, or the folder's with a slash at its end."""
        return self.name[: self.name.rindex("/") + 1] if self.whole_folder else self.name

    @property
    def place(self) -> str:
        """The path of what was dropped."""
        return self.path.rpartition("/")[0] if self.whole_folder else self.path

    @property
    def order(self) -> tuple[bool, int, str]:
        """Sort key: ``!`` names first, then oldest arrival, then name. ctime, since copies carry old mtimes."""
        return (not is_urgent(self.name), self.fingerprint.ctime_ns, self.name)


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something in the inbox that is left where it is; ``why`` is for the log, once."""

    name: str
    why: str


def walk(inbox: Path) -> Iterator[tuple[str, os.DirEntry[str]] | Oddity]:
    """Everything in the inbox and its sub-folders but temporaries, by names alone: no file is looked at.

    Of a folder that is one job, nothing but its job file.

    Raises OSError where the inbox itself cannot be read; a sub-folder that cannot is an Oddity.
    """
    folders = [("", str(inbox), 0)]
    while folders:
        prefix, folder, depth = folders.pop()
        if depth > MAX_FOLDER_DEPTH:
            yield Oddity(prefix.rstrip("/"), "folders are too deep here")
            continue
        if prefix and (whole := folders_job(folder)) is not None:
            yield prefix + whole.name, whole
            continue
        try:
            entries = os.scandir(folder)
        except OSError as error:
            if not prefix:
                raise
            yield Oddity(prefix.rstrip("/"), f"this folder cannot be looked into: {error.strerror} (chmod g+rwx)")
            continue
        with entries:
            for entry in entries:
                if is_temporary(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{prefix}{entry.name}/", entry.path, depth + 1))
                else:
                    yield prefix + entry.name, entry


def is_candidate(entry: os.DirEntry[str]) -> bool:
    """Whether this may be a job, by its name and type alone."""
    return is_job(entry.name) and entry.is_file(follow_symlinks=False) and not is_conflict_copy(entry.name)


def look(inbox: Path) -> Iterator[Arrival | Oddity]:
    """Everything in the inbox, each looked at. Raises OSError as ``walk``."""
    for found in walk(inbox):
        if isinstance(found, Oddity):
            yield found
        elif (known := look_at(found[0], found[1].path)) is not None:
            yield known


def count(inbox: Path) -> int:
    """How many files wait, by their names alone. Raises OSError where the inbox cannot be read."""
    return sum(not isinstance(found, Oddity) and is_candidate(found[1]) for found in walk(inbox))


def look_at(name: str, path: str) -> Arrival | Oddity | None:
    """What lies at ``path``; None for a folder, for a temporary, and for what vanished meanwhile."""
    leaf = path.rpartition("/")[2]
    if is_temporary(leaf):
        return None
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Oddity(name, f"it cannot be looked at: {error.strerror}")
    if stat.S_ISDIR(status.st_mode):
        return None
    if stat.S_ISLNK(status.st_mode):
        return Oddity(name, "it is a symbolic link; links are never followed: copy the file itself")
    if not stat.S_ISREG(status.st_mode):
        return Oddity(name, "it is not a regular file")
    if is_conflict_copy(leaf):
        return Oddity(name, "it is a synchroniser's conflict copy; rename it to run it, or delete it")
    if not is_job(leaf):
        return Oddity(
            name, "it is not a job: jobs are *.json, *.jsonl and *.txt files, and pictures with a recipe inside"
        )
    if "/" in name and leaf in JOBS_OF_FOLDERS:
        folder = path.rpartition("/")[0]
        whole = folders_job(folder)
        if whole is not None and whole.name == leaf:
            return Arrival(name, path, of_folder(folder, status), whole_folder=True)
    return Arrival(name, path, Fingerprint.of(status))


def is_held_back(inbox: str, arrival: Arrival) -> bool:
    """Whether its folder does not let it go, as far as modes tell: a folder of somebody else's, without ``g+w``.

    Where the inbox itself lets nothing go, it is the disk that is in trouble, and the claim that finds out.
    """
    folders = [arrival.place.rpartition("/")[0], *([arrival.place] if arrival.whole_folder else [])]
    return any(folder != inbox and not os.access(folder, os.W_OK) for folder in folders) and os.access(inbox, os.W_OK)


def fingerprint(path: str) -> Fingerprint | None:
    """The fingerprint of what is at ``path`` now; None if there is no regular file."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Fingerprint.of(status) if stat.S_ISREG(status.st_mode) else None


def read(path: str, limit: int) -> bytes | None:
    """A regular file's content, without following a link or waiting on a pipe; None where it is over ``limit`` bytes.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        if status.st_size > limit:
            return None
        data = b""
        wanted = status.st_size + 1
        while len(data) <= limit:
            more = os.read(descriptor, wanted)
            data += more
            if len(more) < wanted:  # a regular file gives less only at its end
                break
        return data if len(data) <= limit else None
    finally:
        os.close(descriptor)

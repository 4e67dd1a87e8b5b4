"""Folders in the inbox that are one job: a ``job.json`` or ``result.json``, and the pictures that it begins with.

Any other folder is a queue of its own. One that holds other job files besides is a queue too, whatever they are called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from darkroom.spool.fingerprint import Fingerprint
from darkroom.spool.names import JOBS_OF_FOLDERS, PUBLISHED, is_job, is_picture, is_temporary

DROPPED = "dropped"
"""In a job's folder: the folder as it was dropped, less what the job took out of it."""

_DEEPEST = 8


def folders_job(folder: str) -> os.DirEntry[str] | None:
    """The file that makes this folder one job; None for a queue, and for a folder that cannot be looked into."""
    if not any(os.path.lexists(f"{folder}/{name}") for name in JOBS_OF_FOLDERS):
        return None
    found: dict[str, os.DirEntry[str]] = {}
    try:
        for depth, entry in _inside(folder):
            if depth == 0 and entry.name in JOBS_OF_FOLDERS and entry.is_file(follow_symlinks=False):
                found[entry.name] = entry
            elif _is_job_of_its_own(entry.name, depth):
                return None
    except OSError:
        return None
    return next((found[name] for name in JOBS_OF_FOLDERS if name in found), None)


def _is_job_of_its_own(name: str, depth: int) -> bool:
    if not is_job(name) or is_picture(name) or is_temporary(name):
        return False
    return name not in PUBLISHED or (depth > 0 and name in JOBS_OF_FOLDERS)


def _inside(folder: str, depth: int = 0) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """All that is in the folder, and how deep; what an earlier job left of its folder is not looked into."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield depth, entry
            elif depth < _DEEPEST and not is_temporary(entry.name) and entry.name != DROPPED:
                yield from _inside(entry.path, depth + 1)


def of_folder(folder: str, job: os.stat_result) -> Fingerprint:
    """Of a folder that is one job: changes with whatever changes in it, temporaries too. ``job`` is its job file's."""
    size, mtime_ns, ctime_ns = job.st_size, job.st_mtime_ns, job.st_ctime_ns
    try:
        for _, entry in _inside(folder):
            status = entry.stat(follow_symlinks=False)
            size += status.st_size + 1
            mtime_ns = max(mtime_ns, status.st_mtime_ns)
            ctime_ns = max(ctime_ns, status.st_ctime_ns)
    except OSError:
        size = -1  # something is just being exchanged: not as it was, nor as it will be
    return Fingerprint(job.st_dev, job.st_ino, size, mtime_ns, ctime_ns)


def owner(inbox: str, name: str) -> str | None:
    """The name of the job file of the folder that is one job and has the file of that name in it."""
    folder = name
    while "/" in folder:
        folder = folder.rpartition("/")[0]
        whole = folders_job(f"{inbox}/{folder}")
        if whole is not None:
            return f"{folder}/{whole.name}"
    return None

"""Which kind of file system a folder is on: local ones tell of changes, network ones must be scanned."""

from __future__ import annotations

import sys
from pathlib import Path

LOCAL = frozenset(
    {
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "tmpfs",
        "ramfs",
        "overlay",
        "bcachefs",
        "reiserfs",
        "jfs",
    }
)
"""Linux file systems on which inotify sees every change, since all of them are made by this machine."""


def file_system_of(folder: Path, mountinfo: str | None = None) -> str:
    """The type of the file system, as the mount table names it; ``unknown`` where there is no table.

    ``mountinfo`` is the text of /proc/self/mountinfo, read if not given.
    """
    if mountinfo is None:
        try:
            mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return "unknown"
    wanted = f"{folder.resolve()}/"
    best, found = -1, "unknown"
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = fields[4].rstrip("/") + "/"
        if "\\" in point:
            point = point.encode("utf-8", "surrogateescape").decode("unicode_escape")
        # Of mounts on one point the last one is on top.
        if wanted.startswith(point) and len(point) >= best:
            best, found = len(point), after.split(" ")[0]
    return found


def tells_of_changes(folder: Path) -> bool:
    """Whether the system's notifications can be trusted for this folder. Unknown types are not trusted."""
    return sys.platform == "darwin" or file_system_of(folder) in LOCAL

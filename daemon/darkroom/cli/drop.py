"""Job files put into the inbox, each appearing whole under a name that is free."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import StorageTrouble, UsageError, plainly
from darkroom.spool import Disk, Spool, new_id, published_name

NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})
"""What file systems answer that have no hard links, such as shares of other systems."""


@dataclass
class Dropped:
    """A job that was put into the inbox. Its inode follows it through all folders."""

    name: str
    path: Path
    inode: int
    lost_at: float = float("inf")
    """When it counts as gone, if it is found nowhere until then, in monotonic seconds."""


def drop(spool: Spool, name: str, data: bytes, kind: str = ".json") -> Dropped:
    """Hidden, fsynced, then shown under a name that is free: nobody's file is replaced."""
    disk = spool.disk
    hidden = spool.inbox / f".{new_id(name)}.tmp"
    try:
        disk.write(hidden, data)
        disk.share(hidden, spool.inbox)  # the daemon may be somebody else
        inode = hidden.stat().st_ino
        path = reveal(disk, hidden, spool.inbox / name, kind)
        disk.unlink(hidden)
        disk.sync_folder(path.parent)
    except (OSError, StorageTrouble) as error:
        raise UsageError(f"cannot write into {spool.inbox}: {plainly(error)}") from None
    return Dropped(published_name(path.name), path, inode)


def reveal(disk: Disk, source: Path, stem: Path, kind: str) -> Path:
    """Show a file under the name ``stem`` and ``kind``, or the first free ``stem-2``, ``stem-3``, …; returns which."""
    number = 1
    while True:
        path = stem.with_name(f"{stem.name}{kind}" if number == 1 else f"{stem.name}-{number}{kind}")
        number += 1
        try:
            disk.link(source, path)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            if path.exists():
                continue
            disk.rename(source, path)
        return path

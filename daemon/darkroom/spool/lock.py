"""The lock that makes one daemon the spool's owner: an exclusive flock on ``working/.lock``."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path

from darkroom.errors import SpoolInUse, StorageTrouble
from darkroom.spool.disk import Disk

LOCK = ".lock"


class Lock:
    """Held from ``acquire`` to ``release`` or the end of the process, however that comes."""

    def __init__(self, working: Path, disk: Disk) -> None:
        self.path = working / LOCK
        self._disk = disk
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises SpoolInUse, saying who holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SpoolInUse(
                f"another darkroom ({holder(self.path.parent) or 'unknown'}) works on {self.path.parent.parent}; "
                "stop it first, or give this one another folder with --root"
            ) from None
        self._descriptor = descriptor
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        with contextlib.suppress(OSError, StorageTrouble):  # the lock holds all the same, nobody can read whose it is
            self._disk.write(self.path, json.dumps(owner).encode(), sync=False)

    def release(self) -> None:
        """Let go; harmless where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_held(working: Path) -> bool:
    """Whether a daemon on this machine owns the spool now."""
    try:
        descriptor = os.open(working / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(working: Path) -> str | None:
    """Who took the lock last, for a person: ``process 123 on studio``."""
    try:
        owner = json.loads((working / LOCK).read_bytes())
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None

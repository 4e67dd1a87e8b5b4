"""Every change darkroom makes to the disk, one call at a time.

Nothing else in the package writes, renames or syncs in the spool. Each call is numbered and announced to an observer
before it happens, so that a test can crash there or make it fail. Errors that mean the machine and not the file
(disk full, read-only, I/O) become ``StorageTrouble`` here and nowhere else.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from darkroom.errors import StorageTrouble

TROUBLE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ESTALE,
        errno.ENODEV,
        errno.ENXIO,
        errno.ETIMEDOUT,
    }
)
"""Errors that are the machine's fault: the daemon pauses and tries again."""

_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})
"""What network file systems answer that cannot sync a folder: they are as durable as their server is."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its number from 1, its name (``mkdir``, ``create``, ``write``, ``fsync``, …), the path it is about.

    ``target`` is the other path of a rename or link, ``data`` what is written or appended.
    """

    number: int
    name: str
    path: Path
    target: Path | None = None
    data: bytes = b""


class storage_errors:  # noqa: N801
    """A context that turns the machine's errors into StorageTrouble; the others pass."""

    __slots__ = ("doing", "path")

    def __init__(self, path: Path, doing: str) -> None:
        self.path = path
        self.doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in TROUBLE:
            raise StorageTrouble(f"{self.path}: {error.strerror} (at {self.doing})") from error


class Disk:
    """The calls. ``observe`` is called before each, and may raise: then the call does not happen."""

    def __init__(self, observe: Callable[[Call], None] | None = None) -> None:
        self._observe = observe
        self.calls = 0

    def _call(self, name: str, path: Path, target: Path | None = None, data: bytes = b"") -> storage_errors:
        self.calls += 1
        translated = storage_errors(path, name)
        if self._observe is not None:
            with translated:
                self._observe(Call(self.calls, name, path, target, data))
        return translated

    def mkdir(self, path: Path) -> None:
        """Make a folder. Raises FileExistsError."""
        with self._call("mkdir", path):
            path.mkdir()

    def rename(self, path: Path, target: Path) -> None:
        """Rename within one file system; an existing file at ``target`` is replaced, a folder with content is not."""
        with self._call("rename", path, target):
            os.rename(path, target)  # noqa: PTH104 - Path's makes another Path

    def link(self, path: Path, target: Path) -> None:
        """Give a file a second name. Raises FileExistsError: unlike ``rename`` it never replaces."""
        with self._call("link", path, target):
            target.hardlink_to(path)

    def unlink(self, path: Path) -> None:
        """Remove a file; none there is fine."""
        with self._call("unlink", path):
            path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        with self._call("rmdir", path):
            path.rmdir()

    def sync_folder(self, path: Path) -> None:
        """fsync a folder, so that what was created, renamed or removed in it stays so."""
        with self._call("fsync", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in _NO_FOLDER_SYNC:
                    raise
            finally:
                os.close(descriptor)

    def sync_file(self, path: Path) -> None:
        """fsync a file written before; none there is fine."""
        with self._call("fsync", path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def write(self, path: Path, data: bytes, *, sync: bool = True) -> None:
        """Write a whole file, and fsync it. Not atomic: for a name that nobody reads yet."""
        with self._call("create", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
        try:
            with self._call("write", path, data=data):
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            if sync:
                with self._call("fsync", path):
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def replace(self, path: Path, data: bytes, *, sync: bool = True) -> None:
        """Write a file so that it appears whole: hidden temporary, fsync, rename. The folder is not synced."""
        hidden = path.with_name(f".{path.name}.tmp")
        self.write(hidden, data, sync=sync)
        self.rename(hidden, path)

    def append(self, path: Path, data: bytes) -> None:
        """Add to the end of a file, made if need be; not synced."""
        with self._call("append", path, data=data):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
            try:
                os.write(descriptor, data)
            finally:
                os.close(descriptor)

    def remove_tree(self, folder: Path) -> None:
        """Remove a folder and all in it, links not followed."""
        for entry in list(os.scandir(folder)):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(path)
            else:
                self.unlink(path)
        self.rmdir(folder)

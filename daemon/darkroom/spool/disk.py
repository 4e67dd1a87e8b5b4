"""Every change darkroom makes to the disk, one call at a time.

Nothing else in the package writes, renames or syncs in the spool. Each call is numbered and announced to an observer
before it happens, so that a test can crash there or make it fail. Errors that mean the machine and not the file
(disk full, read-only, I/O) become ``StorageTrouble`` here and nowhere else.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

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

_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

MOST_HELD = 4
"""So many folders are held open at most."""

StrPath = str | PathLike[str]
"""Paths are texts on a job's way: to make and join a ``Path`` costs more than most calls to a disk in memory."""


def _syncfs(descriptor: int) -> None:
    """Python has no name for it. Without it, all file systems are synced. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
    elif library.syncfs(descriptor):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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


def _raise(error: OSError, path: StrPath, doing: str) -> NoReturn:
    """The machine's errors as StorageTrouble; the others as they are."""
    if error.errno in TROUBLE:
        raise StorageTrouble(f"{os.fspath(path)}: {error.strerror} (at {doing})") from error
    raise error


class storage_errors:  # noqa: N801
    """A context that turns the machine's errors into StorageTrouble; the others pass."""

    __slots__ = ("doing", "path")

    def __init__(self, path: StrPath, doing: str) -> None:
        self.path = path
        self.doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in TROUBLE:
            _raise(error, self.path, self.doing)


class Disk:
    """The calls. ``observe`` is called before each, and may raise: then the call does not happen."""

    def __init__(self, observe: Callable[[Call], None] | None = None) -> None:
        self._observe = observe
        self._held: OrderedDict[str, int] = OrderedDict()
        self.calls = 0

    def _announce(self, name: str, path: StrPath, target: StrPath | None = None, data: bytes = b"") -> None:
        self.calls += 1
        if self._observe is not None:
            with storage_errors(path, name):
                self._observe(Call(self.calls, name, Path(path), None if target is None else Path(target), data))

    def mkdir(self, path: StrPath) -> None:
        """Make a folder. Raises FileExistsError."""
        self._announce("mkdir", path)
        try:
            os.mkdir(path)
        except OSError as error:
            _raise(error, path, "mkdir")

    def make_folders(self, folder: Path) -> None:
        """Make a folder, and those above it that are not there."""
        for path in (*reversed(folder.parents), folder):
            if not path.is_dir():
                self.mkdir(path)

    def rename(self, path: StrPath, target: StrPath) -> None:
        """Rename within one file system; an existing file at ``target`` is replaced, a folder with content is not."""
        self._announce("rename", path, target)
        try:
            os.rename(path, target)
        except OSError as error:
            _raise(error, path, "rename")

    def link(self, path: StrPath, target: StrPath) -> None:
        """Give a file a second name. Raises FileExistsError: unlike ``rename`` it never replaces."""
        self._announce("link", path, target)
        try:
            os.link(path, target)
        except OSError as error:
            _raise(error, path, "link")

    def unlink(self, path: StrPath) -> None:
        """Remove a file; none there is fine."""
        self._announce("unlink", path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            _raise(error, path, "unlink")

    def rmdir(self, path: StrPath) -> None:
        """Remove an empty folder."""
        self._announce("rmdir", path)
        try:
            os.rmdir(path)
        except OSError as error:
            _raise(error, path, "rmdir")

    def sync_folder(self, path: StrPath) -> None:
        """fsync a folder, so that what was created, renamed or removed in it stays so."""
        self._announce("fsync", path)
        held = self._held.get(os.fspath(path))
        try:
            if held is not None:
                os.fsync(held)
                return
            descriptor = os.open(path, _FOLDER)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if held is not None:
                self.let_go(os.fspath(path))  # never again on this descriptor
            if error.errno not in _NO_FOLDER_SYNC:
                _raise(error, path, "fsync")

    def hold(self, path: str) -> None:
        """Keep a folder open that will be synced often: to open it costs most of a sync on a disk in memory.

        For folders that nobody but us may replace. The ones held longest are let go, and may not be missed.
        """
        if path in self._held:
            self._held.move_to_end(path)
            return
        try:
            self._held[path] = os.open(path, _FOLDER)
        except OSError:
            return  # ``sync_folder`` opens it itself, and says what is wrong
        while len(self._held) > MOST_HELD:
            self.let_go(next(iter(self._held)))

    def let_go(self, path: str) -> None:
        """Close a folder; harmless where it is not held."""
        descriptor = self._held.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of all folders."""
        for path in list(self._held):
            self.let_go(path)

    def sync_file(self, path: StrPath) -> None:
        """fsync a file written before; none there is fine."""
        self._announce("fsync", path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            _raise(error, path, "fsync")

    def sync_all(self, folder: StrPath) -> None:
        """Everything on the file system of ``folder``: of ten thousand new files, two hundred times as fast as each."""
        self._announce("syncfs", folder)
        try:
            descriptor = os.open(folder, _FOLDER)
            try:
                _syncfs(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            _raise(error, folder, "syncfs")

    def write(self, path: StrPath, data: bytes, *, sync: bool = True) -> None:
        """Write a whole file, and fsync it. Not atomic: for a name that nobody reads yet."""
        doing = "create"
        self._announce(doing, path)
        try:
            descriptor = os.open(path, _ANEW, 0o666)
            try:
                doing = "write"
                self._announce(doing, path, data=data)
                written = os.write(descriptor, data)
                while written < len(data):
                    written += os.write(descriptor, memoryview(data)[written:])
                if sync:
                    doing = "fsync"
                    self._announce(doing, path)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            _raise(error, path, doing)

    def share(self, path: StrPath, folder: StrPath) -> None:
        """Whoever may take the file out of the folder may read it, whatever the umask; where modes mean something."""
        self._announce("chmod", path)
        with suppress(OSError):
            os.chmod(path, os.stat(path).st_mode & 0o777 | (os.stat(folder).st_mode & 0o022) << 1)

    def replace(self, path: StrPath, data: bytes, *, sync: bool = True) -> None:
        """Write a file so that it appears whole: hidden temporary, fsync, rename. The folder is not synced."""
        folder, _, name = os.fspath(path).rpartition("/")
        hidden = f"{folder}/.{name}.tmp"
        self.write(hidden, data, sync=sync)
        self.rename(hidden, path)

    def append(self, path: StrPath, data: bytes) -> None:
        """Add to the end of a file, made if need be; not synced."""
        self._announce("append", path, data=data)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
            try:
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            _raise(error, path, "append")

    def remove_tree(self, folder: StrPath) -> None:
        """Remove a folder and all in it, links not followed."""
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                self.remove_tree(entry.path)
            else:
                self.unlink(entry.path)
        self.rmdir(folder)

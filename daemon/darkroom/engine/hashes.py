"""The sha256 of model files, by which other tools know them: computed beside the work, once a file, and remembered.

To read gigabytes takes seconds. It begins as the model is loaded, so that both read the disk once, and is mostly done
before the first picture is.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from darkroom.engine import cache

FILE = "hashes.json"

_MOST_ENTRIES = 1000
_LOOK_AROUND_S = 0.1


class Hash:
    """One file's, which may not be known yet; None where the file cannot be read, or is changed meanwhile."""

    def __init__(self) -> None:
        self._known = threading.Event()
        self._value: str | None = None

    def tell(self, value: str | None) -> None:
        """It is known now."""
        self._value = value
        self._known.set()

    def wait(self, look_around: Callable[[], None]) -> str | None:
        """The 64 hex digits, as soon as they are known; meanwhile ``look_around`` is called, which may raise."""
        while not self._known.wait(_LOOK_AROUND_S):
            look_around()
        return self._value


class Hashes:
    """What is remembered, by path, size and time of change, and what is under way."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int, int], Hash] = {}

    def begin(self, file: Path) -> Hash:
        """Look it up, or begin to compute it."""
        try:
            key = _key(file)
        except OSError:
            return _told(None)
        known = cache.read(self._file).get(key[0])
        if isinstance(known, dict) and (known.get("size"), known.get("changed")) == key[1:]:
            value = known.get("sha256")
            if isinstance(value, str):
                return _told(value)
        with self._lock:
            if key in self._under_way:
                return self._under_way[key]
            coming = self._under_way[key] = Hash()
        try:
            threading.Thread(target=self._compute, args=(file, key, coming), name="hash", daemon=True).start()
        except RuntimeError:  # no memory for a thread: then no hash this time
            self._end(key, coming, None)
        return coming

    def _compute(self, file: Path, key: tuple[str, int, int], coming: Hash) -> None:
        value = None
        try:
            with file.open("rb") as stream:
                digits = hashlib.file_digest(stream, "sha256").hexdigest()
            if _key(file) == key:
                value = digits
                self._remember(key, digits)
        except OSError:
            value = None
        finally:
            self._end(key, coming, value)

    def _remember(self, key: tuple[str, int, int], digits: str) -> None:
        with self._lock:
            entries: dict[str, Any] = cache.read(self._file)
            entries.pop(key[0], None)
            entries[key[0]] = {"size": key[1], "changed": key[2], "sha256": digits}
            while len(entries) > _MOST_ENTRIES:
                del entries[next(iter(entries))]
            cache.write(self._file, entries)

    def _end(self, key: tuple[str, int, int], coming: Hash, value: str | None) -> None:
        with self._lock:
            self._under_way.pop(key, None)
        coming.tell(value)


def _key(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file.resolve()), stat.st_size, stat.st_mtime_ns


def _told(value: str | None) -> Hash:
    known = Hash()
    known.tell(value)
    return known

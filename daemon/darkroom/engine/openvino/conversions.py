"""Models converted for another library: each a folder of files in the cache, whole or not there, and not too many."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

KEEP_BYTES = 16 << 30
"""So much stays beside the one used last, the least recently used removed first. SD 1.5 is 1.7 GiB, SDXL 5."""

_SEALS = "seals.json"
_ABANDONED_S = 86_400.0


class Conversions:
    """The folder they are in, which is made when the first is."""

    def __init__(self, folder: Path, keep_bytes: int = KEEP_BYTES) -> None:
        self._folder = folder
        self._keep = keep_bytes

    def has(self, key: str) -> bool:
        """Whether there seems to be one; ``find`` looks more closely."""
        return (self._folder / key / _SEALS).is_file()

    def find(self, key: str) -> Path | None:
        """Its folder; None where there is none. One that is not what was put there is removed."""
        folder = self._folder / key
        if not folder.is_dir():
            return None
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder

    def add(self, key: str, make: Callable[[Path], None]) -> Path:
        """``make`` writes the files into a folder, which appears whole. Raises OSError, and what ``make`` raises."""
        self._folder.mkdir(parents=True, exist_ok=True)
        coming = Path(tempfile.mkdtemp(dir=self._folder, prefix="."))
        try:
            make(coming)
            for path in coming.iterdir():
                _to_the_disk(path)
            _seal(coming)
            try:
                coming.rename(self._folder / key)
            except OSError:  # another process was faster
                found = self.find(key)
                if found is None:
                    raise
                return found
        finally:
            shutil.rmtree(coming, ignore_errors=True)
        self._prune()
        return self._folder / key

    def _prune(self) -> None:
        """What others may have in hand stays readable: it is mapped into their memory."""
        entries = []
        for folder in self._folder.iterdir():
            with contextlib.suppress(OSError):
                entries.append((folder.stat().st_mtime, folder))
        room = self._keep
        for number, (changed, folder) in enumerate(sorted(entries, reverse=True)):
            if folder.name.startswith("."):  # under way, or left behind by a process that died
                gone = time.time() - changed > _ABANDONED_S
            else:
                room -= _size(folder)
                gone = number > 0 and room < 0
            if gone:
                shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether its files are those that were put there: by size and time of change, else by what is in them."""
    try:
        sealed = json.loads((folder / _SEALS).read_text(encoding="utf-8"))
        if sealed["known_by"] == _known_by(folder):
            return True
        if sealed["sha256"] != _digests(folder):
            return False
        _seal(folder)  # copied, maybe
    except (OSError, ValueError, TypeError, KeyError):
        return False
    return True


def _seal(folder: Path) -> None:
    facts = {"known_by": _known_by(folder), "sha256": _digests(folder)}
    (folder / _SEALS).write_text(json.dumps(facts), encoding="utf-8")
    _to_the_disk(folder / _SEALS)


def _known_by(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of each of its files."""
    return {path.name: [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in _files(folder)}


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of each of its files."""
    found = {}
    for path in _files(folder):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != _SEALS)


def _to_the_disk(path: Path) -> None:
    """So that no power cut leaves a file of that size with nothing in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0

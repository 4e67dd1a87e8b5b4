"""The entries on the disk, a hundred to a block: what the page's search reads is also what the daemon remembers.

::

    done/index.html        the newest two blocks
    done/.page/0007.js     a block's entries, as data: read by the search, and by the next daemon
    done/.page/0007.html   the same for people, with links to the blocks before and after
    done/.page/0007/       its thumbnails, 612.jpg
    done/.page/latest.js   tells an open page of new results

Nothing here is durable: what is lost is read from the results again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from darkroom.page.entry import Entry
from darkroom.spool import Disk

FOLDER = ".page"
SIZE = 100
"""Results to a block."""

_FILE = re.compile(r"(\d{4,9})\.js")


def block_of(n: int) -> int:
    """In which block the n-th result is, both counted from 1."""
    return (n - 1) // SIZE + 1


def stem(number: int) -> str:
    """What a block's files are called."""
    return f"{number:04}"


class Blocks:
    """The blocks. Those that changed are in memory until they are written."""

    def __init__(self, folder: Path, disk: Disk, mark: str) -> None:
        self.folder = folder
        self.numbers: list[int] = []
        """Of all blocks, ascending."""
        self.changed: set[int] = set()
        self._disk = disk
        self._mark = mark
        self._open: dict[int, list[Entry]] = {}

    def find(self) -> list[int]:
        """The numbers of the blocks on the disk; the folder is made. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self._disk.mkdir(self.folder)
        found = (_FILE.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def load(self, number: int) -> list[Entry]:
        """Read a block, and count it in; one that cannot be read has no entries. Its thumbnails are made anew then."""
        entries, mark = self._read(number)
        if entries:
            self.numbers.append(number)
        if mark != self._mark or not entries:
            self._open[number] = entries
            self.changed.add(number)
        return entries

    def _read(self, number: int) -> tuple[list[Entry], str]:
        try:
            head, _, rest = self._file(number, ".js").read_text(encoding="ascii").partition("[")
            entries = [Entry.of(fields) for fields in json.loads("[" + rest.rstrip().removesuffix(");"))]
            if any(block_of(entry.n) != number for entry in entries):
                return [], ""
            return entries, head.split('"')[1]
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            return [], ""

    def entries(self, number: int) -> list[Entry]:
        """Of a block, oldest first. Not to be changed."""
        return self._open[number] if number in self._open else self._read(number)[0]

    def add(self, entry: Entry, thumbnail: bytes | None) -> None:
        """One more, the newest of all."""
        number = block_of(entry.n)
        if number not in self.numbers:
            self.changed.update(self.numbers[-1:])  # it leads to this one now
            self.numbers.append(number)
            self._open[number] = []
        if thumbnail is not None:
            with contextlib.suppress(FileExistsError):
                self._disk.mkdir(self._file(number))
            self._disk.write(self._file(number) / f"{entry.n}.jpg", thumbnail, sync=False)
        self._opened(number).append(entry)

    def remove(self, number: int, gone: set[int]) -> None:
        """These entries of a block."""
        kept = [entry for entry in self._opened(number) if entry.n not in gone]
        for entry in self._open[number]:
            if entry.n in gone and entry.thumb:
                self._disk.unlink(self._file(number) / f"{entry.n}.jpg")
        self._open[number] = kept
        if not kept:
            at = self.numbers.index(number)
            self.numbers.remove(number)
            self.changed.update(self.numbers[max(0, at - 1) : at + 1])  # they lead to each other now

    def _opened(self, number: int) -> list[Entry]:
        self._open.setdefault(number, self.entries(number))
        self.changed.add(number)
        return self._open[number]

    def write(self, number: int, html: bytes) -> None:
        """A block that changed, with its page; one that is empty is removed."""
        if number in self.numbers:
            # The data last: a daemon that finds them may rely on the page beside them.
            self._disk.replace(self._file(number, ".html"), html, sync=False)
            self._disk.replace(self._file(number, ".js"), self._script(number, self.entries(number)), sync=False)
        else:
            with contextlib.suppress(FileNotFoundError):
                self._disk.remove_tree(self._file(number))
            self._disk.unlink(self._file(number, ".html"))
            self._disk.unlink(self._file(number, ".js"))
        self.changed.discard(number)
        if number not in self.numbers[-2:]:
            self._open.pop(number, None)

    def _script(self, number: int, entries: Iterable[Entry]) -> bytes:
        lines = ",\n".join(entry.line() for entry in entries)
        return f'darkroom("{self._mark}", {number}, [\n{lines}\n]);\n'.encode()

    def _file(self, number: int, suffix: str = "") -> Path:
        return self.folder / (stem(number) + suffix)

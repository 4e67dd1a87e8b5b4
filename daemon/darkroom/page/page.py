"""``Page``: keeps the page of results up to date, a little at a time, whatever happens to the results.

The folders are the truth: they are looked through by names now and then, as the inbox is, so a result that was deleted
leaves the page, and one that came from elsewhere, or while the page was off, comes onto it. What the daemon publishes
it also tells.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from darkroom.errors import StorageTrouble
from darkroom.page.blocks import FOLDER, SIZE, Blocks, block_of
from darkroom.page.entry import Entry, first_picture, read_entry
from darkroom.spool import MAX_FOLDER_DEPTH, Spool, timestamp

if TYPE_CHECKING:
    from darkroom.page.look import Look

KEPT = 20_000
"""So many results are on the page; the oldest block leaves it for what is over."""

SLICE_S = 0.02
"""How long a slice of work is, about: decoding a large picture is in one piece."""

SHARE = 20
"""A slice of t seconds is followed by none within this many t while jobs run, and by one after t while none does."""

REWRITE_S = 3.0
"""So many seconds at least are between two versions of the page."""

RESCAN_S = 60.0
SCAN_SHARE = 200
"""The folders are looked through this often, but for a two-hundredth of the time at most."""

MOST_NEWS = 1000
"""So many results are remembered that are not on the page yet; of more, the next scan knows."""

RETRY_S = 30.0
FINISH_S = 5.0
"""How long the end of the daemon may wait for the page."""

_NAMES_AT_ONCE = 50


class Page:
    """Told of each result with ``add``, given time with ``work``. Neither raises."""

    def __init__(self, spool: Spool, logger: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._logger = logger
        self._clock = clock
        self._bases = {False: spool.done, True: spool.failed}
        away = os.path.relpath(spool.failed, spool.done)
        self._prefix = {False: "./", True: quote(os.fsencode(away)) + "/"}
        self._news: deque[tuple[Path, bytes]] = deque()
        self._look: Look | None = None
        self._trouble: str | None = None
        self._rest_until = float("-inf")
        self._hurry = False
        self._slice_began = 0.0
        self._worked_s = 0.0
        """In all slices before the one that is on."""
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Forget all that was read from the disk."""
        self._known: dict[tuple[bool, str], int] = {}
        """The results on the page: failed or not and name, to number."""
        self._blocks: Blocks | None = None
        self._last = 0
        self._found: deque[Path] = deque()
        """Results that a scan found, oldest first."""
        self._stale = False
        """Whether index.html is to be written."""
        self._write_at = float("-inf")
        self._scan_at = float("-inf")
        self._life = self._living()
        self._busy = True

    # What the daemon calls

    def add(self, folder: Path, thumbnail: bytes = b"") -> None:
        """A result was published there. ``thumbnail`` is of its first picture, where one was made."""
        self._busy = True
        if len(self._news) < MOST_NEWS:
            self._news.append((folder, thumbnail))
        else:
            self._scan_at = float("-inf")

    def work(self, *, idle: bool) -> None:
        """A slice of work, if it is time for one."""
        begin = self._clock()
        if begin < self._rest_until:
            return
        self._slice_began = begin
        try:
            self._busy = self._until(begin + SLICE_S)
        except (OSError, StorageTrouble) as error:
            self._give_up(str(error), RETRY_S)
        except Exception as bug:
            self._give_up(f"{type(bug).__name__}: {bug}", 10 * RETRY_S)
        else:
            end = self._clock()
            self._worked_s += end - begin
            self._rest_until = end + (1 if idle else SHARE) * (end - begin)

    def wait_s(self) -> float:
        """How many seconds one may sleep before there is something to do here."""
        due = self._rest_until
        if not self._busy:
            due = max(due, min(self._scan_at, self._write_at if self._is_stale else float("inf")))
        return max(0.0, due - self._clock())

    def finish(self) -> None:
        """The daemon ends: what was published is brought onto the page, what a scan would find waits for the next."""
        self._hurry = True
        self._rest_until = float("-inf")
        deadline = self._clock() + FINISH_S
        while self._clock() < deadline and (self._news or self._blocks is None or self._is_stale):
            self.work(idle=True)
            if self._clock() < self._rest_until - 1:
                return  # trouble
            self._rest_until = float("-inf")

    def _work_s(self) -> float:
        """How long it has worked so far, the pauses left out."""
        return self._worked_s + self._clock() - self._slice_began

    def _until(self, deadline: float) -> bool:
        while next(self._life):
            if self._clock() >= deadline:
                return True
        return False

    def _give_up(self, why: str, for_s: float) -> None:
        if why != self._trouble:
            self._logger.warning("page.trouble", why=why)
        self._trouble = why
        self._rest_until = self._clock() + for_s
        self._begin_anew()

    # A day of the page, in small pieces; each yield says whether there is more to be done at once

    @property
    def _is_stale(self) -> bool:
        return self._stale or bool(self._blocks and self._blocks.changed)

    def _living(self) -> Iterator[bool]:
        yield from self._load()
        while True:
            now = self._clock()
            if self._is_stale and (now >= self._write_at or (self._hurry and not self._news)):
                yield from self._write()
            elif self._news:
                self._take_in(*self._news.popleft())
                yield True
            elif self._hurry:
                yield False
            elif self._found:
                self._take_in(self._found.popleft())
                yield True
            elif now >= self._scan_at:
                before = self._work_s()
                yield from self._scan()
                self._scan_at = self._clock() + max(RESCAN_S, SCAN_SHARE * (self._work_s() - before))
            else:
                self._trouble = None
                yield False

    def _load(self) -> Iterator[bool]:
        """What an earlier daemon left."""
        if self._look is None:
            from darkroom.page.look import Look

            self._look = Look()
            yield True
        blocks = Blocks(self._spool.done / FOLDER, self._spool.disk, self._look.mark)
        for number in blocks.find():
            for entry in blocks.load(number):
                self._known[entry.failed, entry.name] = entry.n
                self._last = max(self._last, entry.n)
            yield True
        self._stale = True  # it may not have come so far
        self._blocks = blocks

    def _take_in(self, folder: Path, thumbnail: bytes = b"") -> None:
        """One result onto the page."""
        assert self._blocks is not None
        failed = folder.is_relative_to(self._bases[True])
        base = self._bases[failed]
        entry = read_entry(self._last + 1, folder, base, self._prefix[failed], failed=failed)
        if entry is None:
            return  # it is gone already
        thumbnail = thumbnail or _thumbnail(entry, folder, self._spool.limits.max_picture_bytes)
        entry = replace(entry, thumb=bool(thumbnail))
        old = self._known.get((failed, entry.name))
        if old is not None:
            self._blocks.remove(block_of(old), {old})
        self._blocks.add(entry, thumbnail or None)
        self._last = entry.n
        self._known[failed, entry.name] = entry.n
        if len(self._known) > KEPT:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        assert self._blocks is not None
        number = self._blocks.numbers[0]
        self._forget(number, {n for n in self._known.values() if block_of(n) == number})

    def _forget(self, number: int, gone: set[int]) -> None:
        assert self._blocks is not None
        self._blocks.remove(number, gone)
        for key in [key for key, n in self._known.items() if n in gone]:
            del self._known[key]

    def _write(self) -> Iterator[bool]:
        assert self._blocks is not None
        assert self._look is not None
        blocks, look, title = self._blocks, self._look, self._spool.root.name
        for number in sorted(blocks.changed):
            entries = blocks.entries(number)[::-1]
            page = look.block(number, entries, blocks.numbers, title) if number in blocks.numbers else b""
            blocks.write(number, page)
            yield True
        newest = [entry for number in blocks.numbers[:-3:-1] for entry in blocks.entries(number)[::-1]]
        disk, done = self._spool.disk, self._spool.done
        disk.replace(done / "index.html", look.index(newest, blocks.numbers, title, len(self._known)), sync=False)
        disk.replace(blocks.folder / "latest.js", f"darkroomLatest({self._last});\n".encode(), sync=False)
        self._stale = False
        self._write_at = self._clock() + REWRITE_S
        yield True

    def _scan(self) -> Iterator[bool]:
        """All results by name. Those that are not known are found, those that are no more leave the page.

        Nothing leaves it where a folder could not be read: it may be a share that is away for a moment.
        """
        assert self._blocks is not None
        newest, seen, whole = self._last, set[int](), True
        found: list[tuple[int, Path]] = []
        for failed, base in self._bases.items():
            folders = [(base, 0)]
            while folders:
                folder, depth = folders.pop()
                names = _folders_in(folder, gone=[] if depth else None)
                if names is None:
                    whole = False
                    continue
                for count, name in enumerate(names):
                    if count % _NAMES_AT_ONCE == 0:
                        yield True
                    path = folder / name
                    n = self._known.get((failed, _shown(path, base)))
                    if n is not None:
                        seen.add(n)
                    elif (time_ns := _finished_ns(path)) is not None:
                        found.append((time_ns, path))
                    elif depth < MAX_FOLDER_DEPTH:
                        folders.append((path, depth + 1))
        if whole:
            gone = sorted(n for n in self._known.values() if n <= newest and n not in seen)
            for number, numbers in groupby(gone, block_of):
                self._forget(number, set(numbers))
                yield True
        if len(self._known) + len(found) > KEPT - SIZE and self._blocks.numbers:
            oldest = max(entry.time for entry in self._blocks.entries(self._blocks.numbers[0]))
            found = [(time_ns, path) for time_ns, path in found if timestamp(time_ns) > oldest]  # not what left it
        self._found = deque(path for _, path in sorted(found)[-KEPT:])


def _shown(path: Path, base: Path) -> str:
    """A result's name as its entry has it."""
    return os.fsencode(path.relative_to(base)).decode("utf-8", "replace")


def _folders_in(folder: Path, gone: list[str] | None) -> list[str] | None:
    """The names of the folders in a folder, hidden ones and links left out; None where it cannot be read.

    ``gone`` where there is none: somebody may have removed it meanwhile.
    """
    try:
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return gone
    except OSError:
        return None


def _finished_ns(folder: Path) -> int | None:
    try:
        return (folder / "result.json").stat().st_mtime_ns
    except OSError:
        return None


def _thumbnail(entry: Entry, folder: Path, most_bytes: int) -> bytes:
    """Of the result's first picture; empty where there is none that can be read."""
    data = first_picture(entry, folder, most_bytes)
    if data is None:
        return b""
    from darkroom.output import thumbnail_of

    try:
        return thumbnail_of(data)
    except ValueError:
        return b""

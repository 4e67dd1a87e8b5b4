"""Old results are removed: by age, by number, by what they fill. Only folders that darkroom made, with all in them.

A folder is ours if its result.json says so and if it holds nothing that result.json does not account for. It is renamed
aside first, within ``done/`` or ``failed/``, so that nobody ever meets half of it; what a crash leaves there is removed
by the next sweep.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from darkroom import strict_json
from darkroom.config import Retention
from darkroom.errors import StorageTrouble, plainly
from darkroom.spool import KINDS, Disk, Spool, read, results
from darkroom.spool.ticket import ERROR, LOG, PICTURE_SUFFIXES, RESULT, RETRY

ASIDE = ".removed-"
"""How the names of folders begin that are being removed."""
SLICE_S = 0.02
"""How long the daemon sweeps before it looks around."""
EVERY_S = 300.0
DAY_S = 86_400.0
MOST_RESULT_BYTES = 64 << 20

_OURS = frozenset({RESULT, ERROR, RETRY, LOG, *(f"request{kind}" for kind in KINDS), "contact-sheet.jpg"})
_LITTER = frozenset({"Thumbs.db", "desktop.ini"})
"""What file managers leave in folders that they have shown; nobody's work, as hidden files are."""


@dataclass(frozen=True)
class Rule:
    """What is kept of a folder of results, newest first; None is no limit."""

    age_s: float | None = None
    count: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Outcome:
    """A result that a rule does not keep: removed, or left alone for the reason ``left``."""

    name: str
    """With the folder it is in: ``done/team/cat``."""
    bytes: int
    age_s: float
    left: str | None = None


class _Result(NamedTuple):
    written_ns: int
    bytes: int
    name: str
    path: str


Rules = Mapping[Path, Rule]


def rules(spool: Spool, settings: Retention) -> Rules:
    """Those of the config, for ``done/`` and ``failed/``; of a folder without limits there is none."""

    def rule(days: float | None, count: int | None, most_bytes: int | None) -> Rule:
        return Rule(None if days is None else days * DAY_S, count, most_bytes)

    found = {
        spool.done: rule(settings.done_days, settings.done_count, settings.done_bytes),
        spool.failed: rule(settings.failed_days, settings.failed_count, settings.failed_bytes),
    }
    return {base: rule for base, rule in found.items() if rule != Rule()}


def sweep(disk: Disk, rules: Rules, *, dry_run: bool = False) -> Iterator[Outcome | None]:
    """Remove what the rules do not keep, oldest first. None is yielded now and then: a place to stop, or to rest.

    Raises StorageTrouble, OSError where a folder of results cannot be read.
    """
    for base, rule in rules.items():
        surplus = yield from _surplus(base, rule)
        for result in reversed(surplus):
            yield from _remove(disk, base, result, dry_run)


def clear_remains(disk: Disk, base: Path) -> Iterator[None]:
    """Remove what a removal left that was cut short. Raises as ``sweep``."""
    remains = []
    with os.scandir(base) as entries:
        for entry in entries:
            if entry.name.startswith(ASIDE) and entry.is_dir(follow_symlinks=False):
                remains.append(entry.path)
            yield None
    for path in remains:
        yield from _empty(disk, path)


def _surplus(base: Path, rule: Rule) -> Generator[None, None, list[_Result]]:
    """What is not kept, newest first."""
    found: list[_Result] = []
    for name, path in results(base):
        yield None
        with suppress(FileNotFoundError):  # somebody took it away
            written_ns = os.lstat(f"{path}/{RESULT}").st_mtime_ns
            found.append(_Result(written_ns, _size(path) if rule.bytes is not None else 0, name, path))
    found.sort(reverse=True)
    now_ns = time.time_ns()
    filled = 0
    surplus = []
    for rank, result in enumerate(found):
        filled += result.bytes
        too_old = rule.age_s is not None and now_ns - result.written_ns > rule.age_s * 1e9
        too_many = rule.count is not None and rank >= rule.count
        too_large = rule.bytes is not None and filled > rule.bytes
        if too_old or too_many or too_large:
            surplus.append(result)
    return surplus


def _remove(disk: Disk, base: Path, result: _Result, dry_run: bool) -> Iterator[Outcome | None]:
    """One result: looked at, renamed aside, emptied."""
    age_s = max(0.0, time.time() - result.written_ns / 1e9)
    name = f"{base.name}/{result.name}"
    try:
        inode = os.lstat(result.path).st_ino
        size = _size(result.path)
        left = _why_left(result.path)
        if left is None and not dry_run:
            aside = f"{base}/{ASIDE}{secrets.token_hex(8)}"
            disk.rename(result.path, aside)
            if os.lstat(aside).st_ino != inode:  # another took its place in this moment
                disk.rename(aside, result.path)
                return
            yield from _empty(disk, aside)
    except FileNotFoundError:
        return  # somebody else was quicker
    except OSError as error:
        size, left = 0, plainly(error)
    yield Outcome(name, size, age_s, left)


def _empty(disk: Disk, folder: str) -> Iterator[None]:
    """Remove a folder that was renamed aside, file by file."""
    with suppress(FileNotFoundError):  # another sweep is at it, too
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _empty(disk, entry.path)
            else:
                disk.unlink(entry.path)
            yield None
        disk.rmdir(folder)


def _size(folder: str) -> int:
    """What its files hold, in bytes."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            total += entry.stat(follow_symlinks=False).st_size
    return total


def _why_left(folder: str) -> str | None:
    """Why a folder is not ours to remove; None where it is."""
    try:
        data = read(f"{folder}/{RESULT}", MOST_RESULT_BYTES)
        said = strict_json.parse(strict_json.decode(data or b"")).value
    except strict_json.JSONFault:
        return "its result.json is not valid"
    if not isinstance(said, dict) or not _is_verdict(said):
        return "its result.json is not darkroom's"
    known = set(_texts(said))
    stem = re.escape(str(said["name"]).rpartition("/")[2])
    picture = re.compile(rf"{stem}(~\d+)?-\d+({'|'.join(map(re.escape, PICTURE_SUFFIXES))})")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                return f"it holds a folder that darkroom did not make: {strict_json.shown(entry.name)}"
            if entry.name in _OURS | _LITTER | known or entry.name.startswith(".") or picture.fullmatch(entry.name):
                continue
            return f"it holds a file that darkroom did not make: {strict_json.shown(entry.name)}"
    return None


def _is_verdict(said: dict[str, Any]) -> bool:
    texts = all(isinstance(said.get(key), str) for key in ("darkroom", "id", "name", "finished_at"))
    return texts and said.get("status") in ("done", "failed", "partial") and isinstance(said.get("pictures"), list)


def _texts(value: Any) -> Iterator[str]:
    """Every text in it: the files that a result accounts for are among them."""
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)


class Housekeeping:
    """The daemon's sweeps: one at the start and every few minutes, a slice at a time."""

    def __init__(
        self, spool: Spool, settings: Retention, logger: Any, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spool = spool
        self._rules = rules(spool, settings)
        self._logger = logger
        self._clock = clock
        self._sweep: Iterator[Outcome | None] | None = None
        self._due_at = float("-inf")
        self._at_start = True
        self._removed: list[Outcome] = []
        self._left: dict[str, str | None] = {}
        self._known_left: dict[str, str | None] = {}

    def work(self, budget_s: float = SLICE_S) -> bool:
        """Go on with the sweep that is on, or begin one that is due. Whether there is more to do now. Never raises."""
        if self._sweep is None:
            if self._clock() < self._due_at or not (self._rules or self._at_start):
                return False
            self._sweep = self._begin()
        end = self._clock() + budget_s
        try:
            for outcome in self._sweep:
                if outcome is not None and outcome.left is None:
                    self._removed.append(outcome)
                elif outcome is not None:
                    self._left[outcome.name] = outcome.left
                if self._clock() >= end:
                    return True
        except (OSError, StorageTrouble) as error:
            self._logger.warning("retention.trouble", why=str(error))
        self._end()
        return False

    def _begin(self) -> Iterator[Outcome | None]:
        if self._at_start:
            self._at_start = False
            for base in (self._spool.done, self._spool.failed):
                yield from clear_remains(self._spool.disk, base)
        yield from sweep(self._spool.disk, self._rules)

    def _end(self) -> None:
        """Say what was done; of what was left alone, what is new."""
        self._sweep = None
        self._due_at = self._clock() + EVERY_S
        if self._removed:
            freed = sum(outcome.bytes for outcome in self._removed)
            self._logger.info("retention.removed", results=len(self._removed), bytes=freed)
        for name, why in self._left.items():
            if name not in self._known_left:
                self._logger.warning("retention.left", name=name, why=why)
        self._known_left = self._left
        self._removed, self._left = [], {}

"""What the engine is at, on the disk: found there by its successor, it is what the engine died of.

The kernel kills a process that uses more memory than there is, without a word. The next engine process, given the same
job, finds the note that the dead one left, and whether the kernel has killed somebody meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from darkroom.engine import cache
from darkroom.engine.memory.host import oom_kills
from darkroom.engine.memory.plan import MemoryPlan, Phase

_ANEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC

_FORGOTTEN_S = 7 * 24 * 3600.0

_ROOM = 1024
"""Bytes that a note is filled up to with spaces, so that a shorter one leaves nothing of a longer one behind it."""


@dataclass(frozen=True)
class Death:
    """An earlier attempt at a job that its process did not survive."""

    count: int
    """How many there were, this one included."""
    plan: MemoryPlan | None
    """By which it was made; None where it had not come so far."""
    phase: Phase | None
    by_kernel: bool | None
    """Whether the kernel has killed a process for want of memory since; None where it does not say."""


class UnderWay:
    """One note, for one job at a time. A folder that cannot be written to means that nothing is ever found."""

    def __init__(self, folder: Path, kills: Callable[[], int | None] = oom_kills) -> None:
        self._folder = folder / "under-way"
        self._kills = kills
        self._content: dict[str, Any] = {}
        self._file: str | None = None
        self._note: int | None = None
        self._forget_old()

    def begin(self, job: str) -> Death | None:
        """A job begins. Returns how it went before, if its process died of it."""
        self.end()
        self._file = f"{self._folder}/{hashlib.sha256(job.encode()).hexdigest()[:16]}.json"
        found = cache.read(self._file)
        death = self._death(found) if found.get("job") == job else None
        self._content = {
            "job": job,
            "deaths": death.count if death else 0,
            "kills": self._kills(),
            "daemon": os.getppid(),
            "plan": _written(death.plan) if death and death.plan else None,
            "phase": None,
        }
        with contextlib.suppress(OSError):
            try:
                self._note = os.open(self._file, _ANEW, 0o644)
            except FileNotFoundError:
                self._folder.mkdir(parents=True)
                self._note = os.open(self._file, _ANEW, 0o644)
            self._write()
        return death

    def at(self, plan: MemoryPlan, phase: Phase) -> None:
        """This is what happens next. To be called before it does."""
        news = {"plan": _written(plan), "phase": phase}
        if self._note is not None and not news.items() <= self._content.items():
            self._content |= news
            self._write()

    def end(self) -> None:
        """The job is over, and its process lives."""
        if self._note is not None:
            os.close(self._note)
            self._note = None
        if self._file is not None:
            cache.forget(self._file)
            self._file = None

    def _write(self) -> None:
        """In place and in one call, three times a picture: whole enough for a process that is killed."""
        assert self._note is not None
        with contextlib.suppress(OSError):
            os.pwrite(self._note, json.dumps(self._content).ljust(_ROOM).encode(), 0)

    def _death(self, found: dict[str, Any]) -> Death | None:
        try:
            plan = MemoryPlan.restored(found["plan"]) if found["plan"] else None
            count, kills_then = int(found["deaths"]) + 1, found["kills"]
            phase = found["phase"] if found["phase"] in get_args(Phase) else None
            same_daemon = found["daemon"] == os.getppid()
        except (KeyError, TypeError, ValueError):
            return None
        kills = self._kills()
        by_kernel = None if kills is None or kills_then is None else kills > kills_then
        if not by_kernel and not same_daemon:
            return None  # the daemon was ended, and took its engine with it
        return Death(count, plan, phase, by_kernel)

    def _forget_old(self) -> None:
        try:
            notes = list(self._folder.iterdir())
        except OSError:
            return
        for note in notes:
            try:
                old = time.time() - note.stat().st_mtime > _FORGOTTEN_S
            except OSError:
                continue
            if old:
                cache.forget(note)


@functools.lru_cache(maxsize=8)
def _written(plan: MemoryPlan) -> dict[str, Any]:
    """As it stands in a note. Most jobs go by the same plan."""
    return asdict(plan)

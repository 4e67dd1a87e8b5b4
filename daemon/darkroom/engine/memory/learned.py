"""What fitted into memory before, so that the next job of the kind starts there and does not run out of it again.

One small JSON file. An entry stands for a card with its driver, a model, a size and a batch. It says only how the
pictures were made, never that they were made smaller: that takes a real want of memory each time. What is lost or
damaged is learnt again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darkroom.engine import cache
from darkroom.engine.memory.plan import MemoryPlan

FILE = "plans.json"

RETRY_S = 3600.0
"""After this long a better plan is tried again."""

CLEARLY_MORE = 1.25
"""So is it where this many times as much memory is free as when the plan was learnt."""

_MOST_ENTRIES = 500


@dataclass(frozen=True)
class Recall:
    """What is known of a kind of job: the plan that fitted, or that it is time to try a better one."""

    plan: MemoryPlan | None = None
    retry: bool = False


class Learned:
    """The file, and its rules."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = folder / FILE
        self._clock = clock

    def recall(self, key: str, full: MemoryPlan, room: int | None) -> Recall:
        """What fitted where ``full`` was wanted. ``room`` is what is free now, in bytes."""
        entry = cache.read(self._file).get(key)
        if not isinstance(entry, dict):
            return Recall()
        try:
            plan = MemoryPlan.restored(entry.get("plan"))
        except ValueError:
            return Recall()
        age = self._clock() - _number(entry, "at")
        more = room is not None and not room <= _number(entry, "room") * CLEARLY_MORE
        if more or not 0 <= age < RETRY_S:  # a clock that was put back counts as long ago
            return Recall(retry=True)
        return Recall(full.like(plan))

    def learn(self, key: str, plan: MemoryPlan, full: MemoryPlan, room: int | None) -> None:
        """Remember that ``plan`` fitted where ``full`` was wanted; where that is ``full`` itself, nothing is needed.

        Writes only what is news.
        """
        entries = cache.read(self._file)
        known = entries.pop(key, None)
        if full.like(plan) == full:
            if known is None:
                return
        else:
            entries[key] = {"plan": asdict(plan), "room": room or 0, "at": self._clock()}
            while len(entries) > _MOST_ENTRIES:
                del entries[next(iter(entries))]
        cache.write(self._file, entries)


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")

"""How the daemon is: its state and counters, in memory and in ``<root>/health.json`` for others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from darkroom import __version__
from darkroom.errors import StorageTrouble
from darkroom.spool import Disk, timestamp

FILE = "health.json"
HEARTBEAT_S = 10.0
SOONEST_S = 1.0

State = Literal["starting", "idle", "working", "paused", "stopping", "stopped"]


@dataclass(kw_only=True)
class Report:
    """The content of health.json."""

    darkroom: str = __version__
    state: State = "starting"
    why: str | None = None
    """Why it is paused, for a person."""
    config_error: str | None = None
    """What is wrong with the configuration that it was told to read again, and did not take."""
    since: str
    updated_at: str
    pid: int
    host: str
    engine_pid: int | None = None
    job: str | None = None
    """The id of the job that runs."""
    waiting: int = 0
    done: int = 0
    failed: int = 0
    engine_restarts: int = 0
    missed_events: int = 0
    """Files that came without a notification, where there should be some."""
    last_job: str | None = None
    free_bytes: int | None = None


_REPORT = TypeAdapter(Report)


class Health:
    """Keeps the report and rewrites its file: when the state changes, but at most once a second, and as heartbeat."""

    def __init__(self, root: Path, disk: Disk, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = root / FILE
        self._disk = disk
        self._clock = clock
        now = timestamp()
        self.report = Report(since=now, updated_at=now, pid=os.getpid(), host=socket.gethostname())
        self._written_at = float("-inf")
        self._dirty = True

    def turn(self, state: State, why: str | None = None) -> bool:
        """Set the state. Returns whether it is another than before."""
        if (self.report.state, self.report.why) == (state, why):
            return False
        if self.report.state != state:
            self.report.since = timestamp()
        self.report.state = state
        self.report.why = why
        self._dirty = True
        return True

    def update(self, **fields: Any) -> None:
        """Set counters and such."""
        for key, value in fields.items():
            if getattr(self.report, key) != value:
                setattr(self.report, key, value)
                self._dirty = True

    def write(self, *, now: bool = False) -> None:
        """Rewrite the file if there is news or the heartbeat is due. Never raises."""
        age = self._clock() - self._written_at
        if not now and age < (SOONEST_S if self._dirty else HEARTBEAT_S):
            return
        self._written_at = self._clock()
        self._dirty = False
        self.report.updated_at = timestamp()
        try:
            self._disk.replace(self._path, _REPORT.dump_json(self.report, indent=2) + b"\n", sync=False)
        except (OSError, StorageTrouble):
            return


def read(root: Path) -> Report | None:
    """The last report; None where there is none, or none that can be read."""
    try:
        return _REPORT.validate_json((root / FILE).read_bytes())
    except (OSError, ValueError):
        return None

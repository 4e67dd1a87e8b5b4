"""How the daemon is: its state and counters, in memory and in ``<root>/health.json`` for others."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from darkroom import __version__
from darkroom.errors import StorageTrouble
from darkroom.processes import peak_bytes, resident_bytes
from darkroom.spool import Disk, timestamp

FILE = "health.json"
HEARTBEAT_S = 10.0
SOONEST_S = 1.0
LOST_S = 6 * HEARTBEAT_S
"""A report this old is no sign of life."""
MOST_RECENT = 10
"""So many verdicts are kept in the report."""

State = Literal["starting", "idle", "working", "paused", "stopping", "stopped"]


@dataclass(kw_only=True)
class Recent:
    """A verdict of late."""

    name: str
    """Of the job's folder in ``done/`` or, where ``status`` is another, in ``failed/``: with its group."""
    status: Literal["done", "failed", "partial"]
    reason: str | None = None
    finished_at: str
    seconds: float
    pictures: int


@dataclass(kw_only=True)
class Report:
    """The content of health.json. Counters are since ``started_at``."""

    darkroom: str = __version__
    state: State = "starting"
    why: str | None = None
    """Why it is paused, for a person."""
    config_error: str | None = None
    """What is wrong with the configuration that it was told to read again, and did not take."""
    trouble: bool = False
    """Whether it is paused because something is wrong, and not because somebody wanted it."""
    since: str
    """When it came into this state."""
    started_at: str = ""
    updated_at: str
    pid: int
    host: str
    engine_pid: int | None = None
    job: str | None = None
    """The id of the job that runs."""
    waiting: int = 0
    left: int = 0
    """What lies in the inbox and cannot be taken, or is no job."""
    left_why: str | None = None
    """Why one of them is left, for a person."""
    done: int = 0
    failed: int = 0
    pictures: int = 0
    fallbacks: int = 0
    """Steps down the memory ladder."""
    engine_restarts: int = 0
    missed_events: int = 0
    """Files that came without a notification, where there should be some."""
    told: int = 0
    untold: int = 0
    """Verdicts that ``[notify]`` delivered, and those that it gave up."""
    last_job: str | None = None
    recent: list[Recent] = field(default_factory=list)
    """The last verdicts, newest first; those of earlier daemons too."""
    free_bytes: int | None = None
    total_bytes: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    """Of the daemon: resident now, and at most."""
    engine_memory_bytes: int | None = None
    engine_memory_peak_bytes: int | None = None
    """Of the engine's present process; a GPU's own memory is not in it."""

    def age_s(self) -> float:
        """How long ago it was written, in seconds, by the clocks of who wrote it and of who reads it."""
        try:
            return (datetime.now(UTC) - datetime.fromisoformat(self.updated_at)).total_seconds()
        except (ValueError, TypeError):  # no moment, or one that says nothing of its time zone
            return float("inf")


@cache
def _adapter() -> TypeAdapter[Report]:
    """Made when first needed: `darkroom submit` never does."""
    return TypeAdapter(Report)


class Health:
    """Keeps the report and rewrites its file: when the state changes, but at most once a second, and as heartbeat."""

    def __init__(self, root: Path, disk: Disk, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = root / FILE
        self._disk = disk
        self._clock = clock
        now = timestamp()
        self.report = Report(since=now, started_at=now, updated_at=now, pid=os.getpid(), host=socket.gethostname())
        earlier = read(root)
        if earlier is not None:
            self.report.recent = earlier.recent[:MOST_RECENT]
        self._beat_at = self._clock()
        self._written_at = float("-inf")
        self._dirty = True

    def age_s(self) -> float:
        """How long ago the loop last came by, in seconds."""
        return self._clock() - self._beat_at

    def turn(self, state: State, why: str | None = None, *, trouble: bool = False) -> bool:
        """Set the state. Returns whether it is another than before."""
        self.report.trouble = trouble
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

    def ended(self, verdict: Recent) -> None:
        """A job has its verdict."""
        report = self.report
        report.done += verdict.status == "done"
        report.failed += verdict.status != "done"
        report.pictures += verdict.pictures
        report.last_job = verdict.name
        report.recent = [verdict, *report.recent[: MOST_RECENT - 1]]
        self._dirty = True

    def write(self, *, now: bool = False) -> None:
        """Rewrite the file if there is news or the heartbeat is due. Never raises."""
        self._beat_at = self._clock()
        age = self._beat_at - self._written_at
        if not now and age < (SOONEST_S if self._dirty else HEARTBEAT_S):
            return
        self._written_at = self._beat_at
        self._dirty = False
        self.measure()
        try:
            self._disk.replace(self._path, _adapter().dump_json(self.report, indent=2) + b"\n", sync=False)
        except (OSError, StorageTrouble):
            return

    def measure(self) -> None:
        """Look at memory and disk."""
        report = self.report
        report.updated_at = timestamp()
        report.memory_bytes, report.memory_peak_bytes = resident_bytes(report.pid), peak_bytes(report.pid)
        engine = report.engine_pid
        report.engine_memory_bytes = None if engine is None else resident_bytes(engine)
        report.engine_memory_peak_bytes = None if engine is None else peak_bytes(engine)
        with contextlib.suppress(OSError):
            status = os.statvfs(self._path.parent)
            report.free_bytes = status.f_bavail * status.f_frsize
            report.total_bytes = status.f_blocks * status.f_frsize


def read(root: Path) -> Report | None:
    """The last report; None where there is none, or none that can be read."""
    try:
        return _adapter().validate_json((root / FILE).read_bytes())
    except (OSError, ValueError):
        return None


def has_ended(root: Path) -> bool:
    """Whether the last report is a daemon's last word, or there is none: `darkroom submit` asks, and for no more."""
    try:
        report = json.loads((root / FILE).read_bytes())
    except (OSError, ValueError):
        return True
    return not isinstance(report, dict) or report.get("state") == "stopped"

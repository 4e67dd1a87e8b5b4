"""A claimed job and its folder ``working/<id>/``: what is kept there while it runs.

::

    request.json    what was dropped, as it was
    origin.json     where it came from: name, times, inode, host
    job.json        the resolved job, what was asked otherwise, fallbacks so far (``State``)
    attempt.N       the engine was woken for the N-th time; says how that ended
    cat-1.png       finished pictures
    log.jsonl       what happened
    progress.json   how far it is, for people on the share
    cancel          somebody wants it stopped
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from darkroom.errors import StorageTrouble
from darkroom.job import Job
from darkroom.spool.disk import Disk
from darkroom.spool.inbox import Arrival
from darkroom.spool.names import published_name

REQUEST = "request.json"
ORIGIN = "origin.json"
STATE = "job.json"
RESULT = "result.json"
ERROR = "error.json"
RETRY = "retry.json"
LOG = "log.jsonl"
PROGRESS = "progress.json"
CANCEL = "cancel"
ATTEMPT = "attempt."

PICTURE_SUFFIXES = (".png", ".jpg", ".webp")


def timestamp(ns: int | None = None) -> str:
    """UTC, ISO 8601 with milliseconds and Z; now unless a time in nanoseconds since 1970 is given."""
    moment = datetime.now(UTC) if ns is None else datetime.fromtimestamp(ns / 1e9, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@cache
def boot_id() -> str:
    """Which boot of this machine it is; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class Origin(BaseModel):
    """Where a job came from, written before the file is claimed."""

    name: str
    """For people: bytes that are not UTF-8 are shown as ``\\xNN``."""
    name_base64: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    host: str
    boot_id: str

    @classmethod
    def of(cls, arrival: Arrival) -> Origin:
        """From a file in the inbox."""
        raw = os.fsencode(arrival.name)
        print_ = arrival.fingerprint
        return cls(
            name=raw.decode("utf-8", "backslashreplace"),
            name_base64=base64.b64encode(raw).decode("ascii"),
            size=print_.size,
            mtime_ns=print_.mtime_ns,
            ctime_ns=print_.ctime_ns,
            inode=print_.inode,
            host=socket.gethostname(),
            boot_id=boot_id(),
        )

    @property
    def dropped(self) -> str:
        """The name as the system gave it, its odd bytes included."""
        return os.fsdecode(base64.b64decode(self.name_base64))

    @property
    def is_utf8(self) -> bool:
        """Whether ``name`` is the name exactly."""
        return base64.b64decode(self.name_base64) == self.name.encode("utf-8", "surrogatepass")


class State(BaseModel):
    """job.json: what is to be rendered now, and how it came to differ from what was asked."""

    job: Job
    requested: dict[str, Any] = {}
    fallbacks: list[dict[str, Any]] = []
    warnings: list[dict[str, Any]] = []
    started_at: str


class Attempt(BaseModel):
    """attempt.N: one waking of the engine. ``ended`` is None while it runs, and where the daemon died with it."""

    boot_id: str
    ended: Literal["engine-died", "engine-stalled"] | None = None


@dataclass(frozen=True)
class Ticket:
    """A claimed job. ``name`` is what its results will be called, before any ``~2``."""

    id: str
    name: str
    folder: Path
    origin: Origin
    disk: Disk

    @classmethod
    def load(cls, folder: Path, disk: Disk) -> Ticket | None:
        """The ticket of a working folder; None where it has no readable origin."""
        try:
            origin = Origin.model_validate_json((folder / ORIGIN).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return cls(folder.name, published_name(origin.dropped), folder, origin, disk)

    # What was asked, what is to be done

    def state(self) -> State | None:
        """The job as resolved earlier; None on the first time."""
        try:
            return State.model_validate_json((self.folder / STATE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save_state(self, state: State) -> None:
        """After a crash the job goes on with the same seeds and the same plan.

        Durable with the folder's next fsync, which comes before the engine is woken, and with each picture.
        """
        self.disk.replace(self.folder / STATE, state.model_dump_json().encode())

    # Attempts

    def attempts(self) -> list[Attempt]:
        """Every waking of the engine for this job that is on record, in order."""
        found: list[Attempt] = []
        for number in self._attempt_numbers():
            try:
                attempt = Attempt.model_validate_json(self._attempt(number).read_bytes())
            except ValidationError:
                attempt = Attempt(boot_id="")
            found.append(attempt)
        return found

    def count_attempts(self) -> int:
        """How many there were."""
        return len(self._attempt_numbers())

    def _attempt_numbers(self) -> list[int]:
        names = os.listdir(self.folder)  # noqa: PTH208 - names are enough
        numbers = (name.removeprefix(ATTEMPT) for name in names if name.startswith(ATTEMPT))
        return sorted(int(number) for number in numbers if number.isdigit())

    def begin_attempt(self) -> int:
        """Put on record that the engine is woken, before it is. Returns the attempt's number, from 1.

        The name is what counts and is durable; the content need not be.
        """
        number = self.count_attempts() + 1
        self.disk.write(self._attempt(number), Attempt(boot_id=boot_id()).model_dump_json().encode(), sync=False)
        self.disk.sync_folder(self.folder)
        return number

    def end_attempt(self, number: int, ended: Literal["engine-died", "engine-stalled"]) -> None:
        """Put on record that the engine died or hung on this job."""
        attempt = Attempt(boot_id=boot_id(), ended=ended)
        self.disk.replace(self._attempt(number), attempt.model_dump_json().encode())
        self.disk.sync_folder(self.folder)

    def forget_attempt(self, number: int) -> None:
        """Take an attempt off the record that was cut short through no fault of the job."""
        self.disk.unlink(self._attempt(number))  # not synced: one that comes back counts as one of many

    def _attempt(self, number: int) -> Path:
        return self.folder / f"{ATTEMPT}{number}"

    # Pictures

    def picture_path(self, index: int, extension: str) -> Path:
        """Where picture ``index`` (from 0) is kept: ``cat-1.png`` is the first."""
        leaf = self.name.rpartition("/")[2]
        return self.folder / f"{leaf}-{index + 1}.{extension}"

    def pictures(self) -> dict[int, Path]:
        """The finished pictures by index, from 0."""
        stem = self.name.rpartition("/")[2] + "-"
        found: dict[int, Path] = {}
        for path in self.folder.iterdir():
            number = path.stem.removeprefix(stem)
            if path.suffix in PICTURE_SUFFIXES and path.name.startswith(stem) and number.isdigit():
                found[int(number) - 1] = path
        return dict(sorted(found.items()))

    def save_picture(self, index: int, extension: str, data: bytes) -> Path:
        """Durable when this returns: it will not be rendered again."""
        path = self.picture_path(index, extension)
        self.disk.replace(path, data)
        self.disk.sync_folder(self.folder)
        return path

    # For people who look on

    def log(self, event: str, fields: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl. Never raises: a job does not fail for its log."""
        line = _json({"time": timestamp(), "event": event, **fields})
        try:
            self.disk.append(self.folder / LOG, line.encode("utf-8", "backslashreplace") + b"\n")
        except (OSError, StorageTrouble):
            return

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Rewrite progress.json: appears whole, is not durable, never raises."""
        try:
            self.disk.replace(self.folder / PROGRESS, json.dumps(progress).encode(), sync=False)
        except (OSError, StorageTrouble):
            return

    def cancel_wanted(self) -> bool:
        """Whether somebody put a file named ``cancel`` into the job's folder."""
        return (self.folder / CANCEL).exists()

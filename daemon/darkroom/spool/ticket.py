"""A claimed job and its folder ``working/<id>/``: what is kept there while it runs.

::

    request.json    what was dropped, as it was; a picture is request.png, .jpg, .jpeg or .webp
    dropped/        of a folder that was dropped: what the job does not use
    init_image.png  the pictures that it begins with, and mask_image
    origin.json     where it came from: name, times, inode, host
    job.json        the resolved job, what was asked otherwise, fallbacks so far (``State``)
    attempt.N       the engine was woken for the N-th time; says how that ended
    cat-1.png       finished pictures
    log.jsonl       what happened
    progress.json   how far it is, for people on the share
    preview.jpg     what the pictures under way will be, for them too
    list.json       of a list: where its entries appear (see ``split``)
    cancel          somebody wants it stopped
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from darkroom import strict_json
from darkroom.errors import StorageTrouble
from darkroom.spool.disk import Disk
from darkroom.spool.folders import DROPPED
from darkroom.spool.inbox import Arrival
from darkroom.spool.names import published_name, request_name, timestamp

if TYPE_CHECKING:
    from darkroom.spool.state import State

ORIGIN = "origin.json"
STATE = "job.json"
RESULT = "result.json"
ERROR = "error.json"
RETRY = "retry.json"
PLAN = "list.json"
LOG = "log.jsonl"
PROGRESS = "progress.json"
PREVIEW = "preview.jpg"
SHEET = "contact-sheet.jpg"
CANCEL = "cancel"
ATTEMPT = "attempt."

MOST_LOG_BYTES = 1 << 20
"""log.jsonl is not let grow beyond that, but for a job's last words."""
MOST_TEXT = 1000
"""So many characters of a text stand in it."""

PICTURE_SUFFIXES = (".png", ".jpg", ".webp")


@cache
def boot_id() -> str:
    """Which boot of this machine it is; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@cache
def host_name() -> str:
    """This machine's name, as it was when first asked for."""
    return socket.gethostname()


class Origin(BaseModel):
    """Where a job came from, written before the file is claimed."""

    model_config = ConfigDict(defer_build=True)

    name: str
    """For people: bytes that are not UTF-8 are shown as ``\\xNN``."""
    name_base64: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    host: str
    boot_id: str
    takes: tuple[str, ...] = ()
    """Names of pictures in the inbox that go with the job; the others that it begins with are copied."""

    @classmethod
    def of(cls, arrival: Arrival) -> Origin:
        """From a file in the inbox."""
        raw = os.fsencode(arrival.dropped)
        print_ = arrival.fingerprint
        return cls(
            name=raw.decode("utf-8", "backslashreplace"),
            name_base64=base64.b64encode(raw).decode("ascii"),
            size=print_.size,
            mtime_ns=print_.mtime_ns,
            ctime_ns=print_.ctime_ns,
            inode=print_.inode,
            host=host_name(),
            boot_id=boot_id(),
            takes=arrival.takes,
        )

    @property
    def dropped(self) -> str:
        """The name as the system gave it, its odd bytes included."""
        return os.fsdecode(base64.b64decode(self.name_base64))

    @property
    def is_utf8(self) -> bool:
        """Whether ``name`` is the name exactly."""
        return base64.b64decode(self.name_base64) == self.name.encode("utf-8", "surrogatepass")


class Attempt(BaseModel):
    """attempt.N: one waking of the engine. ``ended`` is None while it runs, and where the daemon died with it."""

    model_config = ConfigDict(defer_build=True)

    boot_id: str
    ended: Literal["engine-died", "engine-stalled"] | None = None
    prepared: bool = False
    """On record before the job's turn: that its turn came is not made durable."""

    @property
    def counts(self) -> bool:
        """Whether the engine was woken. Of one that was prepared a power cut may have taken what says so."""
        return not self.prepared or self.boot_id != boot_id()


def _cut(value: Any) -> Any:
    return f"{value[:MOST_TEXT]}…" if isinstance(value, str) and len(value) > MOST_TEXT else value


@dataclass(eq=False)
class Ticket:
    """A claimed job. ``name`` is what its results will be called, before any ``~2``; ``place`` its folder's path."""

    id: str
    name: str
    place: str
    origin: Origin
    disk: Disk
    fresh: bool = False
    """Claimed by this daemon: nothing but request and origin were in its folder, so nothing else is looked for."""
    _lines: list[bytes] = field(default_factory=list, repr=False)
    """Of log.jsonl, not written yet."""
    _logged: int | None = field(default=None, repr=False)
    """How many bytes log.jsonl has, with those lines; None until the first."""
    _attempts: dict[int, Attempt] | None = field(default=None, repr=False)
    """By number, from 1. Only this daemon changes them, so they are read once."""
    _prepared: int | None = field(default=None, repr=False)
    """The attempt that is on record already, though the engine is not woken yet."""

    @classmethod
    def load(cls, folder: Path, disk: Disk) -> Ticket | None:
        """The ticket of a working folder; None where it has no readable origin."""
        try:
            origin = Origin.model_validate_json((folder / ORIGIN).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return cls(folder.name, published_name(origin.dropped), str(folder), origin, disk)

    def at(self, file: str) -> str:
        """The path of a file in the job's folder."""
        return f"{self.place}/{file}"

    @property
    def folder(self) -> Path:
        """``working/<id>/``, until it is published."""
        return Path(self.place)

    # What was asked, what is to be done

    @property
    def request(self) -> str:
        """The path of what was dropped."""
        return self.at(request_name(self.origin.dropped))

    def state(self) -> State | None:
        """The job as resolved earlier; None on the first time."""
        if self.fresh:
            return None
        from darkroom.spool.state import State  # brings the types of jobs

        try:
            return State.model_validate_json(Path(self.at(STATE)).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save_state(self, state: State) -> None:
        """After a crash the job goes on with the same seeds and the same plan.

        Durable with the folder's next fsync, which comes before the engine is woken, and with each picture.
        """
        self.disk.replace(self.at(STATE), state.model_dump_json().encode())

    # The pictures that it begins with

    @property
    def dropped_folder(self) -> str | None:
        """The path of what is left of the folder that was dropped, where it was one."""
        path = self.at(DROPPED)
        return path if os.path.isdir(path) else None

    def given(self) -> dict[str, str]:
        """The files of those that are here, by the field that they are for."""
        from darkroom.job import IMAGE_FIELDS

        names = {f"{field}{suffix}": field for field in IMAGE_FIELDS for suffix in PICTURE_SUFFIXES}
        return {names[file]: file for file in os.listdir(self.place) if file in names}

    def keep_given(self, file: str, data: bytes) -> None:
        """A copy of one that stays where it is. Durable when the engine is woken: see ``save_state``."""
        self.disk.replace(self.at(file), data)

    def take_given(self, file: str, path: str) -> None:
        """One that goes with the job: it moves here. Raises FileNotFoundError where it vanished."""
        self.disk.rename(path, self.at(file))
        self.disk.sync_folder(self.place)  # kept: without a journal the picture would be nowhere until the job is begun
        self.disk.sync_folder(path.rpartition("/")[0])

    def clear_dropped(self) -> None:
        """Remove the empty folders that are left of the one that was dropped."""
        if (left := self.dropped_folder) is not None:
            self._clear(left)

    def _clear(self, folder: str) -> None:
        with os.scandir(folder) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for path in below:
            self._clear(path)
        if not os.listdir(folder):
            self.disk.rmdir(folder)
        else:
            self.disk.sync_folder(folder)

    # Attempts

    def _known_attempts(self) -> dict[int, Attempt]:
        if self._attempts is None:
            names = () if self.fresh else os.listdir(self.place)
            numbers = (name.removeprefix(ATTEMPT) for name in names if name.startswith(ATTEMPT))
            known = sorted(int(number) for number in numbers if number.isdigit())
            found = {number: self._read_attempt(number) for number in known}
            self._attempts = {number: attempt for number, attempt in found.items() if attempt.counts}
        return self._attempts

    def _read_attempt(self, number: int) -> Attempt:
        try:
            return Attempt.model_validate_json(Path(self._attempt(number)).read_bytes())
        except ValidationError:
            return Attempt(boot_id="")

    def attempts(self) -> list[Attempt]:
        """Every waking of the engine for this job that is on record, in order."""
        return list(self._known_attempts().values())

    def count_attempts(self) -> int:
        """How many there were."""
        return len(self._known_attempts())

    @property
    def is_begun(self) -> bool:
        """Whether the engine has had it: one that was claimed ahead of its turn it has not."""
        try:
            return self.count_attempts() > 0
        except OSError:
            return True  # it is being published

    def prepare_attempt(self) -> None:
        """Put on record that the engine is about to be woken: then ``begin_attempt`` does not wait for the disk."""
        number = len(self._known_attempts()) + 1
        self._write_attempt(number, Attempt(boot_id=boot_id(), prepared=True))
        self._prepared = number

    def unprepare_attempt(self) -> None:
        """It is not, for now."""
        if self._prepared is not None:
            number, self._prepared = self._prepared, None
            self.forget_attempt(number)

    def begin_attempt(self) -> int:
        """Put on record that the engine is woken, before it is. Returns the attempt's number, from 1."""
        number, attempt = len(self._known_attempts()) + 1, Attempt(boot_id=boot_id())
        if self._prepared == number:
            self.disk.replace(self._attempt(number), attempt.model_dump_json().encode(), sync=False)
        else:
            self._write_attempt(number, attempt)
        self._prepared = None
        self._known_attempts()[number] = attempt
        return number

    def _write_attempt(self, number: int, attempt: Attempt) -> None:
        """The name is what counts and is durable; the content need not be."""
        self.disk.write(self._attempt(number), attempt.model_dump_json().encode(), sync=False)
        self.disk.sync_folder(self.place)

    def end_attempt(self, number: int, ended: Literal["engine-died", "engine-stalled"]) -> None:
        """Put on record that the engine died or hung on this job."""
        attempt = Attempt(boot_id=boot_id(), ended=ended)
        self.disk.replace(self._attempt(number), attempt.model_dump_json().encode())
        self.disk.sync_folder(self.place)
        self._known_attempts()[number] = attempt

    def forget_attempt(self, number: int) -> None:
        """Take an attempt off the record that was cut short through no fault of the job."""
        self.disk.unlink(self._attempt(number))  # not synced: one that comes back counts as one of many
        self._known_attempts().pop(number, None)

    def _attempt(self, number: int) -> str:
        return self.at(f"{ATTEMPT}{number}")

    # Pictures

    @property
    def _stem(self) -> str:
        return self.name.rpartition("/")[2]

    def pictures(self) -> dict[int, Path]:
        """The finished pictures by index, from 0."""
        stem = f"{self._stem}-"
        found: dict[int, Path] = {}
        for path in self.folder.iterdir():
            number = path.stem.removeprefix(stem)
            if path.suffix in PICTURE_SUFFIXES and path.name.startswith(stem) and number.isdigit():
                found[int(number) - 1] = path
        return dict(sorted(found.items()))

    def save_picture(self, index: int, extension: str, data: bytes) -> str:
        """Durable when this returns its name: ``cat-1.png`` is picture 0. It will not be rendered again."""
        file = f"{self._stem}-{index + 1}.{extension}"
        self.disk.replace(self.at(file), data)
        self.disk.sync_folder(self.place)
        return file

    def save_grid(self, data: bytes) -> str:
        """Durable with what is published next. Returns the file's name."""
        file = f"{self._stem}-grid.jpg"
        self.disk.replace(self.at(file), data)
        return file

    # For people who look on

    def log(self, event: str, fields: Mapping[str, Any], *, last: bool = False) -> None:
        """A line of log.jsonl, which ``write_log`` writes with the others since. ``last`` is written however many."""
        if self._logged is None:
            self._logged = 0 if self.fresh else self.log_size()
        if self._logged > MOST_LOG_BYTES and not last:
            return
        said = {key: _cut(value) for key, value in fields.items()}
        self._add_line({"time": timestamp(), "event": event, "id": self.id, **said})
        if self._logged > MOST_LOG_BYTES and not last:
            self._add_line({"time": timestamp(), "event": "log.full", "id": self.id, "bytes": MOST_LOG_BYTES})

    def _add_line(self, said: dict[str, Any]) -> None:
        self._lines.append(strict_json.line(said) + b"\n")
        self._logged = (self._logged or 0) + len(self._lines[-1])

    def log_size(self) -> int:
        """How many bytes log.jsonl has; 0 where there is none."""
        try:
            return os.stat(self.at(LOG)).st_size
        except OSError:
            return 0

    def write_log(self) -> None:
        """Add to log.jsonl what was logged since. Raises StorageTrouble, then nothing is forgotten.

        Whatever else is wrong with the log is passed over: a job does not fail for it.
        """
        if not self._lines:
            return
        with contextlib.suppress(OSError):
            self.disk.append(self.at(LOG), b"".join(self._lines))
        self._lines.clear()

    def write_progress(self, progress: Mapping[str, Any]) -> None:
        """Rewrite progress.json: appears whole, is not durable, never raises."""
        self._show(PROGRESS, strict_json.line(progress))

    def write_preview(self, data: bytes) -> None:
        """Rewrite preview.jpg, in the same way."""
        self._show(PREVIEW, data)

    def _show(self, file: str, data: bytes) -> None:
        try:
            self.disk.replace(self.at(file), data, sync=False)
        except (OSError, StorageTrouble):
            return

    def save_sheet(self, data: bytes) -> None:
        """contact-sheet.jpg, durable with what is published next. Raises OSError, StorageTrouble."""
        self.disk.replace(self.at(SHEET), data)

    def cancel_wanted(self) -> bool:
        """Whether somebody put a file named ``cancel`` into the job's folder."""
        return os.path.exists(self.at(CANCEL))

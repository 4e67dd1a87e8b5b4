"""``Spool``: the four folders, and a job's way through them: claim, recover, publish."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.config import Folders, Limits
from darkroom.errors import ConfigError, StorageTrouble, refusal
from darkroom.spool import inbox as inbox_folder
from darkroom.spool.disk import Disk, storage_errors
from darkroom.spool.embedded import is_too_large, most_with_pictures
from darkroom.spool.fingerprint import Fingerprint
from darkroom.spool.folders import DROPPED
from darkroom.spool.inbox import Arrival, Oddity
from darkroom.spool.lock import Lock
from darkroom.spool.names import (
    JOBS_OF_FOLDERS,
    KINDS,
    is_picture,
    new_id,
    published_name,
    request_name,
)
from darkroom.spool.retiring import Retiring
from darkroom.spool.split import Plan, settle, split
from darkroom.spool.ticket import ORIGIN, Origin, Ticket

if TYPE_CHECKING:
    from darkroom.spool.verdict import Verdict

PAUSE = "PAUSE"
PROBE = ".darkroom-probe"
MOST_WORDS = 1000
"""So many bytes of a PAUSE file are read."""


class Spool:
    """The folders of one daemon. Nothing is touched before ``open``."""

    def __init__(self, folders: Folders, limits: Limits, disk: Disk | None = None) -> None:
        self.root = folders.root
        self.inbox = folders.named("inbox")
        self.working = folders.named("working")
        self.done = folders.named("done")
        self.failed = folders.named("failed")
        self.limits = limits
        self._working = str(self.working)
        self._pause = str(self.root / PAUSE)
        self.disk = disk or Disk()
        self._lock = Lock(self.working, self.disk)
        self._inbox_identity: tuple[int, int] | None = None
        self._retiring = Retiring(self._working, str(self.done), str(self.failed), self.disk)

    # Start and end

    def open(self) -> None:
        """Make the folders, take the lock, prove that all four are one file system.

        Raises SpoolInUse, or ConfigError where a folder cannot be used.
        """
        self._make_folders()
        try:
            with storage_errors(self.working, "lock"):
                self._lock.acquire()
        except OSError as error:
            raise ConfigError(f"{self.working}: cannot be locked: {error.strerror}; see [folders]") from None
        try:
            self._probe()
        except BaseException:
            self.close()
            raise
        self.mark_inbox()

    def close(self) -> None:
        """Let go of the lock."""
        self.disk.close()
        self._lock.release()

    def _make_folders(self) -> None:
        """Durable, also where an earlier daemon made them and did not live to sync them."""
        holding: dict[Path, None] = {}
        for folder in (self.root, self.inbox, self.working, self.done, self.failed):
            try:
                missing = list(takewhile(lambda path: not path.is_dir(), (folder, *folder.parents)))
            except PermissionError as error:
                raise ConfigError(f"{refusal(error)}; see [folders]") from None
            for path in (*reversed(missing), folder):
                try:
                    if not path.is_dir():
                        self.disk.mkdir(path)
                except OSError as error:
                    if not path.is_dir():  # nobody else was quicker
                        raise ConfigError(f"{folder}: cannot be made: {error.strerror}; see [folders]") from None
                holding[path.parent] = None
        for parent in holding:
            try:
                self.disk.sync_folder(parent)
            except PermissionError:
                continue  # above the root, where we may not look and have made nothing

    def _probe(self) -> None:
        """A real rename through all folders: the only proof that renames between them work."""
        places = [folder / PROBE for folder in (self.inbox, self.working, self.done, self.failed)]
        here = places[0]
        try:
            for place in places:
                self.disk.unlink(place)
            self.disk.write(here, b"", sync=False)
            for place in places[1:]:
                self.disk.rename(here, place)
                here = place
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise ConfigError(
                    f"{place.parent} is on another file system than {here.parent}: "
                    "jobs move by rename, so put all four folders on one; see [folders]"
                ) from None
            raise ConfigError(f"{place.parent}: cannot be written: {error.strerror}; see [folders]") from None
        finally:
            self.disk.unlink(here)

    def mark_inbox(self) -> None:
        """Remember which folder the inbox is, so that a vanished mount is never taken for an empty one."""
        self._inbox_identity = self._identity()

    def reopen_inbox(self) -> None:
        """Take the folder that is at the inbox's place now as the inbox; one that is gone is not made again.

        Raises ConfigError where it is gone or cannot be used, StorageTrouble.
        """
        if self._identity() is None:
            raise ConfigError(f"the inbox {self.inbox} is gone; make it again, or mount it, to go on")
        self._probe()
        self.mark_inbox()

    def inbox_is_the_same(self) -> bool:
        """Whether the inbox is still the folder that it was at ``mark_inbox``."""
        identity = self._identity()
        return identity is not None and identity == self._inbox_identity

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.inbox.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def paused(self) -> bool:
        """Whether somebody put a file named PAUSE into the root."""
        return os.path.exists(self._pause)

    def why_paused(self) -> str:
        """What to tell people of that: the file's own words, if it has any."""
        try:
            words = (inbox_folder.read(self._pause, MOST_WORDS) or b"").decode("utf-8", "replace")
        except OSError:
            words = ""
        why = " ".join(words.split()) or "a file named PAUSE lies in the spool"
        return f"{why}; `darkroom resume` goes on"

    def free_bytes(self) -> int:
        """Free space for us where the spool is. Raises StorageTrouble."""
        with storage_errors(self.inbox, "statvfs"):
            status = os.statvfs(self.inbox)
        return status.f_bavail * status.f_frsize

    # Waiting

    def pending(self) -> Iterator[Arrival | Oddity]:
        """What lies in the inbox, in no order. Raises OSError where it cannot be read."""
        return inbox_folder.look(self.inbox)

    def walk(self) -> Iterator[tuple[str, os.DirEntry[str]] | Oddity]:
        """The same by names alone; temporaries are left out. Raises OSError where it cannot be read."""
        return inbox_folder.walk(self.inbox)

    def waiting(self) -> int:
        """How many files lie in the inbox, by their names. Raises OSError where it cannot be read."""
        return inbox_folder.count(self.inbox)

    def holds_back(self, arrival: Arrival) -> bool:
        """Whether a folder in the inbox does not let the file go: see ``claim``."""
        return inbox_folder.is_held_back(str(self.inbox), arrival)

    # Claim

    def claim(self, arrival: Arrival) -> Ticket | None:
        """Take a file out of the inbox: it is ours from the rename on. None if it vanished before.

        Raises StorageTrouble; PermissionError where the file may not be moved.
        """
        origin = Origin.of(arrival)
        name = published_name(arrival.dropped)
        id = new_id(name)
        folder = f"{self._working}/{id}"
        target = f"{folder}/{DROPPED if arrival.whole_folder else request_name(arrival.name)}"
        self.disk.mkdir(folder)
        self.disk.hold(self._working)
        self.disk.hold(folder)
        self.disk.write(f"{folder}/{ORIGIN}", origin.model_dump_json().encode())
        self.disk.sync_folder(folder)  # kept: without a journal a folder's names may be written in any order
        self.disk.sync_folder(self._working)
        try:
            self.disk.rename(arrival.place, target)
        except (OSError, StorageTrouble) as error:
            # A network file system may report an error for a rename that happened.
            if not os.path.lexists(target):
                self._undo_claim(folder)
                if isinstance(error, FileNotFoundError):
                    return None
                raise
        if arrival.whole_folder:
            self._unpack(folder)
        self.disk.sync_folder(folder)  # kept: without a journal the job would be nowhere until it is begun
        self.disk.sync_folder(arrival.place.rpartition("/")[0])
        return Ticket(id, name, folder, origin, self.disk, fresh=True)

    def _unpack(self, folder: str) -> bool:
        """Take the job file out of a folder that was dropped; whether there is one."""
        for name in JOBS_OF_FOLDERS:
            path = f"{folder}/{DROPPED}/{name}"
            if os.path.lexists(path):
                self.disk.rename(path, f"{folder}/{request_name(name)}")
                self.disk.sync_folder(f"{folder}/{DROPPED}")
                return True
        return False

    def _undo_claim(self, folder: str) -> None:
        self.disk.let_go(folder)
        try:
            self.disk.remove_tree(folder)
        except (OSError, StorageTrouble):
            return  # recover() removes it

    def read_request(self, ticket: Ticket) -> bytes | None:
        """What was dropped; None where it is over its limit. Raises OSError."""
        path = ticket.request
        with storage_errors(path, "read"):
            return self.read(path)

    def read(self, path: str) -> bytes | None:
        """What a file holds that may be a job; None where it is over its limit. Raises OSError."""
        if is_picture(path):
            return inbox_folder.read(path, self.limits.max_picture_bytes)
        data = inbox_folder.read(path, most_with_pictures(self.limits))
        return None if data is None or is_too_large(data, self.limits) else data

    def most_bytes(self, name: str) -> int:
        """How large a job of that name may be, the pictures in it not counted."""
        return self.limits.max_picture_bytes if is_picture(name) else self.limits.max_job_bytes

    # Lists

    def split(self, ticket: Ticket, files: Iterable[tuple[str, bytes]]) -> Generator[None, None, Plan]:
        """Make a list's entries, given by name and content, into jobs of the inbox: all at once, exactly once.

        Yields after each; returns where they are. Raises StorageTrouble: begun again, it goes on where it was.
        """
        return split(ticket, files, self.inbox, (self.done, self.failed), self.disk)

    def tidy(self, folder: str) -> None:
        """Remove a folder of the inbox, such as a list's whose last entry was taken, if it is empty."""
        try:
            self.disk.rmdir(self.inbox / folder)
        except (OSError, StorageTrouble):
            return  # there is something in it, or it is gone

    def make_hot_folders(self, names: Iterable[str]) -> None:
        """Folders of the inbox in which jobs take a preset. Raises ConfigError, StorageTrouble."""
        for name in names:
            folder = self.inbox / name
            if not folder.is_dir():
                try:
                    self.disk.mkdir(folder)
                except OSError as error:
                    raise ConfigError(f"{folder}: cannot be made: {error.strerror}; see [presets.{name}]") from None

    # Recover

    def recover(self, published: Callable[[Path, Verdict], object] = lambda *_: None) -> Iterator[Ticket]:
        """What an earlier daemon left in ``working/``, oldest first. Call with the lock held and no engine alive.

        A folder without a request is removed (its file is still in the inbox); one whose verdict was written is
        published, and ``published`` told where; the others are yielded, to be run on.
        """
        from darkroom.spool.verdict import written_verdict  # brings the types of jobs

        for folder in sorted(self.working.iterdir()):
            if folder.name.startswith(".") or not folder.is_dir() or folder.is_symlink():
                continue
            if request_in(folder) is None and not self._unpack(str(folder)):
                if not os.path.lexists(folder / DROPPED):
                    self.disk.remove_tree(folder)  # not synced: what comes back is removed again
                continue
            verdict = written_verdict(folder)
            if verdict is not None:
                published(self._retiring.retire(str(folder), verdict), verdict)
                continue
            settle(str(folder), self.inbox, self.disk)
            ticket = Ticket.load(folder, self.disk)
            yield ticket or self._adopt(folder)

    def _adopt(self, folder: Path) -> Ticket:
        """A request whose origin was lost keeps its folder's name."""
        request = request_in(folder)
        assert request is not None
        arrival = Arrival(f"{folder.name}{request[request.rindex('.') :]}", request, Fingerprint.of(os.lstat(request)))
        origin = Origin.of(arrival).model_dump_json().encode()
        self.disk.replace(folder / ORIGIN, origin, sync=False)  # lost again, it is made again
        ticket = Ticket.load(folder, self.disk)
        assert ticket is not None
        return ticket

    # Publish

    def publish(self, ticket: Ticket, verdict: Verdict) -> Path:
        """Write the verdict and move the job's folder to ``done/`` or ``failed/`` by one rename. Returns where it is.

        May be called again after StorageTrouble: it goes on where it was.
        """
        ticket.write_log()
        return self._retiring.retire(ticket.place, verdict)


def request_in(folder: Path) -> str | None:
    """The path of what was dropped; None where it has not come yet."""
    paths = (f"{folder}/request{kind}" for kind in KINDS)
    return next((path for path in paths if os.path.lexists(path)), None)

"""Watching the inbox: notifications where the file system gives them. They are a hint to scan, never a truth."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver, EventEmitter

RETRY_S = 30.0


class _Hint(FileSystemEventHandler):
    """Passes on where something happened and does nothing else."""

    def __init__(self, changed: Callable[[str | None], None]) -> None:
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Creations, moves, changes and closes are arrivals or parts of them. Of a folder, nothing more is known."""
        if isinstance(event, _ARRIVALS):
            path = event.dest_path or event.src_path
            self._changed(None if event.is_directory else os.fsdecode(path))


_ARRIVALS = (
    FileCreatedEvent,
    FileMovedEvent,
    FileModifiedEvent,
    FileClosedEvent,
    DirCreatedEvent,
    DirMovedEvent,
)


class Watch:
    """The observer of one folder, rebuilt when it breaks.

    ``changed`` is called from its thread, with the path of a file, or None where more may have changed.
    """

    def __init__(self, folder: Path, changed: Callable[[str | None], None]) -> None:
        self.folder = folder
        self.changed = changed
        self._observer: BaseObserver | None = None
        self._retry_at = 0.0
        self.trouble: str | None = None

    def start(self, now: float) -> bool:
        """Begin, or begin again. Returns whether notifications will come; ``trouble`` says why not.

        ``now`` is monotonic seconds. Never raises: without notifications the scan goes on alone.
        """
        self.stop()
        try:
            observer = _observer()
            observer.schedule(_Hint(self.changed), str(self.folder), recursive=True)
            observer.start()
        except (OSError, RuntimeError) as error:
            self.trouble = f"no notifications for {self.folder}: {error}; scanning instead"
            self._retry_at = now + RETRY_S
            return False
        self._observer = observer
        self.trouble = None
        return True

    def keep(self, now: float) -> bool:
        """Start it again if it is not whole and it is time to. Returns whether it was started just now."""
        if self.alive() or now < self._retry_at:
            return False
        return self.start(now)

    def alive(self) -> bool:
        """Whether the observer and each of its emitters live: the observer's own word proves nothing."""
        if self._observer is None or not self._observer.is_alive():
            return False
        return bool(self.emitters()) and all(emitter.is_alive() for emitter in self.emitters())

    def emitters(self) -> list[EventEmitter]:
        """The threads that listen to the system."""
        return [] if self._observer is None else list(self._observer.emitters)

    def stop(self) -> None:
        """End the observer's threads."""
        if self._observer is None:
            return
        observer, self._observer = self._observer, None
        try:
            observer.stop()
            observer.join(2)
        except (OSError, RuntimeError):
            return


def _observer() -> BaseObserver:
    """The platform's observer; on Linux one that is not told of files that leave.

    watchdog holds such an event for half a second, to pair it with the file's arrival elsewhere, and all later events
    behind it. Every claim is a file that leaves, so each would delay the next arrival. A folder that left is therefore
    still watched, and another may come in its place: then two watches have one path, of which watchdog knows only one.
    """
    if sys.platform != "linux":
        from watchdog.observers import Observer

        return Observer()
    from watchdog.observers.inotify import InotifyEmitter, InotifyWatchGroup
    from watchdog.observers.inotify_c import InotifyConstants as Inotify

    class Arrivals(InotifyWatchGroup):
        def _remove_watch_internally(self, wd: Any) -> None:
            path = self._active_callbacks_by_watch.pop(wd, None)
            if path is not None and self._active_callbacks_by_path.get(path) == wd:
                del self._active_callbacks_by_path[path]

    class ArrivalEmitter(InotifyEmitter):
        def on_thread_start(self) -> None:
            path, events = os.fsencode(self.watch.path), self.get_event_mask_from_filter()
            self._inotify = Arrivals(self._inotify_fd, path, is_recursive=True, event_mask=events)

        def get_event_mask_from_filter(self) -> Any:
            arrivals = Inotify.IN_CREATE | Inotify.IN_MOVED_TO | Inotify.IN_MODIFY | Inotify.IN_CLOSE_WRITE
            return arrivals | Inotify.IN_DELETE_SELF

    # A folder that comes with one in it is come by twice, which is no one's concern.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning, r"watchdog\.")
    # It complains on every stop that it was stopped while it waited.
    logging.getLogger("watchdog.observers.inotify").setLevel(logging.CRITICAL)
    return BaseObserver(ArrivalEmitter)

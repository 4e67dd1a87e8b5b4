"""Keeping an eye on the inbox itself: it may vanish, come back as another folder, or lose its notifications."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from darkroom.errors import ConfigError, StorageTrouble, plainly
from darkroom.intake.mounts import tells_of_changes
from darkroom.intake.watch import Watch
from darkroom.spool import Spool

CHECK_S = 0.5


class Guard:
    """``trouble`` says why the inbox cannot be used now; None where it can. ``changed`` comes from another thread."""

    def __init__(
        self,
        spool: Spool,
        logger: Any,
        changed: Callable[[str | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.local = tells_of_changes(spool.root)
        self.trouble: str | None = None
        self._spool = spool
        self._logger = logger
        self._clock = clock
        self.watch = Watch(spool.inbox, changed)
        self._next_check = 0.0

    def start(self) -> None:
        """Begin to watch, where the file system tells of changes."""
        if self.local:
            self.watch.start(self._clock())
        self._say_trouble_of_watch()

    def stop(self) -> None:
        """End the watch."""
        self.watch.stop()

    @property
    def notified(self) -> bool:
        """Whether changes are heard of, not only found by scanning."""
        return self.watch.alive()

    def check(self) -> bool:
        """Look, a few times a second at most. Returns whether the inbox should be scanned afresh."""
        now = self._clock()
        if now < self._next_check:
            return False
        self._next_check = now + CHECK_S
        if self.trouble is not None or not self._spool.inbox_is_the_same():
            return self._find_again(now)
        if self.local and self.watch.keep(now):
            self._logger.warning("watch.restarted")
            return True
        self._say_trouble_of_watch()
        return False

    def missed(self, count: int) -> None:
        """So many files came that no notification told of: watch anew. Scanning found them, and goes on."""
        if self.local:
            self._logger.warning("watch.missed", files=count)
            self.watch.start(self._clock())
            self._say_trouble_of_watch()

    def unreadable(self, error: OSError) -> None:
        """A scan failed: nothing is taken from the inbox until it is found again."""
        self.trouble = f"the inbox {self._spool.inbox} cannot be read: {plainly(error)}"
        self._logger.error("inbox.unreadable", why=self.trouble)

    def _find_again(self, now: float) -> bool:
        try:
            self._spool.reopen_inbox()
        except (ConfigError, StorageTrouble) as error:
            if self.trouble != error.message:
                self._logger.error("inbox.gone", why=error.message)
            self.trouble = error.message
            return False
        self.trouble = None
        if self.local:
            self.watch.start(now)
        self._logger.warning("inbox.found_again")
        return True

    def _say_trouble_of_watch(self) -> None:
        if self.watch.trouble is not None:
            self._logger.warning("watch.trouble", why=self.watch.trouble)
            self.watch.trouble = None

"""Trouble with the machine, a full disk or a GPU that is gone: waited out, longer each time, and blamed on no job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from darkroom.errors import DeviceGone, StorageTrouble, refusal

T = TypeVar("T")

TROUBLE = (StorageTrouble, DeviceGone, OSError)
"""Whatever the disk refuses, or the GPU, is the machine's fault, never the job's."""

LONGEST_PAUSE_S = 30.0


@dataclass
class Trouble:
    """What is wrong now, if anything is, and when to try again."""

    logger: Any
    paused: Callable[[str], None]
    """Told what is wrong, each time that a pause begins."""
    rest: Callable[[float], None]
    """Sleeps so many seconds at most. Raises Stopped."""
    first_pause_s: float
    """How long the first wait is; each is twice the one before, up to half a minute."""
    clock: Callable[[], float] = time.monotonic
    why: str | None = None
    pause_s: float = 0.0
    _device_gone: bool = False
    _retry_at: float = 0.0

    def waits(self) -> bool:
        """Whether it is too early to try again."""
        return self.why is not None and self.clock() < self._retry_at

    def pause(self, trouble: StorageTrouble | DeviceGone | OSError) -> None:
        """Begin to wait, longer than the last time."""
        why = refusal(trouble)
        device = isinstance(trouble, DeviceGone)
        if self.why != why:
            self.logger.error("device.gone" if device else "spool.trouble", why=why)
        self.why = why
        self._device_gone = self._device_gone or device
        self.pause_s = min(2 * self.pause_s or self.first_pause_s, LONGEST_PAUSE_S)
        self._retry_at = self.clock() + self.pause_s
        self.paused(why)

    def over(self, *, device: bool = False) -> None:
        """Something went well: that it was a job on the device is the only proof that the device is back.

        Nothing else proves anything while it is too early to try again what did not.
        """
        if self.why is None or (not device and (self._device_gone or self.waits())):
            return
        self.logger.info("device.back" if self._device_gone else "spool.trouble_over", was=self.why)
        self.why = None
        self._device_gone = False
        self.pause_s = 0.0

    def insist(self, operation: Callable[[], T]) -> T:
        """Do it, and after trouble with the disk again, until it is done. Raises Stopped."""
        while True:
            try:
                value = operation()
            except FileNotFoundError:
                raise  # waiting brings nothing back
            except TROUBLE as trouble:
                self.pause(trouble)
            else:
                self.over()
                return value
            while self.waits():
                self.rest(self._retry_at - self.clock())

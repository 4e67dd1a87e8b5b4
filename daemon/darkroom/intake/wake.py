"""A pipe that wakes a sleeper: from another thread, or from a signal handler, where locks are not safe."""

from __future__ import annotations

import os
import select


class Waker:
    """``wake`` from anywhere; ``wait`` in one thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._poll = select.poll()  # which, unlike select, takes any descriptor
        self._poll.register(self._read, select.POLLIN)

    def wake(self) -> None:
        """End the sleep that is on, or the next one."""
        try:
            os.write(self._write, b"\0")
        except (BlockingIOError, OSError):
            return  # full: awake anyway; closed: nobody sleeps

    def wait(self, timeout: float) -> bool:
        """Sleep until woken, ``timeout`` seconds at most. Returns whether it was woken."""
        if not self._poll.poll(1000 * max(0.0, timeout)):
            return False
        try:
            while os.read(self._read, 4096):
                pass
        except BlockingIOError:
            pass
        return True

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._read)
        os.close(self._write)

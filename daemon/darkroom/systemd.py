"""Telling systemd how the daemon is, over the socket that ``$NOTIFY_SOCKET`` names (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

MORE_S = 60.0
"""How much more time we ask for, again and again; as long as the unit's TimeoutStartSec."""


class Notifier:
    """Sends state to systemd. Without the variable it does nothing; it never raises and never waits."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_interval(environ)
        """Within how many seconds ``watchdog`` must be called again, or systemd kills us; None if never."""
        self._pinged_at = float("-inf")
        self._status: str | None = None

    def ready(self, status: str | None = None) -> None:
        """Start-up, or a reload, is finished."""
        self._send("READY=1", status)

    def status(self, text: str) -> None:
        """One line about what the daemon does, shown by ``systemctl status``. Sent only when it is another."""
        if text != self._status:
            self._send(None, text)

    def watchdog(self) -> None:
        """We are alive. May be called as often as one likes: it is sent four times per interval at most."""
        if self.watchdog_s is not None and time.monotonic() - self._pinged_at >= self.watchdog_s / 4:
            self._pinged_at = time.monotonic()
            self._send("WATCHDOG=1")

    def waiting(self) -> None:
        """Something else is at fault for our not being ready yet: TimeoutStartSec is to count from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(MORE_S * 1e6)}")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self, status: str | None = None) -> None:
        """The shutdown begins."""
        self._send("STOPPING=1", status)

    def _send(self, state: str | None, status: str | None = None) -> None:
        if status is not None:
            self._status = status
            status = "STATUS=" + " ".join(status.splitlines())
        if self._address is None:
            return
        message = "\n".join(line for line in (state, status) if line is not None)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as notify:
                notify.setblocking(False)
                notify.sendto(message.encode("utf-8", "replace"), self._address)
        except OSError:
            return


def _address(name: str) -> str | None:
    """A path, or ``@name`` for an abstract socket of Linux's; other kinds (vsock) are not for us."""
    if name.startswith("/"):
        return name
    return "\0" + name[1:] if name.startswith("@") else None


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds; None without a watchdog, or where it is meant for another process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None

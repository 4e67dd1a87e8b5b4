"""Telling others of each verdict: a command, a webhook. In threads of their own, so that no job ever waits for it.

Once a verdict is published it is handed over, and forgotten if the daemon ends before it is delivered: results in
``done/`` and ``failed/`` are the truth, this is the bell. A webhook may hear of one verdict twice, where its answer was
lost.
"""

from __future__ import annotations

import heapq
import hmac
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from darkroom import __version__
from darkroom.config import Notify
from darkroom.errors import first_line
from darkroom.events import Event
from darkroom.health import Health
from darkroom.job import Job
from darkroom.spool import Ticket, Verdict, as_json

MOST_WAITING = 1000
"""So many verdicts wait to be told at most; of more, only the log hears."""
AGAIN_S = (1.0, 5.0, 25.0, 120.0, 600.0)
"""How long a webhook that did not take a verdict is left alone, each time longer."""
CLOSE_S = 5.0
"""How long the end of the daemon may wait for the last deliveries."""


class Undelivered(Exception):
    """The other side did not take it."""


@dataclass(frozen=True)
class Notice:
    """A published verdict."""

    verdict: Verdict
    path: Path

    @property
    def id(self) -> str:
        """The job's id."""
        return self.verdict.result.id

    @property
    def event(self) -> str:
        """As the log names it."""
        return "job.done" if self.verdict.error is None else "job.failed"

    def body(self) -> bytes:
        """What is told: where the results are, and what result.json and error.json there say."""
        result = json.loads(as_json(self.verdict.result))
        group = result["name"].rpartition("/")[0]
        result["name"] = f"{group}/{self.path.name}" if group else self.path.name
        error = self.verdict.error.model_dump(mode="json") if self.verdict.error is not None else None
        said = {"event": self.event, "path": str(self.path), "result": result, "error": error}
        return json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace")


class Way(Protocol):
    """How a notice gets to somebody."""

    name: str

    def deliver(self, notice: Notice) -> None:
        """Bounded in time. Raises whatever keeps it from being delivered."""

    def abandon(self) -> None:
        """Give up on the delivery that is under way."""


class Command:
    """A program, started for each notice with its body on standard input. Not tried again: it may have done half."""

    name = "command"

    def __init__(self, command: Sequence[str], timeout_s: float) -> None:
        self._command = command
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def deliver(self, notice: Notice) -> None:
        """Raises Undelivered, OSError."""
        # In a session of its own: a Ctrl-C is not meant for it, and it ends with all that it started.
        with subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        ) as self._process:
            try:
                self._process.communicate(notice.body(), timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                self.abandon()
                raise Undelivered(f"it took longer than {self._timeout_s:g} s and was killed") from None
            if self._process.returncode != 0:
                raise Undelivered(f"it ended with exit code {self._process.returncode}")

    def abandon(self) -> None:
        """Kill it, and what it started."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


class Webhook:
    """An address that the body is POSTed to, signed if there is a secret."""

    name = "webhook"

    def __init__(self, address: str, timeout_s: float, secret: str | None) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._secret = secret
        self._client: Any = None

    def deliver(self, notice: Notice) -> None:
        """Raises Undelivered, or what the client raises."""
        import httpx2

        if self._client is None:
            self._client = httpx2.Client(timeout=self._timeout_s)
        body = notice.body()
        with self._client.stream("POST", self._address, content=body, headers=self._headers(notice, body)) as answer:
            if not answer.is_success:  # its words are not read: they could be without end
                raise Undelivered(f"{urlsplit(self._address).hostname} answered {answer.status_code}")

    def _headers(self, notice: Notice, body: bytes) -> dict[str, str]:
        moment = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"darkroom/{__version__}",
            "X-Darkroom-Event": notice.event,
            "X-Darkroom-Delivery": notice.id,
            "X-Darkroom-Timestamp": moment,
        }
        if self._secret is not None:
            headers["X-Darkroom-Signature"] = signature(self._secret, moment, body)
        return headers

    def abandon(self) -> None:
        """Its time-out ends it."""


def signature(secret: str, moment: str, body: bytes) -> str:
    """HMAC-SHA256 over the timestamp, a dot and the body: an old request cannot be sent again as a new one."""
    return "sha256=" + hmac.new(secret.encode(), moment.encode() + b"." + body, "sha256").hexdigest()


class Courier:
    """A thread that delivers by one way. What is not taken is tried again after ``again_s``, and holds up nothing."""

    def __init__(self, way: Way, again_s: Sequence[float], report: Callable[..., None]) -> None:
        self._way = way
        self._again_s = again_s
        self._report = report
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, int, Notice]] = []
        """When it is due, its number, how often it was tried."""
        self._number = 0
        self._closing = False
        self._at_work: Notice | None = None
        self._thread: threading.Thread | None = None

    def take(self, notice: Notice) -> None:
        """Returns at once."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"tell-{self._way.name}", daemon=True)
                self._thread.start()
            full = len(self._waiting) >= MOST_WAITING
            if not full:
                self._put(0.0, 0, notice)
        if full:
            self._report(self._way.name, notice, 0, f"{MOST_WAITING} others wait to be told", None)

    def close(self, until: float) -> None:
        """Each that waits is tried once more, until that monotonic second."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if not self._thread.is_alive():
            return
        with self._changed:
            left = [self._at_work] if self._at_work is not None else []
            left += [notice for _, _, _, notice in sorted(self._waiting)]
            self._waiting.clear()
            self._at_work = None
        self._way.abandon()
        for notice in left:
            self._report(self._way.name, notice, 0, "the daemon ended before it was delivered", None)

    def _put(self, due: float, tries: int, notice: Notice) -> None:
        self._number += 1
        heapq.heappush(self._waiting, (due, self._number, tries, notice))
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting or (self._waiting[0][0] > time.monotonic() and not self._closing):
                    if self._closing:
                        return
                    self._changed.wait(self._waiting[0][0] - time.monotonic() if self._waiting else None)
                _, _, tries, notice = heapq.heappop(self._waiting)
                self._at_work = notice
            self._try(notice, tries + 1)

    def _try(self, notice: Notice, tries: int) -> None:
        why: str | None = None
        try:
            self._way.deliver(notice)
        except Undelivered as error:
            why = str(error)
        except Exception as error:  # a client has many ways to fail, and this thread none to end
            why = first_line(error)
        with self._changed:
            if self._at_work is None:
                return  # told of as lost, meanwhile
            self._at_work = None
            again_s = None
            if why is not None and tries <= len(self._again_s) and not self._closing:
                again_s = self._again_s[tries - 1]
                self._put(time.monotonic() + again_s, tries, notice)
        self._report(self._way.name, notice, tries, why, again_s)


class Teller:
    """A viewer of the loop that tells others."""

    def __init__(self, settings: Notify, health: Health, logger: Any, again_s: Sequence[float] = AGAIN_S) -> None:
        self._health = health
        self._logger = logger
        self._lock = threading.Lock()
        self._couriers: list[Courier] = []
        if settings.command is not None:
            command = Command(settings.command, settings.command_timeout_s)
            self._couriers.append(Courier(command, (), self._report))
        if settings.webhook is not None:
            secret = settings.secret.get_secret_value() if settings.secret is not None else None
            webhook = Webhook(settings.webhook, settings.webhook_timeout_s, secret)
            self._couriers.append(Courier(webhook, again_s, self._report))

    def tell(self, verdict: Verdict, path: Path) -> None:
        """Returns at once."""
        for courier in self._couriers:
            courier.take(Notice(verdict, path))

    def close(self) -> None:
        """What waits is tried once more; what is not delivered in time is given up, and the log says so."""
        until = time.monotonic() + CLOSE_S
        for courier in self._couriers:
            courier.close(until)

    def _report(self, way: str, notice: Notice, tries: int, why: str | None, again_s: float | None) -> None:
        """The record of a delivery: the daemon's log, and the counters of health.json."""
        fields = {"id": notice.id, "way": way, "tries": tries}
        if why is None:
            self._logger.info("notify.delivered", **fields)
        elif again_s is not None:
            self._logger.warning("notify.failed", **fields, why=why, again_s=again_s)
            return
        else:
            self._logger.warning("notify.given_up", **fields, why=why)
        with self._lock:
            report = self._health.report
            if why is None:
                self._health.update(told=report.told + 1)
            else:
                self._health.update(untold=report.untold + 1)

    # As a viewer

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """Nobody is told of that."""

    def event(self, ticket: Ticket, event: Event) -> None:
        """Nor of that."""

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """As ``tell``."""
        self.tell(verdict, path)

    def state(self, state: str, why: str | None) -> None:
        """Nor of that."""

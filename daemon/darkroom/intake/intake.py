"""Which files of the inbox have arrived whole, in the order in which they are to run.

A complete JSON object is its own end mark: the file is whole as soon as it parses. One that does not parse is being
written, until it has been unchanged for the settle time; then it will never be a job, and is refused. A whole file
that can never be valid is refused at once, one that is valid waits for its turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from darkroom.errors import InvalidRequest, Unfinished
from darkroom.spool import Arrival, Oddity, Spool, fingerprint, read

SCAN_SHARE = 5
"""A scan that took t seconds is not repeated within this many t, so that scanning stays a small part of the time."""

UNFINISHED_LOOK_S = 0.2
UNREADABLE_RETRY_S = 5.0


class _Is(Enum):
    """What is known of a waiting file."""

    NEW = auto()
    READY = auto()
    UNFINISHED = auto()
    HOPELESS = auto()
    UNREADABLE = auto()


@dataclass(slots=True)
class _Candidate:
    """A file that waits. ``since``: when its present content was first seen, in monotonic seconds."""

    arrival: Arrival
    since: float
    state: _Is = _Is.NEW
    retry_at: float = 0.0


@dataclass
class Intake:
    """Look with ``look``, hear of hopeless files with ``refused``, take the next one with ``take``.

    ``judge`` raises InvalidRequest for bytes that are no job, Unfinished for those that may yet become one; None
    stands for a file over the size limit. ``report`` is called once for each thing that is left in the inbox, with its
    name and the reason. Only ``hint`` may be called from another thread.
    """

    spool: Spool
    judge: Callable[[bytes | None], None]
    report: Callable[[str, str], None]
    settle_s: float
    rescan_s: float
    clock: Callable[[], float] = time.monotonic
    _files: dict[str, _Candidate] = field(default_factory=dict)
    _order: deque[_Candidate] = field(default_factory=deque)
    _new: deque[_Candidate] = field(default_factory=deque)
    _unfinished: list[_Candidate] = field(default_factory=list)
    _hopeless: deque[_Candidate] = field(default_factory=deque)
    _reported: dict[str, str] = field(default_factory=dict)
    _hinted: bool = True
    _earliest_scan: float = 0.0
    _next_scan: float = 0.0
    _next_unfinished_look: float = 0.0

    def hint(self) -> None:
        """Something changed in the inbox: scan soon."""
        self._hinted = True

    def look(self) -> None:
        """Scan if it is time to. Raises OSError where the inbox cannot be read."""
        now = self.clock()
        if (self._hinted and now >= self._earliest_scan) or now >= self._next_scan:
            self._hinted = False
            self._scan(now)
            end = self.clock()
            pause = SCAN_SHARE * (end - now)
            self._earliest_scan = end + pause
            self._next_scan = end + max(self.rescan_s, pause)
        if self._unfinished and now >= self._next_unfinished_look:
            self._next_unfinished_look = now + UNFINISHED_LOOK_S
            self._look_at_unfinished(now)

    def wait_s(self) -> float:
        """How many seconds one may sleep before there is something to do here, hints aside."""
        now = self.clock()
        if self._new or self._hopeless:
            return 0.0
        due = self._earliest_scan if self._hinted else self._next_scan
        if self._unfinished:
            due = min(due, self._next_unfinished_look)
        return max(0.0, due - now)

    @property
    def waiting(self) -> int:
        """How many files wait; exact up to the spool's window."""
        return len(self._files)

    @property
    def idle(self) -> bool:
        """Whether nothing waits that will be taken or refused in time: what cannot be read does not count."""
        return not self._hinted and all(file.state is _Is.UNREADABLE for file in self._files.values())

    def refused(self, budget_s: float) -> Iterator[Arrival]:
        """Files that can never be a job; looks at new ones for about ``budget_s`` seconds."""
        end = self.clock() + budget_s
        while self._new and self.clock() < end:
            candidate = self._new.popleft()
            if self._is_here(candidate) and candidate.state is _Is.NEW:
                self._examine(candidate)
        while self._hopeless:
            candidate = self._hopeless.popleft()
            if self._is_here(candidate):
                del self._files[candidate.arrival.name]
                yield candidate.arrival

    def take(self) -> Arrival | None:
        """The next whole file in order; None if there is none now. It is looked at again if it changed."""
        while self._order:
            candidate = self._order.popleft()
            if not self._is_here(candidate):
                continue
            print_ = fingerprint(candidate.arrival.path)
            if print_ is None:
                del self._files[candidate.arrival.name]
                continue
            if print_ != candidate.arrival.fingerprint:
                candidate.arrival = Arrival(candidate.arrival.name, candidate.arrival.path, print_)
                candidate.since = self.clock()
                candidate.state = _Is.NEW
            if candidate.state is _Is.NEW:
                self._examine(candidate)
            if candidate.state is _Is.READY:
                del self._files[candidate.arrival.name]
                return candidate.arrival
        return None

    def _is_here(self, candidate: _Candidate) -> bool:
        return self._files.get(candidate.arrival.name) is candidate

    def _scan(self, now: float) -> None:
        known, self._files = self._files, {}
        oddities: dict[str, str] = {}
        try:
            for found in self.spool.pending():
                if isinstance(found, Oddity):
                    oddities[found.name] = found.why
                    continue
                candidate = known.get(found.name)
                if candidate is None or candidate.arrival.fingerprint != found.fingerprint:
                    candidate = _Candidate(found, now)
                elif candidate.state is _Is.UNREADABLE and now >= candidate.retry_at:
                    candidate.state = _Is.NEW
                self._files[found.name] = candidate
        except OSError:
            self._files = known
            raise
        finally:
            self._order = deque(sorted(self._files.values(), key=lambda candidate: candidate.arrival.order))
            self._new = deque(candidate for candidate in self._order if candidate.state is _Is.NEW)
            self._unfinished = [candidate for candidate in self._order if candidate.state is _Is.UNFINISHED]
        for name, why in oddities.items():
            if self._reported.get(name) != why:
                self.report(name, why)
        self._reported = oddities | {
            name: why for name, why in self._reported.items() if name in self._files and name not in oddities
        }

    def _look_at_unfinished(self, now: float) -> None:
        for candidate in self._unfinished:
            if not self._is_here(candidate):
                continue
            print_ = fingerprint(candidate.arrival.path)
            if print_ is not None and print_ != candidate.arrival.fingerprint:
                candidate.arrival = Arrival(candidate.arrival.name, candidate.arrival.path, print_)
                candidate.since = now
                self._examine(candidate)
            elif now - candidate.since >= self.settle_s:
                self._set_hopeless(candidate)
        self._unfinished = [candidate for candidate in self._unfinished if candidate.state is _Is.UNFINISHED]

    def _examine(self, candidate: _Candidate) -> None:
        """Read the file and judge it."""
        arrival = candidate.arrival
        try:
            self.judge(read(arrival.path, self.spool.limits.max_job_bytes))
        except Unfinished:
            if candidate.state is not _Is.UNFINISHED:
                self._unfinished.append(candidate)
            candidate.state = _Is.UNFINISHED
        except InvalidRequest:
            self._set_hopeless(candidate)
        except FileNotFoundError:
            self._files.pop(arrival.name, None)
        except OSError as error:
            candidate.state = _Is.UNREADABLE
            candidate.retry_at = self.clock() + UNREADABLE_RETRY_S
            why = f"it cannot be read: {error.strerror or error}"
            if self._reported.get(arrival.name) != why:
                self._reported[arrival.name] = why
                self.report(arrival.name, why)
        else:
            if candidate.state is _Is.UNFINISHED:
                self._hinted = True  # it takes its place in the order
            candidate.state = _Is.READY

    def _set_hopeless(self, candidate: _Candidate) -> None:
        candidate.state = _Is.HOPELESS
        self._hopeless.append(candidate)

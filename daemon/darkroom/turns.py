"""Whose turn it is: a job that was begun before, the one that was claimed ahead, the next of the inbox.

Lists have no turn: the inbox goes on when they are split.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from darkroom.errors import DeviceGone, StorageTrouble
from darkroom.health import Health
from darkroom.health import State as HealthState
from darkroom.intake import Guard, Intake
from darkroom.spool import Arrival, Spool, Ticket, Verdict, is_urgent
from darkroom.trouble import TROUBLE, Trouble
from darkroom.work.work import Work

REFUSE_BUDGET_S = 0.02
"""How long one look may go at new files."""

SPLIT_SLICE_S = 0.05
"""How long one look may write jobs out of a list."""


class Rest(Protocol):
    """Says that there is nothing to do, once what has ended is published."""

    def __call__(self, state: HealthState, why: str | None = None, *, trouble: bool = False) -> None:
        """``why`` it is so, and whether that is trouble."""


@dataclass
class Turns:
    """``next`` is to be done now; what needs no turn is filed by ``refuse``."""

    spool: Spool
    intake: Intake
    guard: Guard
    trouble: Trouble
    health: Health
    work: Work
    logger: Any
    publish: Callable[[], None]
    rest: Rest
    report_published: Callable[[Path, Verdict], None]
    clock: Callable[[], float] = time.monotonic
    claimed: deque[Ticket] = field(default_factory=deque)
    """Those that were begun before."""
    lists: deque[Iterator[None]] = field(default_factory=deque)
    """Lists that are being split, the first of them now."""
    recovered: bool = False
    """Whether all that lies in ``working/`` is known."""

    @property
    def waiting(self) -> int:
        """How many jobs wait for their turn: one that was claimed ahead does too."""
        return self.intake.waiting + (self.work.prepared is not None)

    def next(self) -> Ticket | None:
        """The job whose turn it is; None where there is none to take now."""
        if self.trouble.waits():
            return None
        try:
            if not self.recovered:
                self.publish()  # or it would be taken for a job that was cut short
                self.claimed.extend(self.spool.recover(self.report_published))
                self.recovered = True
            ticket = self.claimed.popleft() if self.claimed else self._claim_next()
        except TROUBLE as trouble:
            self.trouble.pause(trouble)
            return None
        self.trouble.over()
        return ticket

    def ahead(self) -> None:
        """While the engine ends a job, claim and prepare the one after it. Whatever speaks against that has time."""
        waits = self.claimed or self.lists or self.work.prepared
        troubled = self.trouble.why or self.guard.trouble or not self.recovered
        if waits or troubled or self.spool.paused():
            return
        ticket = None
        try:
            arrival = self._take() if self._lacks_space() is None else None
            ticket = self._claim(arrival) if arrival is not None else None
            if ticket is not None:
                self.work.prepare(ticket)
        except TROUBLE as trouble:
            self.work.prepared = None
            self.put_back(ticket, trouble)

    def start_over(self) -> None:
        """What was claimed, and what was about to be, is found again on the disk: the truth."""
        self.work.unprepare()
        self.work.prepared = None
        self.claimed.clear()
        self.lists.clear()
        self.recovered = False
        self.intake.start_over()

    def put_back(self, ticket: Ticket | None, trouble: StorageTrouble | DeviceGone | OSError) -> None:
        """A job that trouble came to goes on later, unless somebody took its folder away."""
        if ticket is None or ticket.folder.exists():
            self.trouble.pause(trouble)
        else:
            self.logger.warning("job.vanished", id=ticket.id, why="somebody removed its folder from working/")

    def refuse(self) -> None:
        """A slice of filing what will never have a turn. Raises StorageTrouble, OSError."""
        for arrival in self.intake.refused(REFUSE_BUDGET_S):
            self._refuse(arrival)
        if self.lists:
            self._go_on_splitting()

    def nothing_left(self) -> bool:
        """Whether nothing has a turn any more, nor will have. Looked at afresh: a notification may be under way."""
        if self.claimed or self.lists or self.work.prepared or not self.recovered:
            return False
        if self.trouble.why or self.guard.trouble or self.spool.paused():
            return False
        if self.intake.idle:
            try:
                self.intake.look_afresh()
            except OSError as error:
                self.guard.unreadable(error)
                return False
        return self.intake.idle and not self.claimed and not self.lists

    def _claim_next(self) -> Ticket | None:
        ahead = self.work.prepared.ticket if self.work.prepared is not None else None
        if self.spool.paused() and not (ahead is not None and ahead.cancel_wanted()):
            self.rest("paused", self.spool.why_paused())
            return None
        if ahead is not None:
            return self._overtaking(ahead) or ahead
        if self.guard.trouble is not None:
            self.rest("paused", self.guard.trouble, trouble=True)
            return None
        if self.lists:
            return None  # what waits may have come after it
        if (lack := self._lacks_space()) is not None:
            self.publish()
            raise lack
        arrival = self._take()
        if arrival is None:
            self.rest("idle")
            return None
        return self._claim(arrival)

    def _overtaking(self, ahead: Ticket) -> Ticket | None:
        """An urgent job that came after the one which was claimed ahead, and goes before it after all."""
        if is_urgent(ahead.origin.dropped) or self.guard.trouble or self.lists or self._lacks_space() is not None:
            return None
        arrival = self._take(urgent=True)
        return self._claim(arrival) if arrival is not None else None

    def _lacks_space(self) -> StorageTrouble | None:
        free, floor = self.spool.free_bytes(), self.spool.limits.min_free_bytes
        self.health.report.free_bytes = free
        if free >= floor:
            return None
        why = f"only {free >> 20} MiB free; [limits] min_free_bytes keeps {floor >> 20} MiB"
        return StorageTrouble(f"{self.spool.root}: {why}")

    def _take(self, *, urgent: bool = False) -> Arrival | None:
        arrival = self.intake.take(self.work.loaded, urgent=urgent)
        self.health.update(waiting=self.waiting)
        return arrival

    def _claim(self, arrival: Arrival) -> Ticket | None:
        try:
            return self.spool.claim(arrival)
        except OSError as error:
            self.intake.give_back(arrival, f"it cannot be moved out of the inbox: {error.strerror}")
            return None

    def _refuse(self, arrival: Arrival) -> None:
        """Claim a file that can never be a job, and say why; or a list, and begin to split it. Neither waits."""
        ticket = self._claim(arrival)
        if ticket is None or self.work.refuse(ticket) or not self.recovered:
            return  # filed; or to be recovered with all else that lies in working/
        splitting = self.work.split(ticket)
        if splitting is not None:
            self.lists.append(splitting)
        else:
            self.claimed.append(ticket)  # it was mended in the last moment

    def _go_on_splitting(self) -> None:
        """A slice of making a list into jobs."""
        end = self.clock() + SPLIT_SLICE_S
        for _ in self.lists[0]:
            if self.clock() >= end:
                return
        self.lists.popleft()
        self.intake.hint()

"""What becomes of a file that waits: a job, to be taken in its turn; none, to be refused; or time will tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from darkroom.errors import InvalidRequest, Unfinished, plainly
from darkroom.intake.candidate import Candidate, Is, Needs
from darkroom.intake.waiting import Waiting
from darkroom.spool import PUBLISHED, Fingerprint, Spool, fingerprint, is_picture

UNFINISHED_LOOK_S = 0.2
UNREADABLE_RETRY_S = 5.0

REST_SHARE = 10
"""A job with pictures is taken when nothing of it has changed for this part of the settle time."""

LOOK_SHARE = 50
"""A look at those that time decides about is not repeated within so many times what it took."""


@dataclass
class Judging:
    """Files are examined one by one; those of which time must tell are looked at again and again."""

    spool: Spool
    waiting: Waiting
    judge: Callable[[str, bytes | None], Needs | None]
    report: Callable[[str, str], None]
    all_known: Callable[[], bool]
    """Whether every file that waits was looked into: only then nothing that waits begins with a picture."""
    clock: Callable[[], float]
    settle_s: float

    unfinished: list[Candidate] = field(default_factory=list)
    """Those that time decides about."""
    hopeless: deque[Candidate] = field(default_factory=deque)
    unreadable_in_a_row: int = 0
    """How many files were looked into since one could be read."""
    next_look: float = 0.0

    def examine(self, candidate: Candidate) -> None:
        """Read the file and judge it."""
        arrival = candidate.arrival
        if self.waiting.beside.names(arrival.name):
            candidate.state = Is.BESIDE
            return
        candidate.needs = None
        self.waiting.free_pictures_of(arrival.name)
        if not arrival.whole_folder and self.clock() < self._rests_until(candidate):
            self._wait(candidate, Is.RESTING)
            return
        if self.spool.holds_back(arrival):
            self.leave(candidate, "it cannot be taken out of its folder, which darkroom may not write to (chmod g+w)")
            return
        try:
            needs = self.judge(arrival.name, self.spool.read(arrival.path))
        except InvalidRequest as error:
            # A picture that is no job may be what a job begins with, which is on its way.
            if isinstance(error, Unfinished) or is_picture(arrival.name):
                self._wait(candidate, Is.UNFINISHED)
            else:
                self._give_up(candidate)
        except FileNotFoundError:
            self.waiting.forget(arrival.name)
        except OSError as error:
            remedy = " (chmod g+r)" if isinstance(error, PermissionError) else ""
            self.leave(candidate, f"it cannot be read: {plainly(error)}{remedy}")
            return
        else:
            self._decide(candidate, needs)
        self.unreadable_in_a_row = 0

    def leave(self, candidate: Candidate, why: str) -> None:
        """It stays where it is, and is tried again after a while."""
        candidate.state = Is.UNREADABLE
        candidate.retry_at = self.clock() + UNREADABLE_RETRY_S
        self.unreadable_in_a_row += 1
        self.report(candidate.name, why)

    def _decide(self, candidate: Candidate, needs: Needs | None) -> None:
        """About a job: ready, or to wait for its pictures."""
        if needs is not None and needs.is_list:
            candidate.state = Is.LIST
            self.hopeless.append(candidate)
            return
        candidate.model = None if needs is None else needs.model
        if needs is not None and not needs.pictured:
            needs = None
        candidate.needs = needs
        if needs is not None:
            candidate.seen = self._pictures_of(needs)
            self.waiting.keep_beside(candidate, needs.pictures)
        if needs is not None and needs.hopeless:
            self._give_up(candidate)
        elif needs is not None and not needs.arrived:
            self._wait(candidate, Is.UNFINISHED)
        elif self.clock() < self._rests_until(candidate):
            self._wait(candidate, Is.RESTING)
        else:
            candidate.state = Is.READY
            self.waiting.order.looked_into(candidate)

    def is_ready(self, candidate: Candidate) -> bool:
        """Whether it can be taken, now that its turn has come. Examined if need be."""
        if candidate.state is Is.NEW or (candidate.state is Is.READY and self._other_pictures(candidate)):
            self.examine(candidate)
        return candidate.state is Is.READY

    def look_at_unfinished(self, now: float) -> None:
        """Whether time has told."""
        looked_at, self.unfinished = self.unfinished, []
        for candidate in looked_at:
            if not candidate.waits or not self.waiting.has(candidate) or self.waiting.changed(candidate, now):
                continue
            if self._other_pictures(candidate) or (
                candidate.state is Is.RESTING and now >= self._rests_until(candidate)
            ):
                self.examine(candidate)
                if candidate.state is Is.READY:
                    self.waiting.queue(candidate)
            elif candidate.state is Is.UNFINISHED and self._had_its_time(candidate, now):
                self._give_up(candidate)
            else:
                self.unfinished.append(candidate)
        end = self.clock()
        self.next_look = end + max(min(UNFINISHED_LOOK_S, self._rest_s), LOOK_SHARE * (end - now))

    @property
    def _rest_s(self) -> float:
        """How long nothing of a job with pictures may have changed."""
        return self.settle_s / REST_SHARE

    def _other_pictures(self, candidate: Candidate) -> bool:
        """Whether the pictures that it begins with are not as they were when it was examined: it waits anew."""
        if candidate.needs is None or candidate.seen == self._pictures_of(candidate.needs):
            return False
        candidate.since = self.clock()
        return True

    def _pictures_of(self, needs: Needs) -> tuple[Fingerprint | None, ...]:
        return tuple(fingerprint(f"{self.spool.inbox}/{name}") for name in needs.pictures)

    def _rests_until(self, candidate: Candidate) -> float:
        """Until when it is left alone, in monotonic seconds; long ago for most."""
        if candidate.arrival.whole_folder or candidate.needs is not None:
            return candidate.since + self._rest_s
        folder, _, leaf = candidate.name.rpartition("/")
        if folder and (is_picture(leaf) or leaf in PUBLISHED):
            return self.waiting.stirred.get(folder, float("-inf")) + self.settle_s
        return float("-inf")

    def _had_its_time(self, candidate: Candidate, now: float) -> bool:
        return now - candidate.since >= self.settle_s and (not is_picture(candidate.name) or self.all_known())

    def _wait(self, candidate: Candidate, state: Is) -> None:
        candidate.state = state
        self.unfinished.append(candidate)

    def _give_up(self, candidate: Candidate) -> None:
        candidate.state = Is.HOPELESS
        self.hopeless.append(candidate)

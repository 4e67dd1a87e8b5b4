"""Which files of the inbox have arrived whole, in the order in which they are to run.

A complete JSON object is its own end mark: the file is whole as soon as it parses. One that does not parse is being
written, until it has been unchanged for the settle time; then it will never be a job, and is refused. A whole file
that can never be valid is refused at once, one that is valid waits for its turn.

A job that begins with pictures of the inbox waits for them, and then until nothing of it has changed for a while. Those
pictures are no jobs; they go with the last job that names them. In a folder, what might belong to a job that makes the
folder its own is left alone for the settle time, in which its job file may come.

A scan goes by names and is done in slices between which the daemon works; only files that are new in the window are
looked at. Up to ``window`` waiting files are in strict order. Of more, as many are kept as the window holds, chosen
round and round; beyond it a file costs its name, once a scan. Names that begin with ``!`` have a window of their own;
folders that take turns have a part of the window each. ``order`` says who is next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from darkroom.intake.candidate import Candidate, Is, Needs
from darkroom.intake.judging import Judging
from darkroom.intake.order import URGENT
from darkroom.intake.shares import Shares
from darkroom.intake.waiting import Waiting
from darkroom.intake.window import START, Choice, Place
from darkroom.spool import (
    MAX_FOLDER_DEPTH,
    Arrival,
    Oddity,
    Spool,
    is_candidate,
    is_temporary,
    look_at,
    owner,
)

WINDOW = 20_000
"""How many waiting files are kept in order."""

SCAN_SHARE = 50
"""A scan that took t seconds is not repeated within this many t, so that scanning stays a small part of the time."""

JUDGE_SHARE = 30
"""The same for judging files before their turn: some hundreds within a second, thousands in the course of the work."""

SLICE_S = 0.02
"""How long a scan goes on at a time."""

UNDER_WAY_S = 0.5
"""A notification may be this late before its file counts as one that nobody told of."""

MOST_HINTS = 1_000
"""When more names than these are heard of between two looks, a scan is cheaper."""

MOST_REPORTED = 10_000
"""So many oddities are remembered, and reported, at most."""

_NAMES_BETWEEN_CLOCKS = 200


@dataclass
class Intake:
    """Look with ``look``, hear of hopeless files with ``refused``, take the next one with ``take``.

    ``judge`` is given a name and what the file holds, None for one over the size limit. It raises InvalidRequest for
    what is no job, Unfinished for what may yet become one, and returns what is to be known of the job beforehand.
    ``report`` is called once for each thing that is left in the inbox, with its name and the reason. Only ``hint`` may
    be called from another thread.
    """

    spool: Spool
    judge: Callable[[str, bytes | None], Needs | None]
    report: Callable[[str, str], None]
    settle_s: float
    rescan_s: float
    clock: Callable[[], float] = time.monotonic
    window: int = WINDOW

    _reported: dict[str, tuple[str, int]] = field(default_factory=dict)
    """What was said of which name, and the last scan that would say it again."""

    _hints: deque[str] = field(default_factory=deque)
    _hinted: bool = True
    _scan: Iterator[None] | None = None
    _scan_cost_s: float = 0.0
    _earliest_scan: float = 0.0
    _next_scan: float = 0.0
    _complete: bool = False
    """Whether the inbox was seen as a whole: before that, nothing can be said of the order."""

    _after: dict[str, Place] = field(default_factory=dict)
    """Where the last choice ended, in each queue."""
    unannounced: int = 0
    """How many files a scan found that had been there for a while, and no hint had led to them."""

    left: dict[str, str] = field(default_factory=dict)
    """What is left where it is, and why, by its name; what has gone since, until the next scan."""

    _next_judging: float = 0.0

    def __post_init__(self) -> None:
        self._waiting = Waiting(self.clock)
        self._judging = Judging(
            self.spool,
            self._waiting,
            judge=self.judge,
            report=self._report,
            all_known=lambda: self._complete and not self._waiting.new and not self._shares.beyond,
            clock=self.clock,
            settle_s=self.settle_s,
        )
        self._shares = Shares(self._waiting, self.window, unfinished=lambda: len(self._judging.unfinished))

    def configure(self, settle_s: float, rescan_s: float) -> None:
        """Other times from now on."""
        self.settle_s = self._judging.settle_s = settle_s
        self.rescan_s = rescan_s

    def arrange(self, *, fair: bool = False, affinity_max_wait_s: float = 0.0) -> None:
        """In which order files are taken, those that wait already included."""
        self._waiting.arrange(fair=fair, affinity_max_wait_s=affinity_max_wait_s)

    # Looking

    def hint(self, path: str | None = None) -> None:
        """The file at ``path`` may have arrived or changed; without a path, anything may have: scan soon."""
        if path is None or len(self._hints) >= MOST_HINTS:
            self._hinted = True
        else:
            self._hints.append(path)

    def start_over(self) -> None:
        """What was given may lie in the inbox still: nothing more is given before a whole scan, to keep the order."""
        self._hinted = True
        self._complete = False
        self._scan = None

    def look_afresh(self) -> None:
        """As ``look``, with a whole scan, however lately that was done."""
        self._hinted = True
        self._earliest_scan = 0.0
        self.look()
        while self._scan is not None:
            self._go_on_scanning()

    def look(self) -> None:
        """Look at what was hinted at, and scan if it is time to, a slice. Raises OSError for an unreadable inbox."""
        now = self.clock()
        while self._hints:
            self._look_where_hinted(self._hints.popleft(), now)
        if self._scan is None and now >= self._scan_due():
            hinted, self._hinted = self._hinted, False
            self._scan_cost_s = 0.0
            # Beyond the window, and at first, there are files that were told of and forgotten, or never known.
            self._scan = self._scanning(now, surprising=not hinted and self._complete and not self._shares.beyond)
        if self._scan is not None:
            self._go_on_scanning()
        if self._judging.unfinished and now >= self._judging.next_look:
            self._judging.look_at_unfinished(now)

    def wait_s(self) -> float:
        """How many seconds one may sleep before there is something to do here, hints aside."""
        if self._judging.hopeless or self._hints or self._scan is not None:
            return 0.0
        due = self._scan_due()
        if self._waiting.new:
            due = min(due, self._next_judging)
        if self._judging.unfinished:
            due = min(due, self._judging.next_look)
        return max(0.0, due - self.clock())

    @property
    def kept(self) -> int:
        """How many files are kept in order: three windows full at most, urgent and unfinished ones included."""
        return len(self._waiting)

    @property
    def waiting(self) -> int:
        """How many files wait; beyond the window, as of the last scan."""
        return len(self._waiting) + self._shares.beyond

    @property
    def idle(self) -> bool:
        """Whether nothing waits that will be taken or refused in time: what cannot be read does not count."""
        busy = self._hinted or self._hints or self._scan is not None or self._has_more_beyond
        return not busy and all(file.state is Is.UNREADABLE for file in self._waiting.files.values())

    # Giving

    @property
    def has_news(self) -> bool:
        """Whether ``refused`` has something to do."""
        return bool(self._judging.hopeless) or bool(self._waiting.new and self.clock() >= self._next_judging)

    def refused(self, budget_s: float) -> Iterator[Arrival]:
        """Files that do not wait for a turn: what can never be a job, and lists, whose jobs are to.

        Looks at new ones for about ``budget_s`` seconds.
        """
        begin = self.clock()
        if self._waiting.new and begin >= self._next_judging:
            for candidate in self._waiting.still_new():
                self._judging.examine(candidate)
                if self.clock() >= begin + budget_s:
                    break
            end = self.clock()
            # What takes longer is slow to read, or the first, which brings libraries: no reason for others to wait.
            self._next_judging = end + JUDGE_SHARE * min(end - begin, budget_s)
        while self._judging.hopeless:
            candidate = self._judging.hopeless.popleft()
            if self._waiting.has(candidate) and candidate.state in (Is.HOPELESS, Is.LIST):
                yield self._leaving(candidate)

    def take(self, loaded: str | None = None, *, urgent: bool = False) -> Arrival | None:
        """The next whole file in order; None if there is none now. It is looked at again if it changed.

        ``loaded`` is the model that a job would not have to wait for. ``urgent``: only one that goes before all others.
        """
        order = self._waiting.order
        while self._complete and (candidate := order.first()) is not None:
            if urgent and candidate.queue != URGENT:
                return None
            if self._waiting.changed(candidate, self.clock()):
                continue
            if self._judging.is_ready(candidate):
                chosen = order.choose(candidate, loaded)
                if chosen is not candidate and self._waiting.changed(chosen, self.clock()):
                    continue
                if not self._judging.is_ready(chosen):
                    chosen = candidate
                order.took(chosen)
                return self._leaving(chosen)
            if candidate.state is Is.LIST:
                return None  # what comes after it comes after its jobs
            order.drop(candidate)
        return None

    def upcoming(self, most: int) -> list[Arrival]:
        """Of the next ``most`` files in order those that could be taken now and begin with no pictures. None is."""
        found: dict[str, Arrival] = {}
        for candidate in list(islice(self._waiting.order.upcoming(), most)):
            arrival = candidate.arrival
            if not arrival.whole_folder and self._judging.is_ready(candidate) and candidate.needs is None:
                found[arrival.name] = arrival
        return list(found.values())

    def _leaving(self, candidate: Candidate) -> Arrival:
        """The file waits no longer; its pictures go with it, if no other job that waits names them."""
        arrival = candidate.arrival
        if candidate.needs is not None and not arrival.whole_folder:
            for other in self._waiting.still_new():  # any of them may name the same pictures
                self._judging.examine(other)
            arrival = arrival._replace(takes=() if self._shares.beyond else self._waiting.beside.only_of(arrival.name))
            for name in arrival.takes:
                self._waiting.files.pop(name, None)
        self._waiting.forget(arrival.name)
        return arrival

    def give_back(self, arrival: Arrival, why: str) -> None:
        """One that was given could not be moved out of the inbox: it waits on, and is tried again after a while."""
        self._waiting.add(arrival, self.clock())
        self._judging.leave(self._waiting.files[arrival.name], why)

    # Scanning

    def _scan_due(self) -> float:
        """When the next scan is to begin."""
        if self._has_more_beyond and len(self._waiting) - len(self._judging.unfinished) < self.window // 2:
            return self._earliest_scan if self._waiting else 0.0
        return self._earliest_scan if self._hinted else self._next_scan

    @property
    def _has_more_beyond(self) -> bool:
        """Whether files wait beyond the window of which some may be readable."""
        return self._shares.beyond > 0 and self._judging.unreadable_in_a_row < self.waiting

    def _go_on_scanning(self) -> None:
        """One slice of the scan. Raises OSError where the inbox cannot be read: that ends it."""
        assert self._scan is not None
        begin = self.clock()
        over = True
        try:
            for _ in self._scan:
                if self.clock() - begin >= SLICE_S:
                    over = False
                    break
            else:
                self._complete = True
        finally:
            end = self.clock()
            self._scan_cost_s += end - begin
            if over:
                self._scan = None
                pause = SCAN_SHARE * self._scan_cost_s
                self._earliest_scan = end + pause
                self._next_scan = end + max(self.rescan_s, pause)

    def _scanning(self, now: float, surprising: bool) -> Iterator[None]:
        """A scan; stops now and then, to be gone on with. ``surprising``: all there is should be known already."""
        self._waiting.scans += 1
        number = self._waiting.scans
        if self._shares.beyond:
            self._make_room()
        order = self._waiting.order
        known, choices = order.queues(), dict[str, Choice]()
        kept = self._shares.kept()
        for count, found in enumerate(self.spool.walk()):
            if count % _NAMES_BETWEEN_CLOCKS == 0:
                yield
            if isinstance(found, Oddity):
                self._report(found.name, found.why)
                continue
            name, entry = found
            if name in self._reported:
                self._report(name, self._reported[name][0])
            candidate = self._waiting.files.get(name)
            if candidate is not None:
                self._see(candidate, entry.inode(), now)
            elif is_candidate(entry):
                queue = order.queue_of(name)
                if queue not in choices:
                    choices[queue] = Choice(self._shares.room(queue, kept), self._after.get(queue, START))
                choices[queue].offer(entry.inode(), name)
            elif name not in self._reported and len(self._reported) < MOST_REPORTED:
                self._look_at(name, now)
        self._shares.among({*choices, *known})
        kept, beyond = self._shares.kept(), dict[str, int]()
        for queue, choice in choices.items():
            room = self._shares.room(queue, kept)
            yield from self._admit(choice.chosen()[:room], queue, now, surprising)
            beyond[queue] = choice.offered - min(room, len(choice.chosen()))
        self._shares.leave_out(beyond)
        self._after = {queue: place for queue, place in self._after.items() if queue in self._shares.queues_beyond}
        self._waiting.end_scan(now - self.settle_s)
        self._reported = {name: said for name, said in self._reported.items() if said[1] >= number}
        self.left = {name: why for name, (why, _) in self._reported.items() if self._is_left(name)}

    def _see(self, candidate: Candidate, inode: int, now: float) -> None:
        """A scan came by a file that is known."""
        candidate.scan = self._waiting.scans
        if inode != candidate.arrival.fingerprint.inode and self._waiting.changed(candidate, now):
            return
        if candidate.state is Is.UNREADABLE and now >= candidate.retry_at:
            candidate.state = Is.NEW
            self._waiting.new.append(candidate)
            self._waiting.queue(candidate)

    def _admit(self, chosen: list[Place], queue: str, now: float, surprising: bool) -> Iterator[None]:
        """Those chosen come into the window, oldest first."""
        if not chosen:
            return
        self._after[queue] = chosen[-1]
        arrivals: list[Arrival] = []
        for count, (_, name) in enumerate(chosen):
            if count % _NAMES_BETWEEN_CLOCKS == 0:
                yield
            if name not in self._waiting.files:
                self._look_at(name, now, arrivals)
        if surprising:
            told_by_now = time.time_ns() - int(UNDER_WAY_S * 1e9)
            self.unannounced += sum(arrival.fingerprint.ctime_ns < told_by_now for arrival in arrivals)
        arrivals.sort(key=lambda arrival: arrival.order)
        for arrival in arrivals:
            if arrival.name not in self._waiting.files:
                self._waiting.add(arrival, now)

    def _look_at(self, name: str, now: float, arrivals: list[Arrival] | None = None) -> None:
        """A new arrival is put into ``arrivals``, or at once into the window; an oddity is reported."""
        found = look_at(name, f"{self.spool.inbox}/{name}")
        if isinstance(found, Oddity):
            self._report(name, found.why)
        elif found is not None:
            if arrivals is None:
                self._waiting.add(found, now)
            else:
                arrivals.append(found)

    def _look_where_hinted(self, path: str, now: float) -> None:
        """One file may have arrived: nothing else need be looked at."""
        inbox = f"{self.spool.inbox}/"
        name = path.removeprefix(inbox)
        folders = name.count("/")
        if folders and name != path:
            name = owner(str(self.spool.inbox), name) or name
        if name == path or folders > MAX_FOLDER_DEPTH:
            self._hinted = True
        elif (candidate := self._waiting.files.get(name)) is not None:
            self._waiting.changed(candidate, now)
        elif not any(map(is_temporary, name.split("/"))):
            if self._shares.take(self._waiting.order.queue_of(name)):
                self._look_at(name, now)
            else:
                self._hinted = True

    def _make_room(self) -> None:
        """What cannot be read goes to the end of the round, that others come into the window."""
        for name in [name for name, candidate in self._waiting.files.items() if candidate.state is Is.UNREADABLE]:
            self._waiting.forget(name)

    def _is_left(self, name: str) -> bool:
        """Whether what was said of it still holds."""
        candidate = self._waiting.files.get(name)
        return candidate is None or candidate.state in (Is.UNREADABLE, Is.NEW)

    def _report(self, name: str, why: str) -> None:
        """Once, for as long as the same is to be said of it."""
        said = self._reported.get(name)
        if said is None and len(self._reported) >= MOST_REPORTED:
            return
        self._reported[name] = (why, self._waiting.scans)
        self.left[name] = why
        if said is None or said[0] != why:
            self.report(name, why)

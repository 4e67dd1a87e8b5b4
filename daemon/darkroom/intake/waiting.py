"""The files of the inbox that are kept in order, and which of them are pictures of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from darkroom.intake.beside import Beside
from darkroom.intake.candidate import Candidate, Is
from darkroom.intake.order import Order
from darkroom.spool import Arrival, Oddity, fingerprint, look_at


class Waiting:
    """Candidates by name. ``new`` are those that nobody has looked into yet."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.files: dict[str, Candidate] = {}
        self.new: deque[Candidate] = deque()
        self.beside = Beside()
        self.stirred: dict[str, float] = {}
        """When something was last seen to come or change in a folder of the inbox."""
        self.scans = 0
        """How many scans were begun: the number of the one that is on."""
        self._clock = clock
        self.arrange()

    def arrange(self, *, fair: bool = False, affinity_max_wait_s: float = 0.0) -> None:
        """In which order they have their turns, those that wait already included."""
        self.order: Order[Candidate] = Order(
            self.has, fair=fair, affinity_max_wait_s=affinity_max_wait_s, clock=self._clock
        )
        for candidate in self.files.values():
            self.queue(candidate)
            self.order.looked_into(candidate)

    def __len__(self) -> int:
        return len(self.files)

    def has(self, candidate: Candidate) -> bool:
        """Whether it waits still, and is no other of the same name."""
        return self.files.get(candidate.name) is candidate

    def add(self, arrival: Arrival, now: float) -> None:
        """One that was not known, or is another than it was."""
        folder = arrival.name.rpartition("/")[0]
        if folder:
            self.stirred[folder] = now
        candidate = Candidate(arrival, now, self.scans)
        self.files[arrival.name] = candidate
        self.queue(candidate)
        self.new.append(candidate)

    def queue(self, candidate: Candidate) -> None:
        """Its turn will come."""
        self.order.push(candidate)

    def still_new(self) -> Iterator[Candidate]:
        """Those that nobody has looked into yet, each once."""
        while self.new:
            candidate = self.new.popleft()
            if self.has(candidate) and candidate.state is Is.NEW:
                yield candidate

    def forget(self, name: str) -> None:
        """A file is gone, or its turn has come."""
        self.files.pop(name, None)
        self.free_pictures_of(name)

    def keep_beside(self, candidate: Candidate, pictures: tuple[str, ...]) -> None:
        """A job begins with these pictures of the inbox: they are none themselves."""
        self.beside.note(candidate.name, pictures)
        for name in pictures:
            picture = self.files.get(name)
            if picture is not None and picture is not candidate:
                picture.state = Is.BESIDE
                self.free_pictures_of(name)

    def free_pictures_of(self, name: str) -> None:
        """A picture that this job alone named is a file like any other again."""
        for picture in self.beside.forget(name):
            candidate = self.files.get(picture)
            if candidate is not None and candidate.state is Is.BESIDE:
                candidate.state = Is.NEW
                candidate.since = self._clock()
                self.new.append(candidate)
                self.queue(candidate)

    def changed(self, candidate: Candidate, now: float) -> bool:
        """Whether the file is gone, or another than it was: then it stands in the order anew."""
        old = candidate.arrival
        found: Arrival | Oddity | None
        if old.whole_folder:
            found = look_at(old.name, old.path)
        else:
            there = fingerprint(old.path)
            if there == old.fingerprint:
                return False
            found = None if there is None else old._replace(fingerprint=there)
        if found == old:
            return False
        self.forget(old.name)
        if isinstance(found, Arrival):
            self.add(found, now)
        return True

    def end_scan(self, settled: float) -> None:
        """Forget what the scan that ends has not seen, and of folders what was before ``settled``."""
        for gone in [name for name, candidate in self.files.items() if candidate.scan < self.scans]:
            self.forget(gone)
        self.stirred = {folder: at for folder, at in self.stirred.items() if at > settled}

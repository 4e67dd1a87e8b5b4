"""Who is next: names with ``!`` first, then folders in turn or all as one, the oldest first in each.

Where a model is loaded, a job for it may go before older ones of the same folder that need another. A job that was
overtaken so is overtaken no more ``affinity_max_wait_s`` after the first time.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from darkroom.spool import Arrival, is_urgent

MOST_FOLDERS = 200
"""So many folders have turns of their own; the files of others are in the queue of those in no folder."""

URGENT = "!/"
"""The queue of names with ``!``, wherever they lie. No folder's name has a slash in it."""

Key = tuple[bool, int, str]


class Waiting(Protocol):
    """A file that waits."""

    arrival: Arrival
    queue: str
    """Set when it is first put in order."""
    model: str | None
    """Which it needs; None as long as nobody has looked."""


W = TypeVar("W", bound=Waiting)
_Heap = list[tuple[Key, int, W]]


@dataclass
class _Queue(Generic[W]):
    """The files of one folder."""

    turn: int
    """When it is next served: the queue with the lowest is."""
    heap: _Heap[W] = field(default_factory=list)
    by_model: dict[str, _Heap[W]] = field(default_factory=dict)
    overtakings: list[tuple[Key, float]] = field(default_factory=list)
    """Which file overtook others, and when: only those that stood behind all before them, so both ascend."""


class Order(Generic[W]):
    """``first`` says whose turn it is; ``choose``, who may go instead; ``took``, who went.

    ``is_here`` tells whether a file still waits: others are dropped when their turn comes.
    """

    def __init__(
        self,
        is_here: Callable[[W], bool],
        *,
        fair: bool = False,
        affinity_max_wait_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fair = fair
        self._affinity_s = affinity_max_wait_s
        self._is_here = is_here
        self._clock = clock
        self._queues: dict[str, _Queue[W]] = {}
        self._folders: set[str] = set()
        """Those that have turns of their own."""
        self._turns: list[tuple[int, int, str]] = []
        """Turns, and which queue has each; of those that have the same, the one that has waited longer goes first."""
        self._turn = 0
        self._served: dict[str, int] = {}
        """Of queues that are empty: their next turn, were they not."""
        self._numbers = itertools.count()

    def queue_of(self, name: str) -> str:
        """In which queue a file of that name stands."""
        if is_urgent(name):
            return URGENT
        if not self.fair or "/" not in name:
            return ""
        folder = name.partition("/")[0]
        if folder not in self._folders:
            if len(self._folders) >= MOST_FOLDERS:
                return ""
            self._folders.add(folder)
        return folder

    def queues(self) -> set[str]:
        """Those in which files wait, as far as is known. Folders without files give their turns back."""
        self._folders = set(self._queues) - {"", URGENT}
        return set(self._queues)

    def length(self, queue: str) -> int:
        """How many stand there, at most."""
        return len(self._queues[queue].heap) if queue in self._queues else 0

    def push(self, file: W) -> None:
        """One more that waits."""
        file.queue = name = self.queue_of(file.arrival.name)
        queue = self._queues.get(name)
        if queue is None:
            # One that comes anew is served in this round, not for the rounds that it was not here.
            turn = max(self._turn, self._served.pop(name, 0))
            queue = self._queues[name] = _Queue(turn)
            if name != URGENT:
                heapq.heappush(self._turns, (turn, next(self._numbers), name))
        heapq.heappush(queue.heap, (file.arrival.order, next(self._numbers), file))

    def looked_into(self, file: W) -> None:
        """Its ``model`` is known now."""
        if self._affinity_s > 0 and file.model is not None and file.queue != URGENT and file.queue in self._queues:
            heap = self._queues[file.queue].by_model.setdefault(file.model, [])
            heapq.heappush(heap, (file.arrival.order, next(self._numbers), file))

    def first(self) -> W | None:
        """Whose turn it is."""
        urgent = self._queues.get(URGENT)
        if urgent is not None:
            file = self._head(urgent.heap)
            if file is not None:
                return file
            del self._queues[URGENT]
        while self._turns:
            turn, _, name = self._turns[0]
            queue = self._queues.get(name)
            if queue is not None and queue.turn == turn:
                file = self._head(queue.heap)
                if file is not None:
                    return file
                del self._queues[name]
                self._remember(name, turn)
            heapq.heappop(self._turns)
        return None

    def upcoming(self) -> Iterator[W]:
        """Those that wait, in the order of their turns as it is now, models aside. Nothing must change meanwhile."""
        if (urgent := self._queues.get(URGENT)) is not None:
            yield from self._in_order(urgent.heap)
        rounds = [
            (turn, number, self._in_order(self._queues[name].heap))
            for turn, number, name in self._turns
            if name in self._queues and self._queues[name].turn == turn
        ]
        heapq.heapify(rounds)
        numbers = itertools.count(1 + max((number for _, number, _ in rounds), default=0))
        while rounds:
            turn, _, files = heapq.heappop(rounds)
            if (file := next(files, None)) is not None:
                yield file
                heapq.heappush(rounds, (turn + 1, next(numbers), files))

    def choose(self, first: W, loaded: str | None) -> W:
        """Who goes: the one whose turn it is, or one for the loaded model that may go before it."""
        if self._affinity_s <= 0 or loaded is None or first.queue == URGENT or first.model == loaded:
            return first
        queue = self._queues[first.queue]
        candidates = queue.by_model.get(loaded)
        other = self._head(candidates) if candidates else None
        if other is None:
            queue.by_model.pop(loaded, None)
            return first
        return first if self._is_overdue(queue, first.arrival.order) else other

    def took(self, file: W) -> None:
        """It went: the next folder has its turn."""
        queue = self._queues[file.queue]
        head = self._head(queue.heap)
        key = file.arrival.order
        if head is file:
            heapq.heappop(queue.heap)
        elif head is not None and (not queue.overtakings or key > queue.overtakings[-1][0]):
            queue.overtakings.append((key, self._clock()))
        if file.queue != URGENT:
            self._turn = queue.turn
            queue.turn += 1
            heapq.heappush(self._turns, (queue.turn, next(self._numbers), file.queue))

    def drop(self, file: W) -> None:
        """It is the first, and cannot go now."""
        heapq.heappop(self._queues[file.queue].heap)

    def _in_order(self, heap: _Heap[W]) -> Iterator[W]:
        """The files of a heap that still wait, lowest first; the heap stays as it is."""
        frontier = [(heap[0], 0)] if heap else []
        while frontier:
            (_, _, file), place = heapq.heappop(frontier)
            if self._is_here(file):
                yield file
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heapq.heappush(frontier, (heap[child], child))

    def _head(self, heap: _Heap[W]) -> W | None:
        while heap:
            if self._is_here(heap[0][2]):
                return heap[0][2]
            heapq.heappop(heap)
        return None

    def _is_overdue(self, queue: _Queue[W], key: Key) -> bool:
        """Whether the first of a queue, and so all that were overtaken with it, has waited long enough."""
        past = bisect.bisect_right(queue.overtakings, key, key=lambda overtaking: overtaking[0])
        del queue.overtakings[:past]  # nobody is left whom those overtook
        return bool(queue.overtakings) and self._clock() - queue.overtakings[0][1] >= self._affinity_s

    def _remember(self, name: str, turn: int) -> None:
        self._served[name] = turn
        if len(self._served) > 2 * MOST_FOLDERS:
            self._served = {name: turn for name, turn in self._served.items() if turn > self._turn}

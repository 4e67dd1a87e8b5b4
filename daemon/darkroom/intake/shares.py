"""How the window is shared: where more files wait than are kept in order, each queue has its part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from darkroom.intake.order import URGENT
from darkroom.intake.waiting import Waiting

LEAST_SHARE = 100
"""How many files of each folder are kept in order where folders take turns, however many folders there are."""


@dataclass
class Shares:
    """``window`` files are kept in order, and urgent ones apart from them."""

    waiting: Waiting
    window: int
    unfinished: Callable[[], int]
    """How many of those that wait are not whole."""

    queues: int = 1
    """How many queues the last scan found, that of the urgent ones aside."""
    beyond: int = 0
    """How many files the last scan found beyond the window."""
    queues_beyond: frozenset[str] = frozenset()
    """In which queues."""

    def kept(self) -> Counter[str]:
        """How many files of each queue are kept in order."""
        return Counter(candidate.queue for candidate in self.waiting.files.values())

    def room(self, queue: str, kept: Counter[str]) -> int:
        """How many more files the window takes. Unfinished ones keep others out only when they are a window full."""
        share = self._share(queue)
        slack = 0 if queue == URGENT else min(self.unfinished(), share)
        return max(0, share - kept[queue] + slack)

    def take(self, queue: str) -> bool:
        """Whether the window takes a file by itself, without a choice among those beyond it."""
        order = self.waiting.order
        if queue == URGENT or order.fair:
            return (
                queue not in self.queues_beyond
                and order.length(queue) < self._share(queue)
                and len(self.waiting) < 2 * self.window
            )
        return not self.beyond and len(self.waiting) < self.window

    def among(self, queues: set[str]) -> None:
        """A scan found files in these queues."""
        self.queues = max(1, len(queues - {URGENT}))

    def leave_out(self, beyond: dict[str, int]) -> None:
        """So many files of each queue are not kept in order."""
        self.beyond = sum(beyond.values())
        self.queues_beyond = frozenset(queue for queue, count in beyond.items() if count)

    def _share(self, queue: str) -> int:
        """How many files of a queue are kept in order: each has its part of the window, urgent files have one whole."""
        return self.window if queue == URGENT else max(min(LEAST_SHARE, self.window), self.window // self.queues)

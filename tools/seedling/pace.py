"""A training's wall-clock budget: how far it is, the learning rate that follows, checkpoints to resume from."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch


class Pace:
    """Counts the seconds spent in training, over restarts, against a budget."""

    def __init__(self, minutes: float, spent_seconds: float = 0.0) -> None:
        self.budget = minutes * 60.0
        self._before = spent_seconds
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        return self._before + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """0 at the beginning, 1 when the budget is spent."""
        return min(self.spent / self.budget, 1.0) if self.budget > 0 else 1.0

    @property
    def over(self) -> bool:
        return self.progress >= 1.0


def held_then_linear(progress: float, hold: float) -> float:
    """1 until ``hold`` of the time, then straight down to 0."""
    return 1.0 if progress < hold else max((1.0 - progress) / (1.0 - hold), 0.0)


class Threads:
    """Chooses how many CPU threads a step uses by timing both ways now and then.

    Two threads are faster alone on the machine, and far slower than one where another process wants the
    second core: every parallel loop then waits for it.
    """

    _SECONDS_BETWEEN_TRIALS = (20.0, 120.0)  # doubled from the first to the second while trials change nothing
    _STEPS_OF_A_TRIAL = 2
    _HOPELESS = 1.25  # a trial whose first step takes so many times the best is given up

    def __init__(self) -> None:
        self._most = torch.get_num_threads()
        self._choices = self._choose()
        next(self._choices)
        self._last = time.monotonic()

    def stepped(self) -> None:
        """Call after every step."""
        now = time.monotonic()
        threads = self._choices.send(now - self._last)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        self._last = time.monotonic()

    def _choose(self) -> Generator[int, float, None]:
        """Takes the seconds of each step, gives the threads for the next."""
        best = 1
        shortest, longest = self._SECONDS_BETWEEN_TRIALS
        pause = shortest
        while True:
            fastest: dict[int, float] = {}
            for threads in sorted({1, self._most}, key=lambda threads: threads != best):
                fastest[threads] = yield from self._try(threads, min(fastest.values(), default=math.inf))
            before, best = best, min(fastest, key=lambda threads: fastest[threads])
            pause = min(2 * pause, longest) if best == before else shortest
            until = time.monotonic() + pause
            while time.monotonic() < until:
                yield best

    def _try(self, threads: int, to_beat: float) -> Generator[int, float, float]:
        """The seconds of the fastest of a few steps."""
        first = yield threads
        if first > self._HOPELESS * to_beat:
            return first
        fastest = math.inf  # the first step after a change is slow: it does not count
        for _ in range(self._STEPS_OF_A_TRIAL):
            fastest = min(fastest, (yield threads))
        return fastest


class Every:
    """True at most once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)  # noqa: PTH105 - the point is the atomic replace


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

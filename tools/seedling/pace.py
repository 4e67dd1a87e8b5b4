"""A training's wall-clock budget: how far it is, the learning rate that follows, checkpoints to resume from."""

from __future__ import annotations

import os
import time
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

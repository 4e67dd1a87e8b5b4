"""How fast a job goes, and how long it will take yet."""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.events import Step


@dataclass
class Pace:
    """Told of each step, and when it was done, in seconds of any clock."""

    _began: tuple[float, int] | None = None
    """When the first step of the batch under way was done, and which it was."""
    _now: float = 0.0
    _step: Step | None = None
    _first: float | None = None
    """When the first step of all was done."""
    _done: int = 0
    """Steps since then, those of each picture counted by themselves: what lies between two batches is in the pace."""

    def stepped(self, step: Step, now: float) -> None:
        """A step is done."""
        last = self._step
        if last is None or self._first is None:
            self._first = now
        else:
            same = step.first == last.first and step.step >= last.step
            self._done += step.batch * (step.step - last.step if same else step.step)
        if self._began is None or last is None or step.first != last.first or step.step < last.step:
            self._began = (now, step.step)
        self._now, self._step = now, step

    def steps_per_s(self) -> float | None:
        """Of the batch under way; None before its second step."""
        if self._step is None or self._began is None:
            return None
        began, first = self._began
        return _rounded(self._step.step - first, self._now - began)

    def seconds_left(self, pictures: int) -> float | None:
        """With so many pictures unfinished, those under way included; None as long as it cannot be told."""
        if self._step is None or self._first is None or not self._done:
            return None
        under_way = min(self._step.batch, pictures) * self._step.step
        left = max(0, pictures * self._step.steps - under_way)
        return round(left * (self._now - self._first) / self._done, 1)


def _rounded(steps: int, seconds: float) -> float | None:
    return round(steps / seconds, 2) if steps > 0 and seconds > 0 else None

"""A call that blocks, made to stop at each of its steps: it runs in a thread of its own, which waits in between.

Both threads never run at once, so that whoever takes the steps may do with the work's things whatever a loop might.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class _Abandoned(BaseException):
    """Unwinds the call where nobody wants its next step any more."""


class Stepwise(Generic[T]):
    """``work`` is given a function to call after each step. A context manager: leaving it ends the call where it is."""

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        self._work = work
        self._stopped: SimpleQueue[bool] = SimpleQueue()
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._results: list[T] = []
        self._errors: list[BaseException] = []
        self._over = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wanted.put(False)
        self._thread.join()
        self._errors.clear()  # a traceback holds what the work held

    def advance(self) -> bool:
        """Go on to the end of the next step; False where there was none any more. Raises what the work raises."""
        if not self._over:
            self._wanted.put(True)
            self._over = self._stopped.get()
        if self._errors:
            raise self._errors.pop()
        return not self._over

    def result(self) -> T:
        """Go on to the end, and return what the work does."""
        while self.advance():
            continue
        return self._results[0]

    def _run(self) -> None:
        try:
            self._wait()
            self._results.append(self._work(self._step_done))
        except _Abandoned:
            return
        except BaseException as error:
            self._errors.append(error)
        self._stopped.put(True)

    def _step_done(self) -> None:
        self._stopped.put(False)
        self._wait()

    def _wait(self) -> None:
        if not self._wanted.get():
            raise _Abandoned

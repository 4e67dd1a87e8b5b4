"""Pictures on their way to their files: made by a thread beside the GPU's work, or at once where there is no GPU.

numpy, zlib and Pillow let others run in their long parts. On a CPU the sampling has its cores already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from darkroom.events import Picture


class Saving:
    """One job's, in the order in which they came. A context manager: leaving it waits for the one that is being made.

    What making one raises is raised where it would have been handed out.
    """

    def __init__(self, *, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "saving") if beside else None
        self._begun: dict[int, Future[Picture] | Picture] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._begun.clear()

    def __contains__(self, index: int) -> bool:
        """Whether that picture is on its way."""
        return index in self._begun

    def begin(self, index: int, make: Callable[[], Picture]) -> None:
        """A picture has its pixels, and ``make`` makes the file of them."""
        if self._thread is not None:
            self._begun[index] = self._thread.submit(make)
        else:
            self._begun[index] = make()

    def made(self, *, wait: bool = False) -> Iterator[Picture]:
        """Those that are made by now; with ``wait`` all of them."""
        while self._begun:
            index, first = next(iter(self._begun.items()))
            if isinstance(first, Future) and not (wait or first.done()):
                return
            del self._begun[index]
            yield first.result() if isinstance(first, Future) else first

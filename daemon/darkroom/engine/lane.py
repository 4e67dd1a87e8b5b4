"""Where a CPU's work is done: in the caller's thread until memory runs out in it, then in another.

A thread in which oneDNN once had no memory for a kernel's code compiles no kernel any more, however much there is
later: "could not create a primitive" for every size that is new. The error is kept by thread, so another one is free
of it.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

from darkroom.events import Event


class Lane:
    """A process's: whoever left a thread never goes back to it."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def along(self, events: Generator[Event]) -> Generator[Event]:
        """The same events, each made in the thread that is used now. Raises what making them does."""
        if self._thread is None:
            yield from events
            return
        with closing(events):
            while (event := self._thread.submit(next, events, None).result()) is not None:
                yield event

    def change(self) -> None:
        """Memory ran out: go on in a thread that has not seen it."""
        if self._thread is not None:
            self._thread.shutdown()
        self._thread = ThreadPoolExecutor(1, "lane")
        with suppress(RuntimeError):  # no memory for it even: whoever needs it will hear of that
            self._thread.submit(int).result()

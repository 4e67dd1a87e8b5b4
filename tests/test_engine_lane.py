"""The thread that a CPU's work is done in, and the other one once memory ran out in it."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from darkroom.engine.lane import Lane
from darkroom.events import Alive, Event


class Making:
    """A job's work, which keeps where it was done; fails in the end if it is to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.threads: list[int] = []
        self.closed = False

    def events(self) -> Generator[Event]:
        try:
            for _ in range(2):
                self.threads.append(threading.get_ident())
                yield Alive()
            if self.fails:
                raise MemoryError("no room")
        finally:
            self.closed = True


def test_at_first_it_is_the_callers_thread_and_after_each_want_of_memory_another_one() -> None:
    lane, makings = Lane(), [Making() for _ in range(3)]
    for making in makings:
        assert list(lane.along(making.events())) == [Alive(), Alive()]
        assert len(set(making.threads)) == 1
        assert making.closed
        lane.change()
    assert makings[0].threads[0] == threading.get_ident()
    assert threading.get_ident() not in (makings[1].threads[0], makings[2].threads[0])


@pytest.mark.parametrize("changed", [False, True])
def test_what_goes_wrong_is_raised_and_what_is_not_listened_to_any_more_is_closed(changed: bool) -> None:
    lane = Lane()
    if changed:
        lane.change()
    failing, left = Making(fails=True), Making()
    with pytest.raises(MemoryError, match="no room"):
        list(lane.along(failing.events()))
    events = lane.along(left.events())
    next(events)
    events.close()
    assert left.closed


def test_a_thread_that_was_left_is_gone() -> None:
    lane = Lane()
    before = threading.active_count()
    for _ in range(5):
        lane.change()
    assert threading.active_count() <= before + 1

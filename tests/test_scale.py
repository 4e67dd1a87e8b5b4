"""Many files at once: all seen, in order up to the window, by windows beyond it, nothing starving (faults 2, 9, 10)."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.intake import Guard
from darkroom.intake.intake import WINDOW
from darkroom.intake.window import START, Choice
from test_intake import Desk

WHOLE = b'{"prompt": "x"}'
HALF = b'{"prompt": "x'
NEVER = b'{"promt": "x"}'


def drop(darkroom: Darkroom, names: list[str], content: bytes = WHOLE) -> list[Path]:
    return [darkroom.drop(name, content) for name in names]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:05}.json" for number in range(count)]


def by_arrival(inbox: Path) -> list[str]:
    waiting = [(path.lstat().st_ctime_ns, str(path.relative_to(inbox))) for path in inbox.rglob("*.json")]
    return [name for _, name in sorted(waiting)]


def take(darkroom: Darkroom, desk: Desk) -> str | None:
    """One file, out of the inbox, as the daemon takes it."""
    desk.clock.now += 1
    desk.intake.look()
    list(desk.intake.refused(1.0))
    arrival = desk.intake.take()
    if arrival is None:
        return None
    Path(arrival.path).unlink()
    return arrival.name


def test_20000_files_dropped_at_once_are_taken_strictly_in_the_order_of_their_arrival(darkroom: Darkroom) -> None:
    names = numbered("job-", WINDOW)
    random.Random(0).shuffle(names)
    drop(darkroom, names)
    desk = Desk(darkroom)
    assert desk.after(0).intake.waiting == WINDOW
    assert desk.taken() == by_arrival(darkroom.inbox)


def test_what_is_dropped_while_the_daemon_watches_is_all_found(darkroom: Darkroom) -> None:
    """Fault 41."""
    desk = Desk(darkroom)
    desk.after(0)
    guard = Guard(desk.spool, darkroom.log, desk.intake.hint)
    guard.start()
    names = numbered("job-", 3000)
    found: list[str] = []
    try:
        for begin in range(0, len(names), 500):
            drop(darkroom, names[begin : begin + 500])
            desk.clock.now += 0.01
            desk.intake.look()
            found += desk.taken()
        until = time.monotonic() + 60
        while len(found) < len(names) and time.monotonic() < until:
            time.sleep(0.01)
            desk.clock.now += 0.01
            desk.intake.look()
            found += desk.taken()
    finally:
        guard.stop()
    assert sorted(set(found)) == names


def test_beyond_the_window_every_file_is_taken_once(darkroom: Darkroom) -> None:
    names = numbered("a", 60) + numbered("team/b", 60) + numbered("team/deep/c", 60)
    drop(darkroom, names)
    desk = Desk(darkroom, window=20)
    desk.after(0)
    taken = []
    while (name := take(darkroom, desk)) is not None:
        taken.append(name)
        assert desk.intake.kept <= 20
    assert sorted(taken) == sorted(names)
    assert desk.intake.idle


def test_a_window_that_is_worked_off_is_filled_again_at_once(darkroom: Darkroom) -> None:
    names = numbered("a", 100)
    drop(darkroom, names)
    desk = Desk(darkroom, window=20)
    taken = []
    for _ in names:
        desk.intake.look()
        arrival = desk.intake.take()
        assert arrival is not None
        Path(arrival.path).unlink()
        taken.append(arrival.name)
    assert sorted(taken) == names


def test_what_waits_is_counted_beyond_the_window(darkroom: Darkroom) -> None:
    drop(darkroom, numbered("a", 50))
    assert Desk(darkroom, window=20).after(0).intake.waiting == 50


@pytest.mark.parametrize("heard_of", [True, False])
def test_an_urgent_file_is_next_however_many_wait(darkroom: Darkroom, heard_of: bool) -> None:
    drop(darkroom, numbered("a", 200))
    desk = Desk(darkroom, window=10)
    desk.after(0)
    assert take(darkroom, desk) is not None
    (path,) = drop(darkroom, ["team/!now.json"])
    if heard_of:
        desk.intake.hint(str(path))
        desk.intake.look()
    else:
        desk.after(10)
    arrival = desk.intake.take()
    assert arrival is not None
    assert arrival.name == "team/!now.json"


def test_urgent_files_beyond_the_window_go_before_the_others(darkroom: Darkroom) -> None:
    drop(darkroom, numbered("a", 100))
    urgent = numbered("!", 35)
    drop(darkroom, urgent)
    desk = Desk(darkroom, window=10)
    desk.after(0)
    taken = [take(darkroom, desk) for _ in urgent]
    assert sorted(str(name) for name in taken) == urgent


def test_old_files_are_not_starved_by_new_ones(darkroom: Darkroom) -> None:
    old = numbered("old", 60)
    drop(darkroom, old)
    desk = Desk(darkroom, window=10)
    desk.after(0)
    taken = []
    for number in range(400):
        taken.append(take(darkroom, desk))
        drop(darkroom, [f"new{number:05}.json"])
        desk.after(10)
    assert set(old) <= set(taken)


@pytest.mark.parametrize(("content", "kind"), [(HALF, "unfinished"), (NEVER, "hopeless"), (b"secret", "unreadable")])
def test_a_window_full_of_files_that_cannot_run_does_not_keep_the_others_out(
    darkroom: Darkroom, content: bytes, kind: str
) -> None:
    drop(darkroom, numbered(kind, 20 if kind == "unfinished" else 50), content)
    good = numbered("good", 25)
    drop(darkroom, good)
    desk = Desk(darkroom, window=20, settle_s=1e9)
    desk.unreadable = b"secret"
    taken = []
    for _ in range(400):
        desk.clock.now += 5
        taken.append(take(darkroom, desk))
    assert sorted(name for name in taken if name is not None) == good
    assert desk.intake.kept <= 60


def test_an_inbox_of_what_cannot_be_read_comes_to_rest(darkroom: Darkroom) -> None:
    drop(darkroom, numbered("a", 50), b"secret")
    desk = Desk(darkroom, window=20)
    desk.unreadable = b"secret"
    for _ in range(20):
        assert take(darkroom, desk) is None
        desk.after(10)
    desk.refused()
    assert desk.intake.idle
    assert len(desk.left) == 50
    assert len({name for name, _ in desk.left}) == 50


def test_a_long_scan_is_done_in_slices_and_nothing_is_taken_before_its_end(darkroom: Darkroom) -> None:
    drop(darkroom, [*numbered("z", 2000), "a.json"])
    desk = Desk(darkroom)
    walk = desk.spool.walk

    def slow() -> object:
        for found in walk():
            desk.clock.now += 0.001
            yield found

    desk.spool.walk = slow  # type: ignore[method-assign, assignment]
    desk.intake.hint(str(darkroom.drop("late.json", WHOLE)))
    looks = 0
    while (arrival := desk.intake.take()) is None:
        assert not desk.intake.idle
        assert desk.intake.wait_s() == 0
        before = desk.clock.now
        desk.intake.look()
        assert desk.clock.now - before <= 0.25
        looks += 1
    assert looks >= 5
    assert arrival.name == "z00000.json"


def test_a_choice_goes_round_and_leaves_nobody_out() -> None:
    waiting = {(inode, f"{inode}.json") for inode in range(100)}
    after = START
    rounds = 0
    while waiting:
        choice = Choice(7, after)
        for inode, name in sorted(waiting, reverse=True):
            choice.offer(inode, name)
        chosen = choice.chosen()
        assert 0 < len(chosen) <= 7
        assert chosen == sorted(chosen)
        waiting -= set(chosen)
        after = chosen[-1]
        rounds += 1
    assert rounds == 15


def test_a_million_names_cost_no_memory() -> None:
    choice = Choice(500, (50_000, ""))
    tracemalloc.start()
    try:
        for inode in range(200_000, 0, -1):
            choice.offer(inode, "x.json")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert [inode for inode, _ in choice.chosen()] == list(range(50_000, 50_500))
    assert choice.offered == 200_000

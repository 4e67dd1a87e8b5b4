"""When a file counts as arrived: half-written, replaced, unreadable, hopeless (faults 1–8, 11, 12, 31, 34, 47)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.errors import InvalidRequest
from darkroom.intake import Intake, Needs
from darkroom.intake.intake import UNDER_WAY_S, WINDOW
from darkroom.intake.mounts import file_system_of
from darkroom.job import parse
from darkroom.spool import Spool

Judge = Callable[[str, bytes | None], Needs | None]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """An intake with a clock of its own."""

    def __init__(
        self, darkroom: Darkroom, window: int = WINDOW, settle_s: float = 10, judge: Judge | None = None
    ) -> None:
        self.spool: Spool = darkroom.spool()
        self.spool.open()
        self.clock = Clock()
        self.unreadable: bytes | None = None
        self.left: list[tuple[str, str]] = []
        self.intake = Intake(
            self.spool,
            judge=judge or self.judge,
            report=lambda name, why: self.left.append((name, why)),
            settle_s=settle_s,
            rescan_s=5,
            clock=self.clock,
            window=window,
        )

    def judge(self, name: str, data: bytes | None) -> Needs | None:
        """A job by its JSON alone, or by its name a list; needs nothing else."""
        if data is None:
            raise InvalidRequest("too large")
        if self.unreadable and self.unreadable in data:
            raise PermissionError(errno.EACCES, "Permission denied")
        parse(data)
        return Needs((), arrived=True, is_list=True) if name.startswith("list") else None

    def after(self, seconds: float) -> Desk:
        self.clock.now += seconds
        self.intake.hint()
        self.intake.look()
        return self

    def taken(self) -> list[str]:
        names = []
        while (arrival := self.intake.take()) is not None:
            names.append(arrival.name)
        return names

    def refused(self, budget_s: float = 1.0) -> list[str]:
        return [arrival.name for arrival in self.intake.refused(budget_s)]


@pytest.fixture
def desk(darkroom: Darkroom) -> Desk:
    return Desk(darkroom)


def test_a_half_written_file_is_left_alone_until_it_parses(darkroom: Darkroom, desk: Desk) -> None:
    path = darkroom.drop("cat.json", '{"prompt": "a red')
    assert desk.after(1).taken() == []
    path.write_text('{"prompt": "a red circle"')
    assert desk.after(9).taken() == []
    path.write_text('{"prompt": "a red circle"}')
    desk.after(9)
    assert desk.after(1).taken() == ["cat.json"]
    assert desk.refused() == []


def test_a_file_that_never_parses_is_refused_after_the_settle_time(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("cat.json", '{"prompt": "a red')
    darkroom.drop("empty.json", b"")
    darkroom.drop("zeros.json", bytes(100))
    assert desk.after(0).refused() == []
    assert desk.after(9).refused() == []
    assert sorted(desk.after(1.5).refused()) == ["cat.json", "empty.json", "zeros.json"]


def test_a_slow_copy_waits_as_long_as_it_changes(darkroom: Darkroom, desk: Desk) -> None:
    path = darkroom.drop("cat.json", '{"prompt": "')
    for _ in range(20):
        with path.open("a") as file:
            file.write("slow ")
        assert desk.after(8).refused() == []
    assert desk.after(10.5).refused() == ["cat.json"]


def test_a_whole_file_that_is_no_job_is_refused_at_once(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("typo.json", {"promt": "a red circle"})
    darkroom.drop("twice.json", '{"prompt": "a", "prompt": "b"}')
    darkroom.drop("list.json", "[1, 2]")
    darkroom.drop("good.json")
    assert sorted(desk.after(0).refused()) == ["list.json", "twice.json", "typo.json"]
    assert desk.taken() == ["good.json"]


def test_what_one_file_took_long_for_does_not_keep_the_next_waiting(darkroom: Darkroom) -> None:
    def judge(name: str, data: bytes | None) -> Needs | None:
        desk.clock.now += 5.0
        return desk.judge(name, data)

    desk = Desk(darkroom, judge=judge)
    darkroom.drop("slow.json")
    assert desk.after(0).refused(0.02) == []
    darkroom.drop("typo.json", {"promt": "a red circle"})
    assert desk.after(1).refused(0.02) == ["typo.json"]


def test_a_list_does_not_wait_for_its_turn_and_what_came_after_it_waits_for_its_jobs(
    darkroom: Darkroom, desk: Desk
) -> None:
    darkroom.drop("list.json")
    time.sleep(0.02)
    darkroom.drop("after.json")
    assert desk.after(0).taken() == []
    assert desk.intake.has_news
    assert desk.refused() == ["list.json"]
    assert desk.taken() == ["after.json"]


def test_a_file_over_the_limit_is_refused_unread(darkroom: Darkroom) -> None:
    darkroom.configure(limits={"max_job_bytes": 100})
    desk = Desk(darkroom)
    darkroom.drop("big.json", {"prompt": "x" * 200})
    assert desk.after(0).refused() == ["big.json"]


def test_urgent_first_then_by_arrival_then_by_name(darkroom: Darkroom, desk: Desk) -> None:
    for name in ("b.json", "a.json", "!late.json"):
        os.utime(darkroom.drop(name), (0, 0))  # copied files carry old times, which must not count
        desk.clock.now += 0.01
    assert desk.after(0).taken() == ["!late.json", "b.json", "a.json"]


def test_the_newest_content_is_what_is_taken(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("cat.json")
    desk.after(0)
    assert desk.refused() == []
    darkroom.drop("cat.json", {"promt": "now it is wrong"})
    assert desk.taken() == []
    assert desk.refused() == ["cat.json"]


def test_a_deleted_file_is_cancelled_quietly(darkroom: Darkroom, desk: Desk) -> None:
    path = darkroom.drop("cat.json")
    desk.after(0)
    path.unlink()
    assert desk.taken() == []
    assert desk.after(1).intake.idle
    assert desk.left == []


def test_a_hopeless_file_that_is_mended_before_its_verdict_runs(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("cat.json", '{"prompt": "a red')
    desk.after(0).refused()
    desk.clock.now += 9.9
    darkroom.drop("cat.json")
    desk.after(1)
    assert desk.refused() == []
    assert desk.after(0).taken() == ["cat.json"]


def test_an_unreadable_file_is_left_and_tried_again(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("cat.json")
    darkroom.drop("dog.json")
    desk.unreadable = b"red circle"  # root, who runs CI, may read every file
    assert desk.after(0).taken() == []
    assert desk.left == [
        (name, "it cannot be read: Permission denied (chmod g+r)") for name in ("cat.json", "dog.json")
    ]
    assert desk.intake.idle
    desk.unreadable = None
    assert desk.after(1).taken() == []
    assert desk.after(6).taken() == ["cat.json", "dog.json"]
    assert len(desk.left) == 2


def test_a_file_that_could_not_be_moved_is_given_again_later_and_told_once(darkroom: Darkroom, desk: Desk) -> None:
    darkroom.drop("cat.json")
    for _ in range(3):
        arrival = desk.after(6).intake.take()
        assert arrival is not None
        desk.intake.give_back(arrival, "it cannot be moved")
        assert desk.after(1).taken() == []
        assert desk.intake.idle
    assert desk.intake.left == {"cat.json": "it cannot be moved"}
    assert desk.left == [("cat.json", "it cannot be moved")]
    assert desk.intake.unannounced == 0
    assert desk.after(6).taken() == ["cat.json"]
    (darkroom.inbox / "cat.json").unlink()
    assert desk.after(6).intake.left == {}


def test_each_oddity_is_reported_once(darkroom: Darkroom, desk: Desk) -> None:
    (darkroom.inbox / "link.json").symlink_to("/etc/passwd")
    for _ in range(3):
        desk.after(6)
    assert [name for name, _ in desk.left] == ["link.json"]
    assert desk.intake.idle


def test_a_folder_moved_in_with_files_inside_is_found(darkroom: Darkroom, desk: Desk, tmp_path: Path) -> None:
    """Fault 46."""
    (tmp_path / "batch" / "deep").mkdir(parents=True)
    (tmp_path / "batch" / "deep" / "cat.json").write_text('{"prompt": "x"}')
    (tmp_path / "batch").rename(darkroom.inbox / "batch")
    assert desk.after(0).taken() == ["batch/deep/cat.json"]


def test_scanning_stays_a_small_part_of_the_time(darkroom: Darkroom, desk: Desk) -> None:
    scans = 0
    walk = desk.spool.walk

    def slow() -> object:
        nonlocal scans
        scans += 1
        desk.clock.now += 0.1
        return walk()

    desk.spool.walk = slow  # type: ignore[method-assign, assignment]
    for _ in range(1000):
        desk.intake.hint()
        desk.intake.look()
        desk.clock.now += 0.01
    assert 1 <= scans <= 4


def test_a_file_that_is_heard_of_is_found_without_a_scan(darkroom: Darkroom, desk: Desk) -> None:
    desk.after(0)
    walk = desk.spool.walk
    desk.spool.walk = lambda: pytest.fail("scanned")  # type: ignore[method-assign]
    desk.intake.hint(str(darkroom.drop("team/cat.json")))
    desk.intake.hint(str(darkroom.drop("typo.json", {"promt": "x"})))
    for ignored in (".team/dog.json", "team/dog.json.part", "notes.md"):
        desk.intake.hint(str(darkroom.drop(ignored)))
    desk.intake.hint(str(darkroom.inbox / "gone.json"))
    desk.intake.look()
    assert desk.taken() == ["team/cat.json"]
    assert desk.refused() == ["typo.json"]
    assert [name for name, _ in desk.left] == ["notes.md"]
    desk.spool.walk = walk  # type: ignore[method-assign]


def test_a_file_that_nobody_told_of_is_found_and_counted(
    darkroom: Darkroom, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    darkroom.drop("there-before.json")
    desk.after(0)
    desk.intake.hint(str(darkroom.drop("told.json")))
    desk.intake.look()
    darkroom.drop("untold.json")
    time.sleep(UNDER_WAY_S + 0.1)
    desk.intake.hint(str(darkroom.drop("told-late.json")))
    arrived_ns = darkroom.drop("under-way.json").stat().st_ctime_ns
    monkeypatch.setattr(time, "time_ns", lambda: arrived_ns + int(UNDER_WAY_S * 5e8))
    desk.clock.now += 100
    desk.intake.look()
    assert desk.intake.unannounced == 1
    assert len(desk.taken()) == 5


def test_what_a_scan_that_was_asked_for_finds_was_told_of(darkroom: Darkroom, desk: Desk) -> None:
    desk.after(0)
    darkroom.drop("in-a-folder-that-was-moved-in/cat.json")
    time.sleep(UNDER_WAY_S + 0.1)
    assert desk.after(100).taken() == ["in-a-folder-that-was-moved-in/cat.json"]
    assert desk.intake.unannounced == 0


def test_a_waiting_file_that_is_changed_goes_to_the_end(darkroom: Darkroom, desk: Desk) -> None:
    for name in ("a.json", "b.json"):
        darkroom.drop(name)
    desk.after(0)
    assert desk.refused() == []
    darkroom.drop("a.json", prompt="another")
    assert desk.taken() == ["b.json", "a.json"]


def test_a_change_that_makes_a_waiting_file_hopeless_is_heard_of_before_its_turn(
    darkroom: Darkroom, desk: Desk
) -> None:
    darkroom.drop("a.json")
    path = darkroom.drop("b.json")
    desk.after(0)
    assert desk.refused() == []
    path.write_text('{"promt": "x"}')
    desk.intake.hint(str(path))
    desk.intake.look()
    assert desk.refused() == ["b.json"]
    assert desk.taken() == ["a.json"]


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:26 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:40 / /mnt/share rw - nfs4 nas:/share rw
32 22 0:41 / /mnt/with\\040space rw shared:1 - fuse.sshfs host: rw
33 31 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/spool", "ext4"),
        ("/dev/shm/x", "tmpfs"),
        ("/mnt/share/inbox", "nfs4"),
        ("/mnt/share/local/inbox", "xfs"),
        ("/mnt/with space/inbox", "fuse.sshfs"),
        ("/mnt/shareholder", "ext4"),
    ],
)
def test_the_file_system_of_a_folder_is_read_from_the_mount_table(folder: str, kind: str) -> None:
    """Fault 43."""
    assert file_system_of(Path(folder), MOUNTS) == kind

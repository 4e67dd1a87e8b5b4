"""health.json: written at once when the state turns, not more than once a second, and as a heartbeat."""

from __future__ import annotations

from pathlib import Path

from darkroom.health import Health, read
from darkroom.spool import Call, Disk


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_news_are_written_soon_and_silence_now_and_then(tmp_path: Path) -> None:
    calls: list[Call] = []
    clock = Clock()
    health = Health(tmp_path, Disk(calls.append), clock)

    def writes(seconds: float) -> int:
        calls.clear()
        clock.now += seconds
        health.write()
        return sum(call.name == "rename" for call in calls)

    assert health.turn("idle")
    assert writes(0) == 1
    assert writes(2) == 0
    assert not health.turn("idle")
    health.update(done=1)
    assert writes(0.1) == 1
    health.update(done=2)
    assert writes(0.5) == 0
    assert writes(0.6) == 1
    assert writes(9.0) == 0
    assert writes(1.5) == 1


def test_what_is_written_can_be_read_and_what_is_broken_is_nothing(tmp_path: Path) -> None:
    health = Health(tmp_path, Disk())
    health.turn("paused", "the disk is full")
    health.write(now=True)
    report = read(tmp_path)
    assert report is not None
    assert (report.state, report.why) == ("paused", "the disk is full")
    (tmp_path / "health.json").write_text('{"state": ')
    assert read(tmp_path) is None
    assert read(tmp_path / "elsewhere") is None


def test_a_disk_that_refuses_is_no_reason_to_stop(tmp_path: Path) -> None:
    Health(tmp_path / "elsewhere", Disk()).write(now=True)

"""health.json: written at once when the state turns, not more than once a second, and as a heartbeat."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from conftest import Darkroom
from darkroom.health import MOST_RECENT, Health, Recent, read
from darkroom.spool import Call, Disk
from test_loop import Running, until


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


def test_a_report_whose_moment_says_nothing_is_no_sign_of_life(tmp_path: Path) -> None:
    health = Health(tmp_path, Disk())
    assert health.report.age_s() < float("inf")
    for moment in ("2026-11-25T09:00:00", "yesterday", ""):
        health.report.updated_at = moment
        assert health.report.age_s() == float("inf")


def test_a_disk_that_refuses_is_no_reason_to_stop(tmp_path: Path) -> None:
    Health(tmp_path / "elsewhere", Disk()).write(now=True)


def recent(name: str, status: Literal["done", "failed", "partial"] = "done") -> Recent:
    return Recent(name=name, status=status, finished_at="2026-01-01T00:00:00.000Z", seconds=1.0, pictures=2)


def test_the_last_verdicts_are_kept_from_one_daemon_to_the_next_and_counters_are_not(tmp_path: Path) -> None:
    first = Health(tmp_path, Disk())
    for number in range(MOST_RECENT):
        first.ended(recent(str(number)))
    first.ended(recent("team/typo", "failed"))
    first.write(now=True)
    report = read(tmp_path)
    assert report is not None
    assert (report.done, report.failed, report.pictures, report.last_job) == (MOST_RECENT, 1, 22, "team/typo")
    second = Health(tmp_path, Disk())
    assert [each.name for each in second.report.recent] == ["team/typo", *map(str, range(9, 0, -1))]
    assert (second.report.done, second.report.last_job) == (0, None)


def test_memory_of_daemon_and_engine_and_the_disk_are_measured(tmp_path: Path) -> None:
    health = Health(tmp_path, Disk())
    with subprocess.Popen(["sleep", "60"]) as engine:
        health.update(engine_pid=engine.pid)
        health.write(now=True)
        engine.kill()
    report = read(tmp_path)
    assert report is not None
    assert report.memory_bytes is not None
    assert report.engine_memory_bytes is not None
    assert report.memory_bytes > 10 << 20 > report.engine_memory_bytes > 1 << 10
    assert report.memory_peak_bytes is not None
    assert report.memory_peak_bytes >= report.memory_bytes
    assert report.total_bytes is not None
    assert 0 < (report.free_bytes or 0) <= report.total_bytes
    health.write(now=True)
    assert read(tmp_path).engine_memory_bytes is None, "it is gone"  # type: ignore[union-attr]


def test_a_report_of_an_older_darkroom_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "health.json").write_text(
        '{"darkroom": "0.0.9", "since": "", "updated_at": "", "pid": 1, "host": "x", "state": "idle", "gone": 3}'
    )
    report = read(tmp_path)
    assert report is not None
    assert (report.state, report.recent, report.age_s()) == ("idle", [], float("inf"))
    assert Health(tmp_path, Disk()).report.recent == []


def test_trouble_is_told_from_a_pause_that_somebody_wanted(darkroom: Darkroom) -> None:
    (darkroom.root / "PAUSE").touch()
    loop = darkroom.loop()
    with Running(loop):
        until(lambda: loop.health.report.state == "paused")
        assert not loop.health.report.trouble
        darkroom.inbox.rename(darkroom.root / "away")
        (darkroom.root / "PAUSE").unlink()
        until(lambda: loop.health.report.trouble)
        (darkroom.root / "away").rename(darkroom.inbox)
        until(lambda: loop.health.report.state == "idle" and not loop.health.report.trouble)

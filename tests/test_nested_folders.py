"""Folders that come with folders in them: watched without a word of Python's warnings in the daemon's log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from darkroom.intake.watch import Watch


@pytest.mark.skipif(sys.platform != "linux", reason="inotify's own trouble")
def test_folders_within_folders_are_come_by_twice_and_nothing_is_said(tmp_path: Path) -> None:
    """Warnings are errors here: one would end the thread that watches."""
    heard: list[str | None] = []
    watch = Watch(tmp_path, heard.append)
    assert watch.start(time.monotonic())
    try:
        for number in range(40):
            deepest = tmp_path / f"{number}" / "a" / "b" / "c"
            deepest.mkdir(parents=True)
            (deepest / "cat.json").write_text("{}")
        (tmp_path / "last.json").write_text("{}")
        end = time.monotonic() + 300
        while str(tmp_path / "last.json") not in heard and watch.alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert watch.alive()
        assert str(tmp_path / "last.json") in heard
    finally:
        watch.stop()

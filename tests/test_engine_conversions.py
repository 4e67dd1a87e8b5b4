"""Converted models on the disk: whole or not there, and not too many."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from darkroom.engine.openvino.conversions import Conversions


def files(**contents: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).write_text(content)

    return make


def test_what_was_added_is_found_and_what_was_not_is_not(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path / "cache")
    assert conversions.find("a") is None and not conversions.has("a")
    folder = conversions.add("a", files(model="weights"))
    assert conversions.has("a")
    assert Conversions(tmp_path / "cache").find("a") == folder
    assert (folder / "model").read_text() == "weights"


@pytest.mark.parametrize("damage", ["changed", "cut short", "lost", "one more", "no seals", "other seals"])
def test_what_is_not_what_was_put_there_is_removed(tmp_path: Path, damage: str) -> None:
    conversions = Conversions(tmp_path)
    folder = conversions.add("a", files(model="weights"))
    match damage:
        case "changed":
            (folder / "model").write_text("weightz")
            os.utime(folder / "model", (1000, 1000))  # else the clock may not have moved
        case "cut short":
            (folder / "model").write_text("weight")
        case "lost":
            (folder / "model").unlink()
        case "one more":
            (folder / "more").write_text("")
        case "no seals":
            (folder / "seals.json").unlink()
        case _:
            (folder / "seals.json").write_text("[1]")
    assert conversions.find("a") is None
    assert not folder.exists()


def test_large_files_are_not_read_each_time_but_where_they_seem_to_be_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversions, read = Conversions(tmp_path), []
    folder = conversions.add("a", files(model="weights"))
    real = hashlib.file_digest

    def counted(*arguments: Any) -> Any:
        read.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert conversions.find("a") == folder and not read
    os.utime(folder / "model", (1000, 1000))  # a copy
    assert conversions.find("a") == folder and len(read) >= 1
    read.clear()
    assert conversions.find("a") == folder and not read


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        Conversions(tmp_path).add("a", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_that_make_the_same_the_first_counts(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path)

    def late(folder: Path) -> None:
        Conversions(tmp_path).add("a", files(model="first"))
        (folder / "model").write_text("second")

    folder = conversions.add("a", late)
    assert (folder / "model").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_least_recently_used_make_room_but_never_the_last(tmp_path: Path) -> None:
    conversions = Conversions(tmp_path, keep_bytes=4000)
    for age, name in enumerate("abc"):
        os.utime(conversions.add(name, files(model="x" * 1000)), (1000 + age, 1000 + age))
    assert conversions.find("a") is not None  # used now, so that b is the oldest
    conversions.add("d", files(model="x" * 1000))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "d"]
    conversions.add("large", files(model="x" * 5000))
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_what_a_dead_process_left_behind_is_removed_after_a_day(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".dead", tmp_path / ".alive"
    for folder in (dead, alive):
        folder.mkdir()
    os.utime(dead, (1000, 1000))
    Conversions(tmp_path).add("a", files(model=""))
    assert not dead.exists() and alive.exists()


def test_one_that_is_killed_while_it_is_made_was_never_there(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from darkroom.engine.openvino.conversions import Conversions

def make(folder):
    (folder / "model").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

Conversions(Path({str(tmp_path)!r})).add("a", make)
"""
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert ran.returncode == -signal.SIGKILL
    conversions = Conversions(tmp_path)
    assert not conversions.has("a") and conversions.find("a") is None
    assert (conversions.add("a", files(model="whole")) / "model").read_text() == "whole"

"""Converted models on the disk: whole or not there, and not too many."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from darkroom.engine.conversions import Conversions


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


@pytest.mark.parametrize("damage", ["changed", "cut short", "lost", "one more", "no digests", "other digests"])
def test_what_is_not_what_was_put_there_is_removed(tmp_path: Path, damage: str) -> None:
    conversions = Conversions(tmp_path)
    folder = conversions.add("a", files(model="weights"))
    match damage:
        case "changed":
            (folder / "model").write_text("weightz")
        case "cut short":
            (folder / "model").write_text("weight")
        case "lost":
            (folder / "model").unlink()
        case "one more":
            (folder / "more").write_text("")
        case "no digests":
            (folder / "digests.json").unlink()
        case _:
            (folder / "digests.json").write_text("[1]")
    assert conversions.find("a") is None
    assert not folder.exists()


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
    conversions = Conversions(tmp_path, keep_bytes=1000)
    for age, name in enumerate("abc"):
        os.utime(conversions.add(name, files(model="x" * 200)), (1000 + age, 1000 + age))
    assert conversions.find("a") is not None  # used now, so that b is the oldest
    conversions.add("d", files(model="x" * 200))
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

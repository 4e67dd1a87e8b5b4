"""The model of a disk forgets what it should, and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from darkroom.spool import Disk
from disk_model import DiskModel, State, digest, read_state, write_state


class Bench:
    """A real folder and its model, which hears of each call."""

    def __init__(self, root: Path, start: State, *, journal: bool = True) -> None:
        write_state(root, start)
        self.root = root
        self.model = DiskModel(root, journal=journal)
        self.model.start_with(start)
        self.disk = Disk(self.model.apply)

    def after_a_cut(self) -> list[State]:
        return list(self.model.states(random.Random(0), 1000, thorough=True))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def test_without_a_cut_the_model_is_what_lies_there(root: Path) -> None:
    bench = Bench(root, {"a": None, "b": None, "a/old": b"1"})
    bench.disk.write(root / "a" / "new", b"22")
    bench.disk.rename(root / "a" / "new", root / "b" / "new")
    bench.disk.link(root / "b" / "new", root / "a" / "second")
    bench.disk.append(root / "a" / "second", b"3")
    bench.disk.unlink(root / "a" / "old")
    bench.disk.unlink(root / "a" / "never there")
    bench.disk.rename(root / "b", root / "c")
    assert bench.model.whole() == read_state(root) == {"a": None, "c": None, "a/second": b"223", "c/new": b"223"}


def test_a_file_whose_folder_was_not_synced_may_be_gone_though_it_was(root: Path) -> None:
    bench = Bench(root, {})
    bench.disk.write(root / "file", b"data")
    assert {} in bench.after_a_cut()
    bench.disk.sync_folder(root)
    assert bench.after_a_cut() == [{"file": b"data"}]


def test_a_file_that_was_not_synced_may_hold_anything_though_its_folder_was(root: Path) -> None:
    bench = Bench(root, {})
    bench.disk.write(root / "file", b"data", sync=False)
    bench.disk.sync_folder(root)
    contents = {state["file"] for state in bench.after_a_cut()}
    assert contents == {b"data", b"", b"\0\0\0\0", b"da"}


def test_what_was_synced_before_an_append_stays(root: Path) -> None:
    bench = Bench(root, {"log": b"one "})
    bench.disk.append(root / "log", b"two ")
    assert {state["log"] for state in bench.after_a_cut()} == {b"one two ", b"one ", b"one \0\0\0\0", b"one tw"}


def test_the_changes_of_one_folder_happen_in_their_order(root: Path) -> None:
    bench = Bench(root, {})
    bench.disk.write(root / "first", b"")
    bench.disk.write(root / "second", b"")
    assert sorted(map(sorted, bench.after_a_cut())) == [[], ["first"], ["first", "second"]]


def test_a_rename_between_folders_is_one_step_where_there_is_a_journal(root: Path) -> None:
    bench = Bench(root, {"a": None, "b": None, "a/file": b"1"})
    bench.disk.rename(root / "a" / "file", root / "b" / "file")
    places = sorted([path for path in state if "/" in path] for state in bench.after_a_cut())
    assert places == [["a/file"], ["b/file"]]
    bench.disk.sync_folder(root / "a")
    assert [sorted(state) for state in bench.after_a_cut()] == [["a", "b", "b/file"]]


def test_and_two_steps_where_there_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"a": None, "b": None, "a/file": b"1"}, journal=False)
    bench.disk.rename(tmp_path / "a" / "file", tmp_path / "b" / "file")
    places = sorted(sorted(path for path in state if "/" in path) for state in bench.after_a_cut())
    assert places == [[], ["a/file"], ["a/file", "b/file"], ["b/file"]]


def test_a_folder_that_was_not_synced_into_its_parent_is_lost_with_all_that_is_in_it(root: Path) -> None:
    bench = Bench(root, {})
    bench.disk.mkdir(root / "a")
    bench.disk.write(root / "a" / "file", b"data")
    bench.disk.sync_folder(root / "a")
    assert sorted(map(sorted, bench.after_a_cut())) == [[], ["a", "a/file"]]


def test_the_same_state_has_the_same_digest() -> None:
    assert digest({"a": None, "b": b"1"}) == digest({"b": b"1", "a": None}) != digest({"a": None, "b": b"2"})

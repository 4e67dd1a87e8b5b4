"""The calls to the disk where the system does less than it was asked for, or nothing."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from darkroom.errors import StorageTrouble
from darkroom.spool import Disk
from darkroom.spool.disk import MOST_HELD

linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def test_half_a_file_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    """At the limit of a file's size the system writes what still fits, says so, and refuses the rest."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as raised:
            Disk().write(tmp_path / "half", bytes(1500))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert (tmp_path / "half").stat().st_size == 1000


def held_open(below: str) -> list[str]:
    """The folders there that this process holds open."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [path for path in (str(link.readlink()) for link in links) if path.startswith(below)]


@linux
@pytest.mark.parametrize("held", [False, True])
def test_a_file_system_that_cannot_sync_a_folder_is_as_durable_as_it_is(held: bool) -> None:
    disk, folder = Disk(), f"/proc/{os.getpid()}/task"
    if held:
        disk.hold(folder)
        assert held_open(folder)
    disk.sync_folder(folder)
    assert not held_open(folder), "what an fsync failed on is not asked again"


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Disk().sync_folder(tmp_path / "gone")


@linux
def test_folders_are_held_open_only_a_few_at_a_time_and_none_in_the_end(tmp_path: Path) -> None:
    disk = Disk()
    for number in range(3 * MOST_HELD):
        (tmp_path / str(number)).mkdir()
        disk.hold(str(tmp_path / str(number)))
        disk.hold(str(tmp_path / "0"))
    assert len(held_open(str(tmp_path))) == MOST_HELD
    assert str(tmp_path / "0") in held_open(str(tmp_path)), "what is held again is not the one held longest"
    disk.close()
    assert held_open(str(tmp_path)) == []


def test_what_the_machine_refuses_is_trouble_and_the_rest_is_as_it_is(tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageTrouble, match=r"No space left on device \(at rename\)"):
        Disk(full).rename(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileExistsError):
        Disk().mkdir(tmp_path)

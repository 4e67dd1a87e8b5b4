"""Real file systems: one that fills up, one that comes and goes, one without notifications, no watches left.

Each test runs in namespaces of its own (unshare), so that nothing outside is touched; where the machine allows none it
is skipped by name. Faults 39, 42, 44, 48.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def _allowed(*options: str) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", *options, "true"], capture_output=True).returncode == 0


MOUNT = ("--mount", "--propagation", "private")
USER = ("--user", "--map-root-user")
needs_mounts = pytest.mark.skipif(not _allowed(*MOUNT), reason="needs leave to mount in a namespace of its own")
needs_users = pytest.mark.skipif(not _allowed(*USER), reason="needs leave to make a user namespace")

PRELUDE = """
import json, os, subprocess, sys, threading, time
from pathlib import Path
sys.path.insert(0, TESTS)
from conftest import Darkroom
from test_loop import Running, until

root = Path(ROOT)
def mount(place, size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "darkroom", str(place)], check=True)
def umount(place):
    subprocess.run(["umount", "--lazy", str(place)], check=True)
"""


def inside(options: tuple[str, ...], root: Path, script: str) -> dict[str, object]:
    """Run a script in namespaces of its own; it prints one JSON object last."""
    prelude = PRELUDE.replace("TESTS", repr(str(Path(__file__).parent))).replace("ROOT", repr(str(root)))
    command = ["unshare", *options, sys.executable, "-c", prelude + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_mounts
def test_a_full_disk_pauses_and_when_there_is_room_again_all_is_done(tmp_path: Path) -> None:
    found = inside(
        MOUNT,
        tmp_path,
        """
        mount(root, "600k")
        darkroom = Darkroom(root / "spool")
        darkroom.configure(limits={"min_free_bytes": 0})
        ballast = root / "ballast"
        for number in range(12):
            darkroom.drop(f"cat{number}.json", count=3, width=512, height=512)
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
        loop = darkroom.loop(first_pause_s=0.05)
        with Running(loop):
            until(lambda: loop.health.report.state == "paused")
            why = loop.health.report.why
            ballast.unlink()
            until(lambda: loop.work.done == 12, 60)
        print(json.dumps({"why": why, "done": len(darkroom.names("done")), "failed": darkroom.names("failed")}))
        """,
    )
    assert found["done"] == 12
    assert found["failed"] == []
    assert "No space left on device" in str(found["why"])


@needs_mounts
def test_an_inbox_that_is_unmounted_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    found = inside(
        MOUNT,
        tmp_path,
        """
        share = root / "share"
        share.mkdir()
        mount(share, "4m")
        darkroom = Darkroom(share / "spool")
        darkroom.configure(limits={"min_free_bytes": 0})
        loop = darkroom.loop(first_pause_s=0.05)
        with Running(loop):
            until(lambda: "daemon.ready" in darkroom.log.events())
            darkroom.drop("before.json")
            until((darkroom.done / "before" / "result.json").exists)
            umount(share)
            until(lambda: loop.health.report.state == "paused")
            why = loop.health.report.why
            mount(share, "4m")
            for name in ("inbox", "working", "done", "failed"):
                (share / "spool" / name).mkdir(parents=True)
            until(lambda: loop.health.report.state == "idle")
            darkroom.drop("after.json")
            until((darkroom.done / "after" / "result.json").exists)
        print(json.dumps({"why": why}))
        """,
    )
    assert "is gone" in str(found["why"])


@needs_mounts
def test_something_mounted_over_the_inbox_is_refused_until_it_is_gone(tmp_path: Path) -> None:
    found = inside(
        MOUNT,
        tmp_path,
        """
        darkroom = Darkroom(root / "spool")
        loop = darkroom.loop(first_pause_s=0.05)
        with Running(loop):
            until(lambda: "daemon.ready" in darkroom.log.events())
            mount(darkroom.inbox, "1m")
            until(lambda: loop.health.report.state == "paused")
            why = loop.health.report.why
            umount(darkroom.inbox)
            until(lambda: loop.health.report.state == "idle")
            darkroom.drop("after.json")
            until((darkroom.done / "after" / "result.json").exists)
        print(json.dumps({"why": why}))
        """,
    )
    assert "another file system" in str(found["why"])


@needs_users
def test_without_any_watches_left_the_inbox_is_scanned(tmp_path: Path) -> None:
    found = inside(
        USER,
        tmp_path,
        """
        Path("/proc/sys/user/max_inotify_instances").write_text("0")
        darkroom = Darkroom(root / "spool")
        darkroom.configure(intake={"rescan_s": 0.1})
        loop = darkroom.loop()
        with Running(loop):
            until(lambda: "daemon.ready" in darkroom.log.events())
            darkroom.drop("cat.json")
            until((darkroom.done / "cat" / "result.json").exists)
            notified = loop.guard.notified
        print(json.dumps({"notified": notified, "log": darkroom.log.of("watch.trouble")}))
        """,
    )
    assert found["notified"] is False
    assert "scanning instead" in str(found["log"])

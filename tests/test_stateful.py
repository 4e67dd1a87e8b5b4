"""Anything in any order: drops, half-writes, replacements, crashes, full disks, clock jumps; nothing lost or doubled.

The law: what lies in inbox, working, done and failed together changes only by what people do to the inbox.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conftest import Darkroom
from darkroom.errors import SpoolInUse
from darkroom.spool import Disk
from test_crashes import Crash, CrashingDisk, FailingDisk, photo, picture

NAMES = st.sampled_from(
    ["a.json", "b.json", "!c.json", "team/a.json", "one/job.json", "caf\udce9.json", "x" * 120 + ".json"]
)
PICTURES = st.sampled_from(["p.png", "team/p.png", "one/p.png"])
ENDINGS = st.sampled_from(
    [b"", b', "count": 2', b', "init_image": "p.png"', b', "widht": 3', b', "width": 65', b', "prompt": "again"']
)


class AnyOrder(RuleBasedStateMachine):
    """One spool, and whatever hypothesis does to it."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.base = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
        self.darkroom = Darkroom(self.base / "spool")
        self.darkroom.configure(intake={"settle_s": 0.1, "rescan_s": 0.05})
        self.number = 0
        self.present: Counter[str] = Counter()

    def teardown(self) -> None:
        """To the end: every file of the inbox has its verdict."""
        (self.darkroom.root / "PAUSE").unlink(missing_ok=True)
        self.run_daemon(Disk())
        self.nothing_is_lost_or_doubled()
        assert [path for path in self.darkroom.inbox.rglob("[!.]*") if path.is_file()] == []
        assert self.darkroom.names("working") == []
        shutil.rmtree(self.base)

    # What people do

    @rule(name=NAMES, ending=ENDINGS)
    def drop(self, name: str, ending: bytes) -> None:
        self.number += 1
        data = b'{"prompt": "%d", "steps": 1, "width": 64%s}' % (self.number, ending)
        path = self.darkroom.inbox / name
        path.parent.mkdir(exist_ok=True)
        hidden = path.with_name(".hidden")
        hidden.write_bytes(data)
        hidden.replace(path)
        self.people_did_something()

    @rule(name=NAMES)
    def write_half(self, name: str) -> None:
        self.number += 1
        path = self.darkroom.inbox / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'{"prompt": "%d", ' % self.number)
        self.people_did_something()

    @rule(name=NAMES)
    def write_the_other_half(self, name: str) -> None:
        path = self.darkroom.inbox / name
        if path.exists():
            with path.open("ab") as file:
                file.write(b'"steps": 1, "width": 64}')
            self.people_did_something()

    @rule(name=NAMES, to=NAMES)
    def rename(self, name: str, to: str) -> None:
        path, target = self.darkroom.inbox / name, self.darkroom.inbox / to
        if path.exists():
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
            self.people_did_something()

    @rule(name=PICTURES, data=st.sampled_from([photo("red"), photo("red")[:-9], picture()]))
    def drop_a_picture(self, name: str, data: bytes) -> None:
        path = self.darkroom.inbox / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        (self.darkroom.inbox / name).unlink(missing_ok=True)
        self.people_did_something()

    @rule()
    def cancel_what_was_begun(self) -> None:
        for folder in self.darkroom.working.glob("*/"):
            (folder / "cancel").touch()

    # What the machine does

    @rule()
    def run_to_the_end(self) -> None:
        self.run_daemon(Disk())

    @rule(at=st.integers(1, 150))
    def crash(self, at: int) -> None:
        self.run_daemon(CrashingDisk(at))

    @rule(at=st.integers(5, 150), more=st.integers(0, 5))
    def fill_the_disk(self, at: int, more: int) -> None:
        self.run_daemon(FailingDisk(at, errno.ENOSPC, more))

    @rule(seconds=st.sampled_from([-86_400.0, -1.0, 3_600.0]))
    def set_the_clock(self, seconds: float) -> None:
        """The wall clock: it stands in the times of files."""
        for path in self.darkroom.inbox.glob("*.json"):
            moment = time.time() + seconds
            os.utime(path, (moment, moment))

    @precondition(lambda self: self.darkroom.working.exists())
    @rule()
    def start_a_second_daemon(self) -> None:
        first = self.darkroom.spool()
        first.open()
        with pytest.raises(SpoolInUse):
            self.darkroom.loop(once=True).run()
        first.close()

    # The law

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        assert self.contents() == self.present

    def people_did_something(self) -> None:
        self.present = self.contents()

    def waiting(self) -> list[Path]:
        return [path for path in self.darkroom.inbox.rglob("*.json") if not path.name.startswith(".")]

    def contents(self) -> Counter[str]:
        """How often each content is there, wherever it is."""
        requests = [
            path
            for base in ("working", "done", "failed")
            for name in ("request.json", "dropped/job.json")
            for path in (self.darkroom.root / base).rglob(name)
        ]
        return Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in requests + self.waiting())

    def run_daemon(self, disk: Disk) -> None:
        loop = self.darkroom.loop(disk=disk, once=True, first_pause_s=0.001)
        try:
            loop.run()
        except Crash:
            pass
        finally:
            loop.guard.stop()
            loop.spool.close()
            loop.waker.close()
        for base in (self.darkroom.done, self.darkroom.failed):
            for request in base.rglob("request.json"):
                result = json.loads((request.parent / "result.json").read_bytes())
                for made in result["pictures"]:
                    data = (request.parent / made["file"]).read_bytes()
                    assert hashlib.sha256(data).hexdigest() == made["sha256"]


AnyOrder.TestCase.settings = settings(
    max_examples=int(os.environ.get("DARKROOM_TEST_EXAMPLES", "8")),
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestAnyOrder = AnyOrder.TestCase

"""The real thing: power cuts on a file system that is really written, behind ``tools/power_cut.sh``.

    python tools/power_cut.py --rounds 20

An ext4 image lies on a loop device. A daemon with the fake executor works in it under a stream of jobs, until at a
random moment the file system is shut down by an ioctl: what was not synced by then is gone (the log is not flushed),
and nothing more gets to the disk. The daemon is killed, the image mounted anew, and held to the promise; the next
daemon goes on with what was left. At the end every job that was durable must have exactly one verdict. Exit code 1
where the promise was broken; 0 with a line that begins ``skipped:`` where this machine cannot do it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from darkroom.config import Config, Folders, Limits, Log
from darkroom.executors import FakeExecutor
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.spool import Disk, Spool

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32)."""

NO_LOG_FLUSH = 2
SMALL = {"width": 64, "height": 64, "num_inference_steps": 1}
MOST_WAITING = 20


class Forgetful(Disk):
    """Syncs no folder: what the cuts must find out."""

    def sync_folder(self, path: Path) -> None:
        """Not at all."""


class CannotTry(Exception):
    """This machine cannot do it; says why."""


class PowerCuts:
    """Rounds of work, cut, and examination, on one image."""

    def __init__(self, folder: Path, chance: random.Random, *, forgetful: bool = False) -> None:
        self.forgetful = forgetful
        self.image = folder / "image"
        self.mount = folder / "mount"
        self.root = self.mount / "spool"
        self.chance = chance
        self.dropped: dict[str, bool] = {}
        """sha256 of each job that was durable in the inbox → whether it can be done."""
        self.announced: dict[str, str] = {}
        """Folder that the daemon said it published → sha256 of its result.json."""
        self.faults: list[str] = []

    # The disk

    def make(self, mebibytes: int) -> None:
        """A file system in a file. Raises CannotTry."""
        if os.geteuid() != 0:
            raise CannotTry("only root can mount a file system")
        for tool in ("mkfs.ext4", "losetup", "mount", "umount"):
            if shutil.which(tool) is None:
                raise CannotTry(f"{tool} is not installed")
        self.mount.mkdir()
        with self.image.open("wb") as file:
            file.truncate(mebibytes << 20)
        self.call("mkfs.ext4", "-q", "-F", "-O", "has_journal", str(self.image))
        self.plug_in()

    def plug_in(self) -> None:
        """Mount it; the journal is replayed. Raises CannotTry."""
        # A commit interval that is long: what is on the disk is there because somebody synced it.
        self.call("mount", "-o", "loop,commit=300", str(self.image), str(self.mount))

    def pull_out(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", str(self.mount)], check=True)

    def cut(self) -> None:
        """From now on nothing reaches the disk, and what was not synced is lost. Raises CannotTry."""
        descriptor = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        except OSError as error:
            raise CannotTry(f"the file system cannot be shut down by ioctl: {error.strerror}") from None
        finally:
            os.close(descriptor)

    @staticmethod
    def call(*command: str) -> None:
        """Run a program. Raises CannotTry with what it says."""
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise CannotTry(
                f"{command[0]}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}"
            )

    # One round

    def round(self) -> None:
        """Work, cut, look, and let a new daemon begin in the next round."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        pid = self.start_daemon(read, write)
        os.close(write)
        said = b""
        until = time.monotonic() + self.chance.uniform(0.1, 2.0)
        number = len(self.dropped)
        try:
            while time.monotonic() < until:
                self.drop()
                said += self.hear(read)
                time.sleep(self.chance.uniform(0, 0.02))
            said += self.await_moment(read)
            os.kill(pid, signal.SIGSTOP)  # what it said until here was true before the cut
            said += self.hear(read)
            self.cut()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)
        self.note(said)
        self.pull_out()
        self.plug_in()
        self.examine()
        print(f"{len(self.dropped) - number} jobs dropped, {len(self.announced)} results on the disk", file=sys.stderr)

    def start_daemon(self, read: int, write: int) -> int:
        """In a forked process, which has everything imported already; its log goes into the pipe."""
        pid = os.fork()
        if pid:
            return pid
        try:
            os.close(read)
            with os.fdopen(write, "w") as log:
                self.loop(log, once=False).run()
        finally:
            os._exit(0)

    def loop(self, log: object, *, once: bool) -> Loop:
        """A daemon on the spool."""
        config = Config(
            folders=Folders(root=self.root), limits=Limits(min_free_bytes=0), log=Log(level="info", format="json")
        )
        return Loop(
            config=config,
            spool=Spool(config.folders, config.limits, Forgetful() if self.forgetful else Disk()),
            executor=FakeExecutor(config),
            logger=make_logger(config.log, log),  # type: ignore[arg-type]
            once=once,
        )

    def drop(self) -> None:
        """A job, as durable as any careful program makes it; every tenth is broken."""
        inbox = self.root / "inbox"
        if not inbox.is_dir() or sum(1 for _ in inbox.iterdir()) >= MOST_WAITING:
            return
        number = len(self.dropped)
        broken = self.chance.random() < 0.1
        job = {
            "prompt": f"job {number}",
            **SMALL,
            "count": self.chance.choice((1, 1, 3)),
            **({"x": 1} if broken else {}),
        }
        data = json.dumps(job).encode()
        group = self.chance.choice(("", "", "team"))
        disk = Disk()
        folder = inbox / group
        if not folder.is_dir():
            disk.mkdir(folder)
            disk.sync_folder(inbox)
        disk.replace(folder / f"cat{number % 7}-{number}.json", data)
        disk.sync_folder(folder)
        self.dropped[hashlib.sha256(data).hexdigest()] = not broken

    def await_moment(self, read: int) -> bytes:
        """The moments that hurt: any; right after an announcement; after the last one, when nobody syncs any more."""
        moment = self.chance.choice(("any", "announced", "last"))
        said = b""
        patience = time.monotonic() + 2.0
        while moment != "any" and time.monotonic() < patience:
            heard = bool(select.select([read], [], [], 0.05)[0])
            part = self.hear(read)
            said += part
            if (moment == "announced" and b'"path":' in part) or (moment == "last" and not heard):
                break
        return said

    @staticmethod
    def hear(read: int) -> bytes:
        """What the daemon said since last asked."""
        heard = b""
        try:
            while part := os.read(read, 1 << 16):
                heard += part
        except BlockingIOError:
            pass
        return heard

    def note(self, said: bytes) -> None:
        """What it announced as published."""
        for line in said.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short
            if entry.get("event") in ("job.done", "job.failed"):
                self.announced[entry["path"]] = entry["id"]

    # The promise

    def examine(self) -> None:
        """At the instant after the cut: each job in exactly one place, each result whole, each announcement true."""
        found = Counter(self.requests())
        for key, times in found.items():
            if times > 1:
                self.faults.append(f"a job is in {times} places: {key}")
            if key not in self.dropped:
                self.faults.append(f"nobody dropped this: {key}")
        self.faults += [f"lost: {key}" for key in self.dropped if key not in found]
        for path, id in self.announced.items():
            try:
                result = json.loads((Path(path) / "result.json").read_bytes())
            except (OSError, ValueError) as error:
                self.faults.append(f"{path} was announced, and is not there: {error}")
                continue
            if result["id"] != id:
                self.faults.append(f"{path} was announced as {id}, and is {result['id']}")
        for base in ("done", "failed"):
            for file in (self.root / base).rglob("request.json"):
                self.examine_result(base, file.parent)

    def examine_result(self, base: str, folder: Path) -> None:
        """One published result."""
        try:
            key = hashlib.sha256((folder / "request.json").read_bytes()).hexdigest()
            result = json.loads((folder / "result.json").read_bytes())
            for picture in result["pictures"]:
                if hashlib.sha256((folder / picture["file"]).read_bytes()).hexdigest() != picture["sha256"]:
                    self.faults.append(f"{folder}: {picture['file']} is not what result.json says")
            if base == "failed":
                json.loads((folder / "error.json").read_bytes())
            elif len(result["pictures"]) != result["job"]["count"]:
                self.faults.append(f"{folder}: pictures are missing")
            if self.dropped.get(key) != (base == "done"):
                self.faults.append(f"{folder}: this is not the verdict it should have")
        except (OSError, ValueError, KeyError) as error:
            self.faults.append(f"{folder} is not whole: {error!r}")

    def requests(self) -> list[str]:
        """sha256 of each job that is anywhere."""
        files = [file for file in (self.root / "inbox").rglob("*.json") if not file.name.startswith(".")]
        files += [file for base in ("working", "done", "failed") for file in (self.root / base).rglob("request.json")]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    def finish(self) -> None:
        """A last daemon does what is left."""
        with Path(os.devnull).open("w") as nowhere:
            self.loop(nowhere, once=True).run()
        self.examine()
        left = [path.name for base in ("inbox", "working") for path in (self.root / base).rglob("*.json")]
        if left:
            self.faults.append(f"{len(left)} files are left over, as {left[0]}")


def main() -> int:
    """Read the arguments, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--dir", type=Path, default=None, help="where to make the image; default: the temporary folder")
    parser.add_argument("--forgetful", action="store_true", help="leave fsyncs out, to see that it is found out")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="darkroom-power-", dir=arguments.dir))
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    cuts = PowerCuts(folder, random.Random(seed), forgetful=arguments.forgetful)
    begin, rounds = time.monotonic(), 0
    try:
        cuts.make(mebibytes=256)
        Disk().mkdir(cuts.root)
        Disk().mkdir(cuts.root / "inbox")
        os.sync()
        while rounds < arguments.rounds and not cuts.faults:
            cuts.round()
            rounds += 1
        if not cuts.faults:
            cuts.finish()
    except CannotTry as why:
        print(f"skipped: {why}")
        return 0
    finally:
        if os.path.ismount(cuts.mount):
            cuts.pull_out()
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - begin, 1)
    print(
        json.dumps(
            {"rounds": rounds, "jobs": len(cuts.dropped), "seed": seed, "seconds": seconds, "faults": cuts.faults}
        )
    )
    return 1 if cuts.faults else 0


if __name__ == "__main__":
    sys.exit(main())

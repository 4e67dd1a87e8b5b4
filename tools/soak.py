"""Soak: many jobs through the real spool and loop, with the daemon killed again and again; nothing lost, nothing twice.

    python tools/soak.py --jobs 100000 --kills 5000
    python tools/soak.py --jobs 100000 --kills 0 --waiting 100000      all at once: notifications overflow

A daemon with the fake executor works in a process that is sent SIGKILL at random moments and started anew. Jobs are
dropped all the while: good ones, broken ones, of several pictures, under names that repeat. A consumer looks at each
result the moment it appears, holds it to the promise, and deletes it. At the end every job must have had exactly one
verdict, and the daemon's memory and descriptors must not have grown. Exit code 1 where the promise was broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.config import Config, Folders, Log
from darkroom.executors import FakeExecutor
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.spool import Spool

IN_USE = 3
"""A reading may fall into a moment when a job's folder and a file in it are open."""

SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}


@dataclass
class Soak:
    """One run, in ``root``."""

    root: Path
    jobs: int
    kills: int
    chance: random.Random
    waiting: int = 400
    """How many jobs lie in the inbox at most."""
    dropped: dict[str, str] = field(default_factory=dict)
    """sha256 of each request that was dropped → the verdict it must get."""
    verdicts: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    killed: int = 0
    pictures: int = 0

    def run(self) -> dict[str, object]:
        """Until every job has its verdict; returns the figures."""
        begin = time.monotonic()
        shown = begin
        while len(self.verdicts) < self.jobs and not self.faults:
            pid = self.start_daemon()
            until = time.monotonic() + (self.chance.expovariate(1 / 0.08) if self.killed < self.kills else 1e9)
            while time.monotonic() < until and len(self.verdicts) < self.jobs and not self.faults:
                self.drop()
                self.consume()
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    print(f"{len(self.verdicts)} of {self.jobs} jobs, {self.killed} kills", file=sys.stderr)
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.killed += 1
            self.consume()
        self.look_for_leftovers()
        return {
            "jobs": len(self.verdicts),
            "kills": self.killed,
            "pictures": self.pictures,
            "faults": self.faults,
            "seconds": round(time.monotonic() - begin, 1),
            **({} if self.faults else self.growth()),
        }

    def start_daemon(self) -> int:
        """In a forked process, which has everything imported already."""
        pid = os.fork()
        if pid:
            return pid
        try:
            with Path(os.devnull).open("w") as nowhere:
                self.loop(nowhere, once=False).run()
        finally:
            os._exit(0)

    def loop(self, log: object, *, once: bool) -> Loop:
        """A daemon on the spool."""
        config = Config(folders=Folders(root=self.root), log=Log(level="error", format="json"))
        return Loop(
            config=config,
            spool=Spool(config.folders, config.limits),
            executor=FakeExecutor(config),
            logger=make_logger(config.log, log),  # type: ignore[arg-type]
            once=once,
        )

    def drop(self) -> None:
        """Fill the inbox up, by rename as well as by a copy in two halves."""
        if len(self.dropped) >= self.jobs:
            return
        inbox = self.root / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        waiting = sum(1 for _ in inbox.iterdir())
        while waiting < self.waiting and len(self.dropped) < self.jobs:
            number = len(self.dropped)
            job: dict[str, object] = {"prompt": f"job {number}", **SMALL}
            verdict = "done"
            match self.chance.random():
                case luck if luck < 0.02:
                    job["widht"] = 3
                    verdict = "failed"
                case luck if luck < 0.1:
                    job["count"] = 3
            data = json.dumps(job).encode()
            name = f"cat{number}.json" if self.chance.random() < 0.7 else f"{self.chance.choice('abc')}.json"
            path = inbox / name
            if path.exists():
                path = inbox / f"cat{number}.json"
            self.dropped[hashlib.sha256(data).hexdigest()] = verdict
            if self.chance.random() < 0.5:
                hidden = inbox / f".{number}.tmp"
                hidden.write_bytes(data)
                hidden.rename(path)
            else:
                with path.open("wb") as file:
                    file.write(data[:20])
                    file.flush()
                    file.write(data[20:])
            waiting += 1

    def consume(self) -> None:
        """Hold each result to the promise the moment it is seen, then delete it."""
        for base in ("done", "failed"):
            folder = self.root / base
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if not path.name.startswith(".") and path.is_dir():
                    self.examine(base, path)

    def examine(self, base: str, folder: Path) -> None:
        """One published result."""
        try:
            key = hashlib.sha256((folder / "request.json").read_bytes()).hexdigest()
            result = json.loads((folder / "result.json").read_bytes())
            for picture in result["pictures"]:
                data = (folder / picture["file"]).read_bytes()
                if hashlib.sha256(data).hexdigest() != picture["sha256"]:
                    self.faults.append(f"{folder}: {picture['file']} is not what result.json says")
                self.pictures += 1
            if base == "failed":
                json.loads((folder / "error.json").read_bytes())
            elif len(result["pictures"]) != result["job"]["count"]:
                self.faults.append(f"{folder}: pictures are missing")
        except (OSError, ValueError, KeyError) as error:
            self.faults.append(f"{folder} is not whole: {error!r}")
            return
        if key not in self.dropped:
            self.faults.append(f"{folder}: nobody dropped that")
        elif key in self.verdicts:
            self.faults.append(f"{folder}: a second verdict, the first was {self.verdicts[key]}")
        elif self.dropped[key] != base:
            why = (folder / "error.json").read_text() if base == "failed" else ""
            self.faults.append(f"{folder}: the verdict should be {self.dropped[key]} {why}")
        self.verdicts[key] = base
        shutil.rmtree(folder)

    def look_for_leftovers(self) -> None:
        """Once more, to its end: what a killed daemon left must come to nothing."""
        with Path(os.devnull).open("w") as nowhere:
            self.loop(nowhere, once=True).run()
        self.consume()
        for base in ("inbox", "working"):
            left = [path.name for path in (self.root / base).iterdir() if path.name != ".lock"]
            if left:
                self.faults.append(f"{base}/ holds {len(left)} leftovers, as {left[0]}")
        self.faults += [f"lost: a job of sha256 {key}" for key in self.dropped if key not in self.verdicts][:10]

    def growth(self) -> dict[str, object]:
        """Memory and descriptors of one daemon over some more jobs, the first of them not counted."""
        self.jobs += min(self.jobs, 3000)
        self.kills = 0
        self.waiting = min(self.waiting, 400)
        pid = self.start_daemon()
        readings: list[tuple[int, int]] = []
        begin = len(self.verdicts)
        while len(self.verdicts) < self.jobs and not self.faults:
            self.drop()
            self.consume()
            if len(self.verdicts) - begin > 500 + 100 * len(readings):
                readings.append((_resident_kib(pid), sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())))
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        first, last = readings[0], readings[-1]
        if last[0] > 1.05 * first[0] or last[1] > first[1] + IN_USE:
            self.faults.append(f"the daemon grew from {first} to {last} (KiB resident, descriptors)")
        return {"resident_mib": [first[0] >> 10, last[0] >> 10], "descriptors": [first[1], last[1]]}


def _resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> int:
    """Read the arguments, run, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5_000)
    parser.add_argument("--waiting", type=int, default=400, help="how many lie in the inbox at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, default=None, help="where to make the spool; default: a RAM disk")
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    base = arguments.dir or (memory if os.access(memory, os.W_OK) else None)
    root = Path(tempfile.mkdtemp(prefix="darkroom-soak-", dir=base))
    try:
        figures = Soak(root, arguments.jobs, arguments.kills, random.Random(arguments.seed), arguments.waiting).run()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps(figures))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

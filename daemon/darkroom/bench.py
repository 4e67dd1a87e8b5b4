"""``darkroom bench``: what darkroom itself costs, measured beside the least that the same promise can cost.

Machines are noisy, so each figure is a ratio of two things done in turns in one process. For the spool the other thing
is the floor: the calls that the real run made to the disk, same order, same sizes, in a loop with nothing around it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any



from darkroom.config import Config, Folders, Log
from darkroom.events import Event, Finished, Loaded, Picture
from darkroom.intake.mounts import file_system_of
from darkroom.job import Job
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.spool import Disk, Spool, Ticket, Verdict

JOB = json.dumps({"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 4}).encode()
PICTURE = bytes(1024)
"""The spool does not look into pictures."""

BLOCK = 20
"""So many jobs of one side, then as many of the other."""

Progress = Callable[[str, int, int], None]
"""What is being measured, how much of it is done, of how much."""


class NoEngine:
    """An executor whose pictures are ready before they are asked for."""

    pid = None

    def start(self) -> None:
        """Nothing need be started."""

    def run(self, job: Job, skip: frozenset[int] = frozenset()) -> Generator[Event]:
        """As ``Executor.run``."""
        yield Loaded(job.model, 0.0, "none")
        for index in range(job.count):
            yield Picture(index, job.seed_of(index), job.width, job.height, PICTURE, "png")
        yield Finished({"encode": 0.0, "denoise": 0.0, "decode": 0.0, "save": 0.0})

    def close(self) -> None:
        """Nothing was started."""


@dataclass
class Rate:
    """Jobs and the seconds they took."""

    jobs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def per_s(self) -> float:
        """Jobs per second."""
        return self.jobs / self.seconds if self.seconds else 0.0


# The floor


class _Recorder(Disk):
    """Keeps what is done to the disk, with sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, tuple[Any, ...]]] = []

    def mkdir(self, path: Path) -> None:
        self.kept.append(("mkdir", (path,)))
        super().mkdir(path)

    def rename(self, path: Path, target: Path) -> None:
        self.kept.append(("rename", (path, target)))
        super().rename(path, target)

    def unlink(self, path: Path) -> None:
        self.kept.append(("unlink", (path,)))
        super().unlink(path)

    def sync_folder(self, path: Path) -> None:
        self.kept.append(("sync", (path,)))
        super().sync_folder(path)

    def sync_file(self, path: Path) -> None:
        self.kept.append(("sync", (path,)))
        super().sync_file(path)

    def write(self, path: Path, data: bytes, *, sync: bool = True) -> None:
        self.kept.append(("write" if sync else "write_unsynced", (path, data)))
        super().write(path, data, sync=sync)

    def append(self, path: Path, data: bytes) -> None:
        self.kept.append(("append", (path, data)))
        super().append(path, data)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(descriptor)
    os.close(descriptor)


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    os.write(descriptor, data)
    os.fsync(descriptor)
    os.close(descriptor)


def _write_unsynced(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    os.write(descriptor, data)
    os.close(descriptor)


def _append(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.write(descriptor, data)
    os.close(descriptor)


_BARE: dict[str, Callable[..., None]] = {
    "mkdir": os.mkdir,
    "rename": os.rename,
    "unlink": os.unlink,
    "sync": _sync,
    "write": _write,
    "write_unsynced": _write_unsynced,
    "append": _append,
}


def _fill(inbox: Path, numbers: range) -> None:
    inbox.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (inbox / _file(number)).write_bytes(JOB)


def _file(number: int) -> str:
    return f"job-{number:07}.json"


class Floor:
    """One job's calls, done again and again in a spool of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0
        self._calls = self._record(folder / "recorded")
        self.fsyncs = sum(name in ("sync", "write") for name, _ in self._calls)

    def _record(self, root: Path) -> list[tuple[str, tuple[Any, ...]]]:
        """What the second of two jobs does, its paths relative to the root, ``{id}`` and ``{name}`` left open."""
        _fill(root / "inbox", range(2))
        recorder, ids, marks = _Recorder(), [], []

        def ended(id: str) -> None:
            ids.append(id)
            marks.append((len(recorder.kept), recorder.calls))

        daemon = Daemon(root, ended, disk=recorder)
        daemon.run()
        (begin, _), (end, _) = marks
        id, name = ids[1], Path(_file(1)).stem

        def opened(value: Any) -> Any:
            if isinstance(value, Path):
                return str(value.relative_to(root)).replace(id, "{id}").replace(name, "{name}")
            return value

        kept = [(call, tuple(map(opened, values))) for call, values in recorder.kept[begin:end]]
        return [(call, values) for call, values in kept if "health.json" not in values[0]]

    def prepare(self, jobs: int) -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
        """The calls of so many jobs, ready to be made; their files lie in the inbox."""
        root = self._folder / "floor"
        numbers = range(self._next, self._next + jobs)
        self._next += jobs
        for name in ("working", "done"):
            (root / name).mkdir(parents=True, exist_ok=True)
        _fill(root / "inbox", numbers)
        calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        for number in numbers:
            id, name = f"20000101T000000Z-job-{number:07}-00000000", Path(_file(number)).stem
            for call, values in self._calls:
                paths = (f"{root}/{v}".format(id=id, name=name) if isinstance(v, str) else v for v in values)
                calls.append((_BARE[call], tuple(paths)))
        return calls


def _make(calls: list[tuple[Callable[..., None], tuple[Any, ...]]]) -> float:
    begin = time.perf_counter()
    for call, values in calls:
        call(*values)
    return time.perf_counter() - begin


# The daemon


class Daemon:
    """A whole daemon without an engine. ``ended`` is told of each verdict, in the midst of the work."""

    def __init__(self, root: Path, ended: Callable[[str], None], disk: Disk | None = None, **options: Any) -> None:
        self.config = Config(folders=Folders(root=root), **options)
        self._ended = ended
        self._log = Path(os.devnull).open("w")
        self.loop = Loop(
            config=self.config,
            spool=Spool(self.config.folders, self.config.limits, disk),
            executor=NoEngine(),
            logger=make_logger(Log(format="json"), self._log),
            viewer=self,
            once=True,
        )

    def run(self) -> None:
        """Do what lies in the inbox."""
        self.loop.run()
        self._log.close()

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """As ``Viewer.claimed``."""

    def event(self, ticket: Ticket, event: Event) -> None:
        """As ``Viewer.event``."""

    def state(self, state: str, why: str | None) -> None:
        """As ``Viewer.state``."""

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """As ``Viewer.verdict``."""
        self._ended(ticket.id)

"""The spool: what darkroom itself costs, measured beside the least that the same promise can cost.

- the floor: the calls that a real run made to the disk, same order, same sizes, in a loop with nothing around it;
- the spool: the same jobs taken, claimed and published by the real ``Intake``, ``Spool`` and ``Ticket``, and no more;
- the daemon: the real ``Loop``, which also checks each job, records what was done, logs and keeps its health file.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from darkroom.bench import Progress
from darkroom.config import Config, Folders, Log, Output
from darkroom.errors import RenderFailed
from darkroom.events import Event, Finished, Loaded, Picture
from darkroom.executors import Executor
from darkroom.intake import Intake
from darkroom.intake.mounts import file_system_of
from darkroom.job import NO_IMAGES, Images, Job, Result, parse, resolve
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.models.catalog import Catalog
from darkroom.spool import Call, Disk, Spool, State, Ticket, Verdict, timestamp

JOB = json.dumps({"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 4}).encode()
PICTURE = bytes(1024)
"""The spool does not look into pictures."""

BLOCK = 10
"""So many jobs of one side, then as many of the other."""

FEW = 100
"""How many wait on the side that is compared with many."""


class NoEngine:
    """An executor whose pictures are ready before they are asked for."""

    pid = None

    def expect(self, jobs: Sequence[Job]) -> None:
        """Nothing is made."""

    def announce(self, job: Job) -> None:
        """Nothing is made ready."""

    def nudge(self) -> None:
        """There is no one to wait for."""

    def start(self) -> None:
        """Nothing need be started."""

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        """As ``Executor.run``."""
        yield Loaded(job.model, 0.0, "none")
        for index in range(job.count):
            yield Picture(index, job.seed_of(index), job.width, job.height, PICTURE, "png")
        yield Finished({"encode": 0.0, "denoise": 0.0, "decode": 0.0, "save": 0.0})

    def close(self) -> None:
        """Nothing was started."""


def fill(folder: Path, numbers: range) -> None:
    """Put the jobs of these numbers into an inbox."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        descriptor = os.open(f"{folder}/{_file(number)}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.write(descriptor, JOB)
        os.close(descriptor)


def _file(number: int) -> str:
    return f"job-{number:07}.json"


class Daemon:
    """A daemon that is led step by step, without an engine if none is given. ``ended``: the ids of the jobs done."""

    def __init__(
        self, root: Path, disk: Disk | None = None, *, config: Config | None = None, executor: Executor | None = None
    ) -> None:
        config = config or Config(output=Output(page=False))
        config = config.model_copy(update={"folders": Folders(root=root)})
        self.root = root
        self.ended: list[str] = []
        self._log = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        self.loop = Loop(
            config=config,
            spool=Spool(config.folders, config.limits, disk),
            executor=executor or NoEngine(),
            logger=make_logger(Log(format="json"), self._log),
            viewer=self,
            once=True,
        )

    def __enter__(self) -> Daemon:
        self.loop.spool.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.shutdown()
        self._log.close()

    def do(self, jobs: int, *, whole: bool = True) -> float:
        """Do so many jobs. Returns the seconds they took. Unless ``whole``, the last is published with the next one."""
        goal = self._led() + jobs
        begin = time.perf_counter()
        while self._led() < goal and self.loop.step():
            continue
        if whole:
            self.loop.work.publish()
        seconds = time.perf_counter() - begin
        if self.loop.work.failed or self._led() < goal:
            raise RenderFailed(f"A job of the benchmark did not end well: see {self.root}")
        return seconds

    def _led(self) -> int:
        """How many jobs have come to their end, published or not."""
        return len(self.ended) + (self.loop.work.ended is not None)

    def do_one(self) -> float:
        """Do one job. Returns the seconds from looking for it to having claimed it."""
        begin = time.perf_counter()
        arrival = self.loop.intake.take()
        ticket = None if arrival is None else self.loop.spool.claim(arrival)
        seconds = time.perf_counter() - begin
        if ticket is None:
            raise RenderFailed(f"There was no job to be claimed: see {self.root}")
        self.loop.work.do(ticket)
        self.loop.work.publish()
        return seconds

    def claimed(self, ticket: Ticket, job: Job) -> None:
        """As ``Viewer.claimed``."""

    def event(self, ticket: Ticket, event: Event) -> None:
        """As ``Viewer.event``."""

    def state(self, state: str, why: str | None) -> None:
        """As ``Viewer.state``."""

    def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
        """As ``Viewer.verdict``."""
        self.ended.append(ticket.id)


class BareSpool:
    """The spool with nobody around it: whoever leads it knows what each job is and how it ends."""

    def __init__(self, root: Path, example: Path) -> None:
        """``example`` is the folder of a job that was done: its result serves for all."""
        config = Config(folders=Folders(root=root))
        self.spool = Spool(config.folders, config.limits)
        self._intake = Intake(
            self.spool, judge=lambda *_: None, report=lambda *_: None, settle_s=10, rescan_s=config.intake.rescan_s
        )
        self._state = State(job=resolve(parse(JOB), config, Catalog(config.models), "bench"), started_at=timestamp())
        self._result = Result.model_validate_json((example / "result.json").read_bytes())

    def __enter__(self) -> BareSpool:
        self.spool.open()
        self._intake.look_afresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.spool.close()

    def do(self, numbers: range) -> float:
        """Do these jobs, which are the next in the inbox. Returns the seconds they took."""
        names = [Path(_file(number)).stem for number in numbers]
        verdicts = [Verdict(self._result.model_copy(update={"name": name})) for name in names]
        begin = time.perf_counter()
        for verdict in verdicts:
            self._intake.look()
            arrival = self._intake.take()
            ticket = self.spool.claim(arrival) if arrival is not None else None
            if ticket is None or ticket.name != verdict.result.name:
                raise RenderFailed(f"The jobs of the benchmark are not in order: see {self.spool.root}")
            self.spool.read_request(ticket)
            ticket.save_state(self._state)
            ticket.begin_attempt()
            ticket.save_picture(0, "png", PICTURE)
            ticket.log("job.done", {"name": ticket.name})
            self.spool.publish(ticket, verdict)
        return time.perf_counter() - begin


# The floor


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
    "fsync": _sync,
    "write": _write,
    "write_unsynced": _write_unsynced,
    "append": _append,
}


_Calls = list[tuple[Callable[..., None], tuple[Any, ...]]]


class Floor:
    """What one job does to the disk, done again and again in a spool of its own, with nothing around it."""

    def __init__(self, folder: Path) -> None:
        self._root = folder / "floor"
        self._next = 0
        self.example = folder / "recorded" / "done" / Path(_file(1)).stem
        """The job that was recorded."""
        self._recorded = self._record(folder / "recorded")
        self.calls = len(self._recorded)
        self.fsyncs = sum(name in ("fsync", "write") for name, _ in self._recorded)
        for name in ("working", "done"):
            (self._root / name).mkdir(parents=True)

    def _record(self, root: Path) -> list[tuple[str, tuple[Any, ...]]]:
        """The calls of the second of two jobs: paths relative to the root, with ``{id}`` and ``{name}`` in them."""
        fill(root / "inbox", range(2))
        heard: list[Call] = []
        with Daemon(root, Disk(heard.append)) as daemon:
            daemon.do(1)
            begin = len(heard)
            daemon.do(1)
            end = len(heard)
        id, name = daemon.ended[1], Path(_file(1)).stem

        def opened(path: Path) -> str:
            return str(path.relative_to(root)).replace(id, "{id}").replace(name, "{name}")

        calls: list[tuple[str, tuple[Any, ...]]] = []
        for call in heard[begin:end]:
            path = opened(call.path)
            last, values = calls[-1] if calls else ("", ("",))
            match call.name:
                case "write":
                    calls[-1] = ("write_unsynced", (path, call.data))
                case "fsync" if last == "write_unsynced" and values[0] == path:
                    calls[-1] = ("write", values)
                case "append":
                    calls.append(("append", (path, call.data)))
                case "rename":
                    assert call.target is not None
                    calls.append(("rename", (path, opened(call.target))))
                case other:
                    calls.append((other, (path,)))
        return [call for call in calls if "health.json" not in call[1][0]]

    def prepare(self, jobs: int) -> _Calls:
        """The calls of so many jobs; their files lie in the inbox."""
        numbers = range(self._next, self._next + jobs)
        self._next += jobs
        fill(self._root / "inbox", numbers)
        calls: _Calls = []
        for number in numbers:
            id, name = f"20000101T000000Z-job-{number:07}-00000000", Path(_file(number)).stem
            for call, values in self._recorded:
                real = (f"{self._root}/{v}".format(id=id, name=name) if isinstance(v, str) else v for v in values)
                calls.append((_BARE[call], tuple(real)))
        return calls


def _make(calls: _Calls) -> float:
    begin = time.perf_counter()
    for call, values in calls:
        call(*values)
    return time.perf_counter() - begin


# What is measured


def against_the_floor(folder: Path, jobs: int, progress: Progress) -> dict[str, Any]:
    """Floor, spool and daemon in turns. ``ratio`` and ``daemon_ratio``: the median of theirs by the floor's rate."""
    floor = Floor(folder)
    _make(floor.prepare(BLOCK))
    for side in ("spool", "daemon"):
        fill(folder / side / "inbox", range(jobs + BLOCK))
    seconds: dict[str, list[float]] = {"floor": [], "spool": [], "daemon": []}
    cpu_s = 0.0
    with BareSpool(folder / "spool", floor.example) as spool, Daemon(folder / "daemon") as daemon:
        spool.do(range(BLOCK))
        daemon.do(BLOCK)
        sides = list(seconds)
        for done in range(0, jobs, BLOCK):
            block = min(BLOCK, jobs - done)
            calls = floor.prepare(block)
            for side in sides:
                if side == "floor":
                    taken = _make(calls)
                elif side == "spool":
                    taken = spool.do(range(BLOCK + done, BLOCK + done + block))
                else:
                    begin = time.process_time()
                    taken = daemon.do(block)
                    cpu_s += time.process_time() - begin
                seconds[side].append(taken)
            sides = [*sides[1:], sides[0]]
            progress(done + block, jobs)
    rates = {side: round(jobs / sum(taken), 1) for side, taken in seconds.items()}

    def ratio(side: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds["floor"], seconds[side], strict=True)), 3)

    return {
        "file_system": file_system_of(folder),
        "jobs": jobs,
        "floor_jobs_per_s": rates["floor"],
        "spool_jobs_per_s": rates["spool"],
        "jobs_per_s": rates["daemon"],
        "ratio": ratio("spool"),
        "daemon_ratio": ratio("daemon"),
        "cpu_us_per_job": round(1e6 * cpu_s / jobs),
        "calls_per_job": floor.calls,
        "fsyncs_per_job": floor.fsyncs,
    }


def many_against_few(folder: Path, waiting: int, jobs: int, progress: Progress) -> dict[str, Any]:
    """One daemon before a long inbox, one before a short one, in turns. ``ratio``: the rates of the long by the short.

    All that is done meanwhile for files whose turn is far counts against the long one.
    """
    fill(folder / "many" / "inbox", range(waiting))
    return {"waiting": waiting, **_in_turns(folder, min(jobs, waiting // 2), progress)}


def crowded_against_empty(folder: Path, results: int, jobs: int, progress: Progress) -> dict[str, Any]:
    """The same for two daemons before a short inbox, one of which has many results in its ``done/``."""
    fill(folder / "many" / "inbox", range(FEW + jobs + BLOCK))
    for number in range(results):
        (folder / "many" / "done" / f"old-{number}").mkdir(parents=True)
    return {"results": results, **_in_turns(folder, jobs, progress)}


def _in_turns(folder: Path, jobs: int, progress: Progress) -> dict[str, Any]:
    """Jobs of the spools ``many`` and ``few``, in turns; what is taken from the latter's inbox is put back."""
    fill(folder / "few" / "inbox", range(FEW))
    next_number = FEW
    with Daemon(folder / "few") as few, Daemon(folder / "many") as many:
        sides = {"few": few, "many": many}
        first_claim_s = many.do(1)
        few.do(1)
        seconds = dict.fromkeys(sides, 0.0)
        claims: dict[str, list[float]] = {name: [] for name in sides}
        rounds = max(1, jobs // BLOCK)
        for round_ in range(rounds):
            fill(folder / "few" / "inbox", range(next_number, next_number + BLOCK))
            next_number += BLOCK
            few.loop.intake.look_afresh()
            for name in sides if round_ % 2 else reversed(sides):
                seconds[name] += sides[name].do(BLOCK - 1)
                claims[name].append(sides[name].do_one())
            progress((round_ + 1) * BLOCK, rounds * BLOCK)
    claim_us = {name: round(1e6 * statistics.median(taken)) for name, taken in claims.items()}
    done = rounds * (BLOCK - 1)
    return {
        "file_system": file_system_of(folder),
        "jobs": done,
        "first_claim_s": round(first_claim_s, 2),
        "few_jobs_per_s": round(done / seconds["few"], 1),
        "jobs_per_s": round(done / seconds["many"], 1),
        "ratio": round(seconds["few"] / seconds["many"], 3),
        "claim_us": claim_us["many"],
        "few_claim_us": claim_us["few"],
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }

"""The engine in a supervised child process: whatever it does, the daemon lives on."""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from darkroom.config import Config
from darkroom.engine.memory.host import free_bytes, oom_kills
from darkroom.errors import DarkroomError, EngineDied, EngineKilled, EngineStalled, MachineError, OutOfMemory
from darkroom.events import Alive, Event, Fallback, Loaded, Picture
from darkroom.executors.messages import Ended, Next, Ready, Setup, Stop, Work
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.processes import resident_bytes

ALIVE_S = 0.1
"""How often ``run`` yields while the engine is silent, in seconds."""

_KEPT_LINES = 60

_ENVIRONMENT = {"GOMP_SPINCOUNT": "2000", "MALLOC_ARENA_MAX": "1"}
"""Torch's threads spin only a moment while they wait for each other, then sleep. Left to spin long, a picture took 17
times as long beside another program that wanted the same two cores (measured: 76 s against 4.4 s for four); never to
spin costs half the speed on a quiet machine (5.8 s against 2.7 s for six).

One heap for all threads: those that load a model would each get one of their own, which is never given back."""


class LocalExecutor:
    """Starts the child at the first job, and again after it died.

    ``engine`` is ``module:name`` of what is called with the config in the child.
    """

    def __init__(self, config: Config, engine: str = "darkroom.engine.render:Engine") -> None:
        self._config = config
        self._engine = engine
        self._child: _Child | None = None
        self._expected: tuple[Job, ...] = ()
        self._too_large: set[tuple[str, int, int]] = set()
        """Models and sizes that did not fit as they were asked for into a new process either."""

    @property
    def pid(self) -> int | None:
        """The child's process id; None where there is no child."""
        return self._child.process.pid if self._child is not None and self._child.alive() else None

    def start(self) -> None:
        """Start the child if there is none, or if it has done its share, without waiting for it."""
        if self._child is not None and self._child.alive() and not self._worn(self._child):
            return
        self.close()
        self._child = _Child(Setup(self._engine, self._config))

    def expect(self, jobs: Sequence[Job]) -> None:
        """As ``Executor.expect``."""
        self._expected = tuple(jobs)

    def announce(self, job: Job) -> None:
        """As ``Executor.announce``."""
        if self._child is not None:
            with contextlib.suppress(MachineError):  # whoever runs a job there will hear of it
                self._child.send(Next(job))

    def nudge(self) -> None:
        """As ``Executor.nudge``."""
        child = self._child
        if child is not None:
            child.nudge()

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        """As ``Executor.run``. Raises EngineDied, EngineStalled, or what the engine raised."""
        changes = self._child is not None and self._child.model not in (None, job.model)
        if changes and self._config.engine.recycle_on_model_change:
            self.close()
        self.start()
        assert self._child is not None
        child, made, over = self._child, set(skip), False
        kind = (job.model, job.width, job.height)
        may_be_worn = kind not in self._too_large
        self._too_large.discard(kind)
        try:
            expected, self._expected = self._expected, ()
            child.give(Work(job, skip, dict(images), expected))
            yield Alive()
            silent_s = 0.0  # while we listen, that is
            while not over:
                begin = time.monotonic()
                message = child.receive(ALIVE_S)
                silent_s = silent_s + time.monotonic() - begin if message is None else 0.0
                if silent_s > self._config.engine.stall_s:
                    raise EngineStalled(
                        f"The engine made no step for {self._config.engine.stall_s:g} s and was killed",
                        trace=child.said(),
                    )
                match message:
                    case Fallback(lossless=False) | Ended(OutOfMemory()) if child.jobs > 1 and may_be_worn:
                        self._kill()
                        child = self._child = _Child(Setup(self._engine, self._config))
                        child.give(Work(job, frozenset(made), dict(images)))
                        yield _renewed(message)
                    case Ended(error):
                        over = True
                        if isinstance(error, OutOfMemory):
                            self._too_large.add(kind)
                            self._kill()  # its memory is full of gaps and of what libraries keep; a new one has none
                            self.start()
                        if error is not None:
                            raise error
                    case None | Ready():
                        yield Alive()
                    case Loaded():
                        self._insist_on(message.device)
                        yield message
                    case Picture():
                        made.add(message.index)
                        yield message
                    case Fallback(lossless=False):
                        self._too_large.add(kind)
                        yield message
                    case _:
                        yield message
        except MachineError:
            self._kill()
            over = True
            raise
        finally:
            if not over:
                self._interrupt(child)

    def _worn(self, child: _Child) -> bool:
        """Whether it has done so many jobs, or fills so much memory, that a fresh one is better."""
        most = self._config.engine.recycle_after_jobs
        limit = self._config.engine.recycle_above_bytes
        if 0 < most <= child.jobs:
            return True
        return limit > 0 and child.jobs > 0 and (resident_bytes(child.process.pid) or 0) > limit

    def close(self) -> None:
        """End the child."""
        self._kill()

    def _insist_on(self, device: str) -> None:
        """A GPU that served is not exchanged for the CPU, a hundred times slower, when it fails."""
        kind = device.partition(" ")[0]
        settings = self._config.engine
        if settings.device == "auto" and kind in ("cuda", "mps"):
            settings = settings.model_copy(update={"device": kind})
            self._config = self._config.model_copy(update={"engine": settings})

    def _interrupt(self, child: _Child) -> None:
        """Stop the job at its next step; a child that takes too long is killed."""
        deadline = time.monotonic() + self._config.engine.stop_s
        try:
            child.send(Stop())
            while (left := deadline - time.monotonic()) > 0:
                if isinstance(child.receive(left), Ended):
                    return
        except MachineError:
            pass
        self._kill()

    def _kill(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _Child:
    """The process and its pipe."""

    def __init__(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "darkroom.executors.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                env=_ENVIRONMENT | os.environ,
            )
        self.kills = oom_kills()
        self.jobs = 0
        self.model: str | None = None
        """That of the last job."""
        self.pipe: Connection = Connection(ours.detach())
        self._nudge, self._nudged = socket.socketpair()
        self._poll = select.poll()
        for end in (self._nudge, self._nudged):
            end.setblocking(False)
        for source in (self.pipe, self._nudged):
            self._poll.register(source, select.POLLIN)
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._reader = threading.Thread(target=self._read, name="engine-output", daemon=True)
        self._reader.start()
        self.send(setup)

    def _read(self) -> None:
        """What libraries print belongs into the report of a failure, not between the daemon's log lines."""
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._lines.append(line.decode("utf-8", "replace"))

    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str | None:
        """The last lines that the child printed."""
        return "".join(self._lines) or None

    def send(self, message: Any) -> None:
        """Raises EngineDied."""
        try:
            self.pipe.send(message)
        except OSError:
            raise self._death() from None

    def give(self, work: Work) -> None:
        """A job. Raises EngineDied."""
        self.jobs += 1
        self.model = work.job.model
        self.send(work)

    def nudge(self) -> None:
        """End the wait for a message that is on, or the next one."""
        with contextlib.suppress(OSError):  # full: it does not wait; closed: nobody does
            self._nudge.send(b"\0")

    def receive(self, timeout: float) -> Any:
        """The next message, None after ``timeout`` seconds without one, or where a nudge came. Raises EngineDied."""
        try:
            ready = {end for end, _ in self._poll.poll(1000 * timeout)}
            if self._nudged.fileno() in ready:
                self._nudged.recv(4096)
            return self.pipe.recv() if self.pipe.fileno() in ready else None
        except (EOFError, OSError):
            raise self._death() from None
        except Exception as error:
            raise EngineDied(f"The engine said something unreadable: {error}", trace=self.said()) from None

    def _death(self) -> DarkroomError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
        self._reader.join(1)
        kills = oom_kills()
        by_kernel = kills is not None and self.kills is not None and kills > self.kills
        how = f"The engine's process {_how(self.process.returncode)}"
        if not (by_kernel and self.process.returncode == -signal.SIGKILL):
            return EngineDied(how, trace=self.said())
        free = free_bytes()
        there = "" if free is None else f"; {free >> 20:,} MiB are free without it"
        return EngineKilled(f"{how}{there}", trace=self.said())

    def end(self) -> None:
        """Kill it, and wait until the system has taken it back."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for end in (self.pipe, self._nudge, self._nudged):
            end.close()
        self._reader.join(1)


def _renewed(said: Fallback | Ended) -> Fallback:
    """What became of a process that had done jobs before, and would make this one's pictures smaller, or none."""
    because, before = (said.because, said.memory_before) if isinstance(said, Fallback) else (str(said.error), None)
    return Fallback("new_process", because, lossless=True, memory_before=before)


def _how(code: int | None) -> str:
    if code is None:
        return "closed its pipe and does not end"
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    killer = ": the kernel's out-of-memory killer, or somebody, killed it" if code == -signal.SIGKILL else ""
    return f"was ended by signal {name}{killer}"

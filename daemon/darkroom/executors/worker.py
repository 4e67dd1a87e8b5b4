"""The child process: an engine at the end of a pipe. Started by ``local`` as ``python -m darkroom.executors.worker``.

The process ends when the pipe does: a daemon that died takes its engine with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from darkroom.errors import DarkroomError, RenderFailed
from darkroom.executors.base import Engine, perform
from darkroom.executors.messages import Ended, Next, Ready, Setup, Stop, Work


class Worker:
    """Takes work from the pipe and gives events back."""

    def __init__(self, pipe: Connection, engine: Engine) -> None:
        self.pipe = pipe
        self.engine = engine
        self.work: queue.SimpleQueue[Work] = queue.SimpleQueue()
        self.stop = threading.Event()

    def listen(self) -> None:
        """Read the pipe, in a thread of its own: Stop and the daemon's end are heard in the middle of a step."""
        while True:
            try:
                message = self.pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            match message:
                case Work():
                    self.stop.clear()
                    self.work.put(message)
                case Next(job):
                    self.engine.announce(job)
                case Stop():
                    self.stop.set()

    def run(self, idle_unload_s: float, preload: bool) -> None:
        """One job after the other, for ever; after so many seconds without one the engine gives its memory back."""
        self.pipe.send(Ready())
        if preload:
            self._prepare()
        while True:
            try:
                work = self.work.get(timeout=idle_unload_s or None)
            except queue.Empty:
                self.engine.close()
                work = self.work.get()
            self.pipe.send(Ended(self._perform(work)))

    def _prepare(self) -> None:
        """Until the first job comes. What goes wrong goes wrong for that job once more, which can say so."""
        prepared = False
        with contextlib.suppress(Exception):
            self.engine.prepare(lambda: not self.work.empty())
            prepared = True
        if not prepared:  # and the exception is gone, with what its traceback held
            self.engine.close()

    def _perform(self, work: Work) -> DarkroomError | None:
        try:
            if work.expected:
                self.engine.expect(work.expected)
            for event in perform(self.engine, work.job, work.skip, self.stop.is_set, work.images):
                self._send(event)
        except DarkroomError as error:
            return error
        return None

    def _send(self, event: Any) -> None:
        """Raises RenderFailed for what cannot be pickled; a broken pipe ends the process."""
        try:
            self.pipe.send(event)
        except OSError:
            os._exit(0)
        except Exception:
            raise RenderFailed("The engine said something unreadable", trace=traceback.format_exc()) from None


def _refuse(pipe: Connection, error: DarkroomError) -> None:
    """Answer the first job with what is wrong with the engine, and end."""
    with contextlib.suppress(EOFError, OSError):
        while not isinstance(pipe.recv(), Work):
            continue
        pipe.send(Ended(error))


def _die_with_parent() -> None:
    """On Linux also ask the kernel, for a child that is deep in a library and hears nothing (PR_SET_PDEATHSIG)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def main() -> None:
    """Serve the pipe whose descriptor is the first argument."""
    _die_with_parent()
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon decides when its engine ends
    pipe: Connection = Connection(int(sys.argv[1]))
    setup: Setup = pipe.recv()
    module, _, name = setup.engine.partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), name)(setup.config)
    except DarkroomError as error:
        _refuse(pipe, error)
        return
    gc.freeze()  # what was imported stays: to look through it each time that memory is freed took 0.3 s
    preload = setup.config.engine.preload and not pipe.poll()  # a job that waits is not to wait longer
    worker = Worker(pipe, engine)
    threading.Thread(target=worker.listen, name="listen", daemon=True).start()
    worker.run(setup.config.engine.idle_unload_s, preload)


if __name__ == "__main__":
    main()

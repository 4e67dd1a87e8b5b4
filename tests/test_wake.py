"""The pipe by which a sleeping loop is woken."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from darkroom.intake import Waker

FORMERLY_TOO_MANY = 1024
"""From this number on a descriptor is none for ``select``."""


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def test_a_sleeper_is_woken_by_a_thread_and_beforehand(waker: Waker) -> None:
    waker.wake()
    waker.wake()
    assert waker.wait(60), "woken before it slept"
    assert not waker.wait(0), "once"
    thread = threading.Timer(0.05, waker.wake)
    thread.start()
    assert waker.wait(60)
    thread.join()


def test_a_sleeper_is_woken_by_a_signal() -> None:
    """In a process of its own, whose signals no library has had in hand."""
    script = """
import signal
from darkroom.intake import Waker
waker = Waker()
signal.signal(signal.SIGALRM, lambda *_: waker.wake())
signal.setitimer(signal.ITIMER_REAL, 0.05)
assert waker.wait(60)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_process_with_many_open_files_sleeps_and_wakes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FORMERLY_TOO_MANY + 100
    with contextlib.ExitStack() as stack:
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        last = 0
        while last < FORMERLY_TOO_MANY:
            last = os.dup(0)
            stack.callback(os.close, last)
        high = Waker()
        stack.callback(high.close)
        assert not high.wait(0)
        high.wake()
        assert high.wait(60)

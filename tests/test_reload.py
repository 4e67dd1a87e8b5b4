"""Reading the configuration again while the daemon runs, and what systemd hears of it and of an engine that hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.config import Config, load
from darkroom.executors import LocalExecutor
from darkroom.health import read
from darkroom.loop import Loop
from darkroom.reload import needs_another_engine, settled

HERE = Path(__file__).parent


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def running(loop: Loop) -> Iterator[Loop]:
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join(20)
        assert not thread.is_alive()


class File:
    """config.toml of a daemon."""

    def __init__(self, darkroom: Darkroom) -> None:
        self.path = darkroom.root.parent / "config.toml"
        self.root = darkroom.root
        self.write()

    def write(self, text: str = "") -> None:
        self.path.write_text(f'executor.kind = "fake"\noutput.page = false\nfolders.root = "{self.root}"\n{text}')


@pytest.fixture
def file(darkroom: Darkroom) -> File:
    written = File(darkroom)
    darkroom.config = load(written.path)
    return written


def reloaded(loop: Loop) -> None:
    loop.reload()
    loop.step()


def test_new_limits_and_models_count_from_the_next_job_on(darkroom: Darkroom, file: File, tmp_path: Path) -> None:
    with running(darkroom.loop(reread=lambda: load(file.path))) as loop:
        darkroom.drop("wide.json", width=512)
        until((darkroom.done / "wide").exists)
        darkroom.drop("other.json", model="mine")
        until((darkroom.failed / "other").exists)
        file.write(f'[limits]\nmax_width = 256\n[models.mine]\npath = "{tmp_path}"\n')
        loop.reload()
        until(lambda: "config.reloaded" in darkroom.log.events())
        darkroom.drop("wider.json", width=512)
        until((darkroom.failed / "wider").exists)
        assert "at most 256" in darkroom.error("wider")["message"]
        assert "mine" in str(loop.work.reader.catalog.names())


def test_a_configuration_with_a_fault_is_refused_and_the_old_one_stays(darkroom: Darkroom, file: File) -> None:
    with running(darkroom.loop(reread=lambda: load(file.path))) as loop:
        until(lambda: "daemon.ready" in darkroom.log.events())
        file.write("[limits]\nmax_widht = 256\n")
        loop.reload()
        until(lambda: "config.refused" in darkroom.log.events())
        assert "did you mean max_width?" in darkroom.log.of("config.refused")[0]["why"]
        until(lambda: (health := read(darkroom.root)) is not None and health.config_error is not None)
        darkroom.drop("cat.json", width=512)
        until((darkroom.done / "cat").exists)
        file.write()
        loop.reload()
        until(lambda: (health := read(darkroom.root)) is not None and health.config_error is None)


def test_other_folders_wait_for_a_restart_and_the_rest_is_taken(darkroom: Darkroom, file: File) -> None:
    loop = darkroom.loop(reread=lambda: load(file.path))
    loop.spool.open()
    text = file.path.read_text().replace(str(darkroom.root), str(darkroom.root) + "2")
    file.path.write_text(text + "[limits]\nmax_width = 256\n")
    reloaded(loop)
    assert "[folders]" in (loop.health.report.config_error or "")
    assert "[folders]" in darkroom.log.of("config.waits")[0]["why"]
    assert loop.config.folders.root == darkroom.root
    assert loop.spool.limits.max_width == 256
    assert not Path(str(darkroom.root) + "2").exists()
    loop.spool.close()


def test_the_engine_is_replaced_only_where_it_was_made_from_something_else(
    darkroom: Darkroom, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    made: list[Config] = []

    def make(config: Config) -> LocalExecutor:
        made.append(config)
        return LocalExecutor(config, "engines:Fast")

    loop = darkroom.loop(make(darkroom.config), reread=lambda: load(file.path), make_executor=make)
    loop.spool.open()
    try:
        loop.executor.start()
        first = loop.executor.pid
        file.write("[intake]\nrescan_s = 9\n[limits]\nmax_count = 3\n")
        reloaded(loop)
        assert loop.executor.pid == first
        assert loop.intake.rescan_s == 9
        file.write("[engine]\nthreads = 1\n")
        reloaded(loop)
        assert loop.executor.pid not in (None, first)
        assert made[-1].engine.threads == 1
        assert not Path(f"/proc/{first}").exists() or sys.platform != "linux"
    finally:
        loop.executor.close()
        loop.spool.close()


def test_a_job_that_runs_is_finished_first(darkroom: Darkroom, file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    executor = LocalExecutor(darkroom.config, "engines:Slow")
    darkroom.drop("long.json", num_inference_steps=12)
    loop = darkroom.loop(executor, reread=lambda: load(file.path))
    with running(loop):
        until(lambda: list(darkroom.working.glob("*/progress.json")))
        file.write("[limits]\nmax_steps = 3\n[engine]\nthreads = 1\n")
        loop.reload()
        until((darkroom.done / "long").exists)
        until(lambda: "config.reloaded" in darkroom.log.events())
    events = darkroom.log.events()
    assert events.index("job.done") < events.index("config.reloaded")
    assert darkroom.result("long")["attempts"] == 1


def test_a_new_preset_has_its_folder_at_once(darkroom: Darkroom, file: File) -> None:
    loop = darkroom.loop(reread=lambda: load(file.path))
    loop.spool.open()
    file.write("[presets.portrait]\nsteps = 3\n")
    reloaded(loop)
    assert (darkroom.inbox / "portrait").is_dir()
    loop.spool.close()


def test_the_page_is_switched_on_and_off(darkroom: Darkroom, file: File) -> None:
    loop = darkroom.loop(reread=lambda: load(file.path))
    loop.spool.open()
    assert loop.onlookers.page is None
    file.path.write_text(file.path.read_text().replace("page = false", "page = true"))
    reloaded(loop)
    assert loop.onlookers.page is not None
    assert loop.work.publisher.page is loop.onlookers.page
    loop.spool.close()


def test_what_concerns_the_engine_and_what_waits() -> None:
    old = Config()
    assert not needs_another_engine(old, Config(limits={"max_width": 512}, log={"level": "debug"}))
    assert needs_another_engine(old, Config(models={"default": "other"}))
    assert needs_another_engine(old, Config(output={"previews": False}))
    new, waiting = settled(old, Config(folders={"root": "/elsewhere"}, limits={"max_width": 512}))
    assert waiting == ["folders"]
    assert new.folders == old.folders
    assert new.limits.max_width == 512


# ---------------------------------------------------------------- on a real socket


class Systemd:
    """The other end of the notify socket: each message with its time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._over = False
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over:
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.heard += [(time.monotonic(), line) for line in message.split("\n")]

    def lines(self) -> list[str]:
        return [line for _, line in self.heard]

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listener = Systemd(tmp_path / "notify")
    yield listener
    listener.close()


def test_the_real_daemon_tells_systemd_of_its_whole_life(darkroom: Darkroom, file: File, systemd: Systemd) -> None:
    """READY, STATUS, WATCHDOG, RELOADING with its time and READY after it, STOPPING, in this order."""
    environ = os.environ | {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "800000"}
    environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    environ.pop("WATCHDOG_PID", None)
    command = [sys.executable, "-m", "darkroom", "run", "--config", str(file.path)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: "READY=1" in systemd.lines())
        until(lambda: systemd.lines().count("WATCHDOG=1") >= 4)
        darkroom.drop("cat.json")
        until((darkroom.done / "cat").exists)
        until(lambda: "STATUS=working" in systemd.lines())
        file.write("[limits]\nmax_widht = 1\n")
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        process.send_signal(signal.SIGHUP)
        until(lambda: systemd.lines().count("READY=1") == 2)
        at = systemd.lines().index("RELOADING=1")
        stamp = int(systemd.lines()[at + 1].removeprefix("MONOTONIC_USEC="))
        assert before <= stamp <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        ready = systemd.lines().index("READY=1", at)
        assert "no such key; did you mean max_width?" in systemd.lines()[ready + 1]
        file.write("[limits]\nmax_width = 128\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: systemd.lines().count("READY=1") == 3)
        darkroom.drop("wide.json", width=512)
        until((darkroom.failed / "wide").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        output = process.communicate()[0].decode()
    lines = systemd.lines()
    assert lines.index("READY=1") < lines.index("WATCHDOG=1", lines.index("READY=1")) < lines.index("RELOADING=1")
    assert lines.index("RELOADING=1") < lines.index("STOPPING=1")
    events = [json.loads(line)["event"] for line in output.splitlines()]
    assert [event for event in events if event.startswith("config.")] == ["config.refused", "config.reloaded"]


def test_a_hung_engine_stops_the_pings_until_it_is_killed(
    darkroom: Darkroom, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")  # a ping each 0.75 s
    darkroom.configure(engine={"stall_s": 4.0}, executor={"max_attempts": 1})
    darkroom.drop("cat.json")
    with running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Hanging"))):
        until(lambda: list(darkroom.working.glob("*/progress.json")))
        hung_at = time.monotonic()
        until((darkroom.failed / "cat").exists)
        killed_at = time.monotonic()
        until(lambda: any(at > killed_at for at in pings(systemd)))
    assert darkroom.error("cat")["reason"] == "engine-stalled"
    assert any(hung_at < at < killed_at - 1.4 for at in pings(systemd)), "a step may take its time"
    assert max(after - before for before, after in pairwise(pings(systemd))) > 1.3, "then nothing is heard of it"


def pings(systemd: Systemd) -> list[float]:
    return [at for at, line in systemd.heard if line == "WATCHDOG=1"]


def test_without_a_job_an_engine_may_be_silent(darkroom: Darkroom) -> None:
    loop = darkroom.loop()
    assert loop.work.silent_s() == 0.0
    darkroom.drop("cat.json")
    loop.once = True
    loop.run()
    assert loop.work.silent_s() == 0.0

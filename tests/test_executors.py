"""The supervised child: it may crash, hang, lie and linger; the daemon lives on (faults 52, 55, 58–62)."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Darkroom
from darkroom.errors import DeviceGone, EngineDied, EngineStalled, OutOfMemory, RenderFailed
from darkroom.events import Alive, Ending, Event, Fallback, Finished, Loaded, Picture, Step, Warned
from darkroom.executors import LocalExecutor
from darkroom.job import Job, parse_fields, resolve
from darkroom.models.catalog import Catalog


def job_of(darkroom: Darkroom, **fields: object) -> Job:
    request = parse_fields({"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 3, "seed": 1, **fields})
    return resolve(request, darkroom.config, Catalog(darkroom.config.models), "test")


@pytest.fixture(autouse=True)
def _engines_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
def started() -> Iterator[list[LocalExecutor]]:
    executors: list[LocalExecutor] = []
    yield executors
    for executor in executors:
        executor.close()


def executor_of(darkroom: Darkroom, engine: str, started: list[LocalExecutor], **settings: object) -> LocalExecutor:
    darkroom.configure(engine=settings)
    executor = LocalExecutor(darkroom.config, f"engines:{engine}")
    started.append(executor)
    return executor


def spoken(events: Iterator[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Alive)]


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pid: int, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return gone(pid)


def wait_for(file: Path, text: str = "", seconds: float = 60.0) -> bool:
    """Whether it comes to be there and to have that in it."""
    end = time.monotonic() + seconds
    while not (file.exists() and text in file.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    return file.exists() and text in file.read_text()


def test_events_come_through_in_order_and_the_child_is_kept(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Fast", started)
    events = spoken(executor.run(job_of(darkroom, count=2)))
    kinds = [Loaded, Step, Step, Step, Picture, Step, Step, Step, Ending, Picture, Finished]
    assert [type(event) for event in events] == kinds
    pid = executor.pid
    assert len(spoken(executor.run(job_of(darkroom), frozenset({0})))) == 2
    assert executor.pid == pid


def test_an_engine_hears_of_the_next_job_while_it_is_at_one(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Told", started)
    executor.announce(job_of(darkroom))  # nobody is there to hear it
    said = []
    for event in executor.run(job_of(darkroom)):
        if isinstance(event, Ending):
            executor.announce(job_of(darkroom, prompt="a blue square"))
        if isinstance(event, Warned):
            said.append((event.code, event.message))
    assert said == [("next", "a blue square")]


def test_a_dead_engine_is_told_with_its_signal_and_last_words(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Crashing", started)
    marker = tmp_path / "crashes"
    marker.write_text("")
    job = job_of(darkroom, prompt="1", negative_prompt=str(marker))
    with pytest.raises(EngineDied, match="SIGSEGV") as caught:
        spoken(executor.run(job))
    assert "about to crash" in (caught.value.trace or "")
    assert executor.pid is None
    assert isinstance(spoken(executor.run(job))[-1], Finished)


def test_a_hanging_engine_is_killed(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Hanging", started, stall_s=3)
    events = executor.run(job_of(darkroom))
    while not isinstance(next(events), Step):
        pass
    pid = executor.pid
    assert pid is not None
    with pytest.raises(EngineStalled, match=r"no step for 3 s"):
        spoken(events)
    assert gone(pid)


@pytest.mark.parametrize("on_oom", ["degrade", "fail"])
def test_only_a_process_that_has_done_nothing_before_makes_a_picture_smaller_or_says_that_none_fits(
    darkroom: Darkroom, started: list[LocalExecutor], on_oom: str
) -> None:
    executor = executor_of(darkroom, "Filling", started)
    spoken(executor.run(job_of(darkroom)))
    first = executor.pid
    events = spoken(executor.run(job_of(darkroom, count=3, on_oom=on_oom)))
    assert [(event.rung, event.because, event.lossless) for event in events if isinstance(event, Fallback)] == [
        ("new_process", "no room", True)
    ]
    assert [event.index for event in events if isinstance(event, Picture)] == [0, 1, 2]
    assert first is not None and gone(first)
    assert executor.pid not in (None, first)


@pytest.mark.parametrize("on_oom", ["degrade", "fail"])
def test_a_process_that_has_done_nothing_before_is_not_replaced_for_want_of_memory(
    darkroom: Darkroom, started: list[LocalExecutor], on_oom: str
) -> None:
    executor = executor_of(darkroom, "Cramped", started)
    events = executor.run(job_of(darkroom, on_oom=on_oom))
    if on_oom == "fail":
        with pytest.raises(OutOfMemory, match="no room"):
            spoken(events)
    else:
        assert [event.rung for event in spoken(events) if isinstance(event, Fallback)] == ["smaller_picture"]
        again = executor.run(job_of(darkroom, on_oom=on_oom))  # a new one would do no better
        assert [event.rung for event in spoken(again) if isinstance(event, Fallback)] == ["smaller_picture"]


def test_a_silent_engine_still_lets_the_loop_look_around(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Hanging", started, stop_s=0.2)
    events = executor.run(job_of(darkroom))
    seen = [next(events) for _ in range(40)]
    assert sum(isinstance(event, Alive) for event in seen) >= 10
    events.close()


def test_foreign_exceptions_cross_the_border_as_ours(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Raising", started)
    with pytest.raises(RenderFailed, match="Local: the shutter is stuck") as caught:
        spoken(executor.run(job_of(darkroom)))
    assert "engines.py" in (caught.value.trace or "")
    assert executor.pid is not None


def test_what_cannot_be_pickled_fails_the_job_only(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Unpicklable", started)
    with pytest.raises(RenderFailed, match="unreadable"):
        spoken(executor.run(job_of(darkroom)))
    assert executor.pid is not None


def test_an_engine_that_cannot_be_made_says_why(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Unbuildable", started)
    with pytest.raises(EngineDied) as caught:
        spoken(executor.run(job_of(darkroom)))
    assert "no such card" in (caught.value.trace or "")


def test_closing_the_events_stops_at_the_next_step_and_keeps_the_child(
    darkroom: Darkroom, started: list[LocalExecutor]
) -> None:
    executor = executor_of(darkroom, "Slow", started)
    events = executor.run(job_of(darkroom, num_inference_steps=150))
    while not isinstance(next(events), Step):
        pass
    pid = executor.pid
    events.close()
    assert executor.pid == pid
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)


def test_a_child_that_does_not_stop_in_time_is_killed(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Hanging", started, stop_s=0.3)
    events = executor.run(job_of(darkroom))
    while not isinstance(next(events), Step):
        pass
    pid = executor.pid
    assert pid is not None
    events.close()  # or it would not return
    assert gone(pid)


def test_the_child_ignores_the_terminals_interrupt(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "Slow", started)
    events = executor.run(job_of(darkroom))
    while not isinstance(next(events), Step):
        pass
    assert executor.pid is not None
    os.kill(executor.pid, signal.SIGINT)
    os.kill(executor.pid, signal.SIGTERM)
    assert isinstance(spoken(events)[-1], Finished)


PARENT = """
import os, sys, time
from pathlib import Path
from darkroom.config import Config
from darkroom.executors import LocalExecutor
from darkroom.job import Job
executor = LocalExecutor(Config(), "engines:" + sys.argv[1])
executor.start()
job = Job.model_validate_json(sys.argv[2])
for event in executor.run(job):
    if type(event).__name__ == "Step":
        print(executor.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("engine", ["Slow", "Hanging"])
def test_the_child_ends_when_its_parent_is_killed(darkroom: Darkroom, engine: str) -> None:
    job = job_of(darkroom, num_inference_steps=150).model_dump_json()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, engine, job], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
        assert not gone(child)
        parent.kill()
        parent.wait()
    assert wait_until_gone(child)


def test_an_engine_that_idles_gives_its_memory_back_and_can_be_used_again(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Idle", started, idle_unload_s=0.2, cache_dir=tmp_path)
    spoken(executor.run(job_of(darkroom)))
    pid = executor.pid
    assert wait_for(tmp_path / "closed")
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)
    assert executor.pid == pid


def test_with_idle_unload_at_zero_it_keeps_its_memory(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Idle", started, idle_unload_s=0, cache_dir=tmp_path)
    spoken(executor.run(job_of(darkroom)))
    time.sleep(0.5)
    assert not (tmp_path / "closed").exists()


def test_an_engine_that_is_to_get_ready_does_so_until_a_job_comes(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Preparing", started, preload=True, cache_dir=tmp_path)
    executor.start()
    assert wait_for(tmp_path / "prepared", "begun")
    for _ in range(2):
        assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)
    assert (tmp_path / "prepared").read_text() == "begun\nended\n"
    assert not (tmp_path / "closed").exists()


@pytest.mark.parametrize(("preload", "started_before"), [(False, True), (True, False)])
def test_nothing_is_got_ready_unasked_or_while_a_job_waits(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path, preload: bool, started_before: bool
) -> None:
    executor = executor_of(darkroom, "Prepared", started, preload=preload, cache_dir=tmp_path)
    if started_before:
        executor.start()
        time.sleep(1)
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)
    assert not (tmp_path / "prepared").exists()


def test_an_engine_that_cannot_get_ready_gives_back_what_it_has_and_serves(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Unprepared", started, preload=True, cache_dir=tmp_path)
    executor.start()
    pid = executor.pid
    assert wait_for(tmp_path / "closed")
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)
    assert executor.pid == pid
    assert (tmp_path / "prepared").read_text() == "begun\n"


def test_what_left_memory_for_want_of_jobs_is_not_got_ready_again(
    darkroom: Darkroom, started: list[LocalExecutor], tmp_path: Path
) -> None:
    executor = executor_of(darkroom, "Prepared", started, preload=True, idle_unload_s=0.2, cache_dir=tmp_path)
    executor.start()
    assert wait_for(tmp_path / "closed")
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)
    (tmp_path / "closed").unlink()
    assert wait_for(tmp_path / "closed")
    assert (tmp_path / "prepared").read_text() == "ready\n"


def test_an_engine_that_did_its_share_of_jobs_is_replaced_between_two(
    darkroom: Darkroom, started: list[LocalExecutor]
) -> None:
    """Fault 63."""
    executor = executor_of(darkroom, "Fast", started, recycle_after_jobs=2)
    pids = []
    for _ in range(5):
        spoken(executor.run(job_of(darkroom)))
        pids.append(executor.pid)
    assert pids[0] == pids[1]
    assert pids[2] == pids[3]
    assert len(set(pids)) == 3


def test_an_engine_that_lacks_its_gpu_says_so_and_not_that_it_died(
    darkroom: Darkroom, started: list[LocalExecutor]
) -> None:
    """Fault 52."""
    executor = executor_of(darkroom, "OnACard", started)
    (darkroom.root / "gpu-gone").touch()
    with pytest.raises(DeviceGone, match="gone"):
        spoken(executor.run(job_of(darkroom)))
    (darkroom.root / "gpu-gone").unlink()
    assert isinstance(spoken(executor.run(job_of(darkroom)))[-1], Finished)


def test_a_gpu_that_served_is_not_exchanged_for_the_cpu(darkroom: Darkroom, started: list[LocalExecutor]) -> None:
    executor = executor_of(darkroom, "OnACard", started, device="auto")
    devices = []
    for _ in range(2):
        devices += [event.device for event in spoken(executor.run(job_of(darkroom))) if isinstance(event, Loaded)]
        executor.close()
    assert devices == ["cuda auto", "cuda cuda"]


def test_an_engine_that_has_grown_too_large_is_replaced_before_the_next_job(
    darkroom: Darkroom, started: list[LocalExecutor]
) -> None:
    """Fault 63."""
    first = executor_of(darkroom, "Growing", started)
    spoken(first.run(job_of(darkroom)))
    assert first.pid is not None
    resident = int(Path(f"/proc/{first.pid}/statm").read_text().split()[1]) * resource.getpagesize()
    executor = executor_of(darkroom, "Growing", started, recycle_above_bytes=resident + (96 << 20))
    pids = []
    for _ in range(6):
        spoken(executor.run(job_of(darkroom)))
        pids.append(executor.pid)
    assert pids[0] == pids[1], "two jobs fit"
    assert 2 <= len(set(pids)) <= 3, pids


@pytest.mark.parametrize(("asked", "engines"), [(False, 1), (True, 3)])
def test_an_engine_is_replaced_for_another_model_only_where_that_is_asked(
    darkroom: Darkroom, started: list[LocalExecutor], asked: bool, engines: int
) -> None:
    executor = executor_of(darkroom, "Fast", started, recycle_on_model_change=asked)
    pids = []
    for model in ("seedling", "seedling", "other", "seedling"):
        spoken(executor.run(job_of(darkroom).model_copy(update={"model": model})))
        pids.append(executor.pid)
    assert len(set(pids)) == engines

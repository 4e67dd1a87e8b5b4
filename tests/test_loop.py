"""A day of the daemon, with the fake executor or misbehaving engines in a real child."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Darkroom
from darkroom.config import Log
from darkroom.events import Event
from darkroom.executors import FakeExecutor, LocalExecutor, local
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.logs import make_logger
from darkroom.loop import Loop
from darkroom.spool import Call, Disk


@pytest.fixture(autouse=True)
def _engines_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


class Running:
    """A loop in a thread, stopped at the end."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.thread = threading.Thread(target=loop.run)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for it. The bound is for a test that would hang, not for a machine that is slow."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_dropped_prompt_becomes_a_picture_a_recipe_and_a_log(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", count=2)
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (1, 0)
    assert sorted(path.name for path in (darkroom.done / "cat").iterdir()) == [
        "cat-1.png",
        "cat-2.png",
        "contact-sheet.jpg",
        "log.jsonl",
        "request.json",
        "result.json",
    ]
    result = darkroom.result("cat")
    assert result["status"] == "done"
    assert result["original_name"] == "cat.json"
    assert [picture["seed"] for picture in result["pictures"]] == [7, 8]
    assert result["attempts"] == 1
    assert result["requested"] == {}
    events = [json.loads(line)["event"] for line in (darkroom.done / "cat" / "log.jsonl").read_text().splitlines()]
    assert events == ["job.claimed", "model.loaded", "picture.saved", "picture.saved", "job.done"]
    assert darkroom.names("working") == darkroom.names("inbox") == []


def test_every_broken_file_gets_its_verdict_and_the_next_is_taken(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"settle_s": 0.2})
    darkroom.drop("typo.json", {"prompt": "x", "widht": 64})
    darkroom.drop("broken.json", '{"prompt": "x",}')
    darkroom.drop("unknown.json", {"prompt": "x", "model": "seeding"})
    darkroom.drop("good.json")
    loop = darkroom.run_once()
    assert (loop.work.done, loop.work.failed) == (1, 3)
    typo = darkroom.error("typo")
    assert typo["reason"] == "invalid-request"
    assert typo["attempts"] == 0
    assert [(fault["field"], fault["line"], fault["hint"]) for fault in typo["errors"]] == [
        ("widht", 1, "did you mean width?")
    ]
    assert "line 1, column 16" in darkroom.error("broken")["message"]
    assert "seedling" in darkroom.error("unknown")["message"]
    for name in ("typo", "broken", "unknown"):
        assert sorted(path.name for path in (darkroom.failed / name).iterdir()) == [
            "error.json",
            "log.jsonl",
            "request.json",
            "result.json",
        ]


def test_a_published_result_dropped_again_makes_the_same_pictures(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", {"prompt": "x", "width": 64, "height": 64, "count": 3})
    darkroom.run_once()
    first = darkroom.result("cat")
    darkroom.drop("again.json", (darkroom.done / "cat" / "result.json").read_bytes())
    darkroom.run_once()
    again = darkroom.result("again")
    assert [picture["sha256"] for picture in again["pictures"]] == [picture["sha256"] for picture in first["pictures"]]
    assert again["job"] == first["job"]


def test_a_file_dropped_while_it_runs_is_claimed_at_once(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"rescan_s": 600})
    with Running(darkroom.loop()):
        until(lambda: "daemon.ready" in darkroom.log.events())
        time.sleep(0.2)
        darkroom.drop("cat.json")
        until((darkroom.done / "cat" / "result.json").exists)


def test_a_typo_is_refused_while_another_job_is_rendered(darkroom: Darkroom) -> None:
    executor = LocalExecutor(darkroom.config, "engines:Slow")
    darkroom.drop("long.json", num_inference_steps=150)
    with Running(darkroom.loop(executor)):
        until(lambda: "model.loaded" in darkroom.log.events())
        darkroom.drop("typo.json", {"promt": "x"})
        until((darkroom.failed / "typo" / "error.json").exists)
        assert not (darkroom.done / "long").exists()
    assert len(darkroom.names("working")) == 1


def test_an_engine_that_is_silent_does_not_keep_the_loop_from_what_comes(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "ALIVE_S", 3600.0)
    darkroom.configure(engine={"stop_s": 0.2}, intake={"rescan_s": 3600})
    darkroom.drop("long.json")
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Hanging"))):
        until(lambda: "model.loaded" in darkroom.log.events() or any(darkroom.working.glob("*/progress.json")))
        darkroom.drop(".typo", {"promt": "x"}).rename(darkroom.inbox / "typo.json")  # whole, so that it is told of once
        until((darkroom.failed / "typo" / "error.json").exists)


def test_stopping_leaves_the_job_and_the_next_start_goes_on_with_its_seed(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", {"prompt": "x", "num_inference_steps": 10, "count": 3, "width": 64, "height": 64})
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: "picture.saved" in darkroom.log.events())
    (folder,) = [path for path in darkroom.working.iterdir() if path.is_dir()]
    seed = json.loads((folder / "job.json").read_bytes())["job"]["seed"]
    picture = (folder / "cat-1.png").stat()
    assert not list(folder.glob("attempt.*"))

    darkroom.run_once()
    result = darkroom.result("cat")
    assert [record["seed"] for record in result["pictures"]] == [seed, seed + 1, seed + 2]
    assert result["attempts"] == 1
    assert (darkroom.done / "cat" / "cat-1.png").stat().st_mtime_ns == picture.st_mtime_ns


def test_an_engine_that_dies_twice_is_tried_a_third_time(darkroom: Darkroom, tmp_path: Path) -> None:
    marker = tmp_path / "crashes"
    marker.write_text("")
    darkroom.drop("cat.json", prompt="2", negative_prompt=str(marker))
    darkroom.run_once(LocalExecutor(darkroom.config, "engines:Crashing"))
    assert darkroom.result("cat")["attempts"] == 3


def test_the_third_death_is_the_last_and_the_next_job_runs(darkroom: Darkroom, tmp_path: Path) -> None:
    marker = tmp_path / "crashes"
    marker.write_text("")
    darkroom.drop("bad.json", prompt="99", negative_prompt=str(marker))
    darkroom.drop("good.json", prompt="0", negative_prompt=str(marker))
    darkroom.run_once(LocalExecutor(darkroom.config, "engines:Crashing"))
    error = darkroom.error("bad")
    assert error["reason"] == "engine-died"
    assert error["attempts"] == 3
    assert "SIGSEGV" in error["message"]
    assert "about to crash" in error["traceback"]
    assert darkroom.result("good")["status"] == "done"


def test_what_was_made_before_the_last_death_is_kept_and_the_rest_can_be_dropped_again(darkroom: Darkroom) -> None:
    darkroom.drop("whole.json", count=5)
    darkroom.run_once()
    darkroom.drop("cat.json", count=5)
    darkroom.run_once(LocalExecutor(darkroom.config, "engines:CrashingAfterOnePicture"))
    error, result = darkroom.error("cat"), json.loads((darkroom.failed / "cat" / "result.json").read_bytes())
    assert error["reason"] == "engine-died"
    assert error["status"] == result["status"] == "partial"
    assert [record["seed"] for record in result["pictures"]] == [7, 8, 9]  # one for each attempt, none made twice
    assert darkroom.log.events().count("picture.saved") == 5 + 3

    darkroom.drop("rest.json", (darkroom.failed / "cat" / "retry.json").read_bytes())
    darkroom.run_once()
    made = result["pictures"] + darkroom.result("rest")["pictures"]
    assert [record["sha256"] for record in made] == [
        record["sha256"] for record in darkroom.result("whole")["pictures"]
    ]


@pytest.mark.parametrize("left", [0, 20, -30], ids=["empty", "head", "all but its end"])
def test_a_picture_that_a_lying_disk_tore_is_made_again(darkroom: Darkroom, left: int) -> None:
    darkroom.drop("cat.json", count=4, num_inference_steps=3)
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: "picture.saved" in darkroom.log.events())
    (picture,) = darkroom.working.glob("*/cat-1.png")
    picture.write_bytes(picture.read_bytes()[:left])
    darkroom.run_once()
    assert "picture.damaged" in darkroom.log.events()
    assert [record["seed"] for record in darkroom.result("cat")["pictures"]] == [7, 8, 9, 10]


def test_a_job_whose_folder_somebody_removed_is_dropped_and_the_next_one_runs(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", num_inference_steps=20)
    darkroom.drop("dog.json", num_inference_steps=1)
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: "model.loaded" in darkroom.log.events())
        (folder,) = [path for path in darkroom.working.iterdir() if path.is_dir()]
        shutil.rmtree(folder)
        until((darkroom.done / "dog" / "result.json").exists)
    assert "job.vanished" in darkroom.log.events()
    assert darkroom.names("done") == ["dog"]


def test_a_hung_engine_is_a_verdict_of_its_own(darkroom: Darkroom) -> None:
    darkroom.configure(engine={"stall_s": 0.3}, executor={"max_attempts": 2})
    darkroom.drop("cat.json")
    darkroom.run_once(LocalExecutor(darkroom.config, "engines:Hanging"))
    assert darkroom.error("cat")["reason"] == "engine-stalled"
    assert darkroom.error("cat")["attempts"] == 2


def test_a_file_named_cancel_stops_the_job(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", num_inference_steps=150)
    with Running(darkroom.loop(LocalExecutor(darkroom.config, "engines:Slow"))):
        until(lambda: "model.loaded" in darkroom.log.events())
        (folder,) = [path for path in darkroom.working.iterdir() if path.is_dir()]
        (folder / "cancel").touch()
        until((darkroom.failed / "cat" / "error.json").exists)
    assert darkroom.error("cat")["reason"] == "cancelled"
    assert not (darkroom.failed / "cat" / "cancel").exists()


def test_pause_stops_claims_until_it_is_removed(darkroom: Darkroom) -> None:
    (darkroom.root / "PAUSE").touch()
    darkroom.drop("cat.json")
    loop = darkroom.loop()
    with Running(loop):
        until(lambda: loop.health.report.state == "paused")
        time.sleep(0.2)
        assert darkroom.names("inbox") == ["cat.json"]
        (darkroom.root / "PAUSE").unlink()
        until((darkroom.done / "cat" / "result.json").exists)


@pytest.mark.parametrize("name", ["mkdir", "create", "write", "fsync", "rename"])
def test_a_disk_that_fills_up_pauses_and_goes_on_by_itself(darkroom: Darkroom, name: str) -> None:
    trouble = 0

    def full(call: Call) -> None:
        nonlocal trouble
        if call.name == name and call.number > 30 and trouble < 2:
            trouble += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(4):
        darkroom.drop(f"cat{number}.json", count=2)
    loop = darkroom.loop(disk=Disk(full), once=True, first_pause_s=0.01)
    loop.run()
    assert trouble == 2
    assert (loop.work.done, loop.work.failed) == (4, 0)
    assert "spool.trouble" in darkroom.log.events()
    assert "spool.trouble_over" in darkroom.log.events()
    assert darkroom.names("working") == []


def test_notifications_that_fail_in_silence_are_noticed_and_begun_anew(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"rescan_s": 2})
    loop = darkroom.loop()
    deaf = loop.guard.watch.changed
    loop.guard.watch.changed = lambda _: None
    with Running(loop):
        until(lambda: "daemon.ready" in darkroom.log.events())
        loop.guard.watch.changed = deaf  # from the next beginning on
        until(lambda: loop.health.report.state == "idle")
        time.sleep(0.1)
        darkroom.drop("cat.json")
        until(lambda: loop.work.done == 1)
        until(lambda: loop.health.report.missed_events == 1)
        assert darkroom.log.of("watch.missed") == [{"level": "warning", "files": 1}]
        loop.intake.configure(10, 600)
        until(lambda: loop.intake.wait_s() > 60)  # so long is it to the next scan
        darkroom.drop("dog.json")
        until(lambda: loop.work.done == 2)
        assert loop.health.report.missed_events == 1


def test_an_inbox_made_anew_is_watched_anew(darkroom: Darkroom) -> None:
    """Fault 37."""
    with Running(darkroom.loop()):
        until(lambda: "daemon.ready" in darkroom.log.events())
        darkroom.inbox.rmdir()
        until(lambda: "inbox.gone" in darkroom.log.events())
        darkroom.inbox.mkdir()
        until(lambda: "inbox.found_again" in darkroom.log.events())
        darkroom.drop("cat.json")
        until((darkroom.done / "cat" / "result.json").exists)


def test_too_little_free_space_pauses_with_the_figures(darkroom: Darkroom) -> None:
    darkroom.configure(limits={"min_free_bytes": 1 << 60})
    darkroom.drop("cat.json")
    loop = darkroom.loop()
    with Running(loop):
        until(lambda: loop.health.report.state == "paused")
        assert "min_free_bytes" in (loop.health.report.why or "")
    assert darkroom.names("inbox") == ["cat.json"]


def test_three_hundred_files_at_once_all_run_in_order(darkroom: Darkroom) -> None:
    for number in range(300):
        darkroom.drop(f"{number:04}.json", {"prompt": "x", "width": 64, "height": 64, "num_inference_steps": 1})
    loop = darkroom.run_once()
    assert loop.work.done == 300
    started = [darkroom.result(f"{number:04}")["started_at"] for number in range(300)]
    assert started == sorted(started)


def test_a_paused_daemon_sleeps_although_files_wait(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json")
    (darkroom.root / "PAUSE").touch()
    loop = darkroom.loop()
    loop.spool.open()
    begin = time.monotonic()
    for _ in range(4):
        assert loop.step()
    assert time.monotonic() - begin >= 1
    (darkroom.root / "PAUSE").unlink()
    loop.once = True
    loop.main_loop()
    loop.shutdown()
    assert darkroom.names("done") == ["cat"]


def test_a_picture_with_a_recipe_is_made_again(darkroom: Darkroom) -> None:
    darkroom.drop("cat.json", count=2)
    darkroom.run_once()
    first = darkroom.done / "cat" / "cat-2.png"
    shutil.copy(first, darkroom.inbox / "again.PNG")
    darkroom.run_once()
    assert darkroom.names("done") == ["again", "cat"]
    assert darkroom.result("again")["pictures"][0]["seed"] == 8
    assert (darkroom.done / "again" / "again-1.png").read_bytes() == first.read_bytes()
    assert (darkroom.done / "again" / "request.png").read_bytes() == first.read_bytes()
    assert darkroom.result("again")["original_name"] == "again.PNG"


def test_a_picture_without_a_recipe_is_given_time_and_then_refused_with_the_reason(darkroom: Darkroom) -> None:
    darkroom.configure(intake={"settle_s": 0.3})
    Image.new("RGB", (8, 8)).save(darkroom.inbox / "holiday.jpg")
    begin = time.monotonic()
    darkroom.run_once()
    assert time.monotonic() - begin >= 0.3
    error = darkroom.error("holiday")
    assert error["reason"] == "invalid-request"
    assert "no recipe" in error["message"]
    assert (darkroom.failed / "holiday" / "request.jpg").exists()


def test_a_picture_over_its_limit_is_refused_unread(darkroom: Darkroom) -> None:
    darkroom.configure(limits={"max_picture_bytes": 1000}, intake={"settle_s": 0.2, "rescan_s": 0.1})
    (darkroom.inbox / "large.png").write_bytes(bytes(2000))
    darkroom.run_once()
    assert "max_picture_bytes" in darkroom.error("large")["errors"][0]["hint"]


def test_a_gpu_that_is_gone_stops_claims_and_the_job_goes_on_when_it_is_back(darkroom: Darkroom) -> None:
    """Fault 52."""
    gone = darkroom.root / "gpu-gone"
    darkroom.drop("a.json", count=6, num_inference_steps=4)
    loop = darkroom.loop(LocalExecutor(darkroom.config, "engines:OnACard"), first_pause_s=0.2)
    with Running(loop):
        until(lambda: darkroom.log.of("picture.saved"))
        gone.touch()
        darkroom.drop("b.json")
        until(lambda: loop.health.report.state == "paused")
        assert "GPU is gone" in str(loop.health.report.why)
        until(lambda: loop.work.executor.pid is None)
        time.sleep(0.5)
        assert (darkroom.names("done"), darkroom.names("failed")) == ([], [])
        assert darkroom.names("inbox") == ["b.json"]
        gone.unlink()
        until(lambda: loop.work.done == 2)
    result = darkroom.result("a")
    assert len(result["pictures"]) == 6
    assert result["attempts"] == 1, "a card that fails is not the job's fault"
    assert len(darkroom.log.of("device.gone")) == 1
    assert len(darkroom.log.of("device.back")) == 1


def test_a_file_that_is_written_on_after_its_claim_runs_from_the_bytes_that_were_read(darkroom: Darkroom) -> None:
    """Fault 4: the writer's descriptor follows the rename."""
    path = darkroom.drop("cat.json")
    taken = path.read_bytes()
    writer = path.open("ab")

    class Meddling(FakeExecutor):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            writer.write(b' {"prompt": "something else"}')
            writer.flush()
            yield from super().run(job, skip, images)

    with writer:
        darkroom.run_once(Meddling(darkroom.config))
    result = darkroom.result("cat")
    assert result["job"]["prompt"] == "a red circle"
    assert result["request_sha256"] == hashlib.sha256(taken).hexdigest()
    assert (darkroom.done / "cat" / "request.json").read_bytes() != taken


def test_a_file_that_is_saved_again_after_its_claim_is_a_new_job(darkroom: Darkroom) -> None:
    """Fault 7."""
    darkroom.drop("cat.json", seed=1)

    class Saving(FakeExecutor):
        saved = False

        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            if not self.saved:
                self.saved = True
                darkroom.drop("cat.json", seed=2)
            yield from super().run(job, skip, images)

    darkroom.run_once(Saving(darkroom.config))
    assert [darkroom.result(name)["job"]["seed"] for name in ("cat", "cat~2")] == [1, 2]


def test_two_names_of_one_file_are_two_jobs(darkroom: Darkroom) -> None:
    """Fault 17."""
    (darkroom.inbox / "second.json").hardlink_to(darkroom.drop("first.json"))
    darkroom.run_once()
    assert darkroom.names("done") == ["first", "second"]


def test_names_that_differ_only_by_case_both_run_and_a_read_only_file_too(darkroom: Darkroom) -> None:
    """Faults 18, 35."""
    darkroom.drop("cat.json", seed=1).chmod(0o444)
    darkroom.drop("Cat.json", seed=2)
    darkroom.drop("CAT.JSON", seed=3)
    darkroom.run_once()
    results = {name: darkroom.result(name)["job"]["seed"] for name in darkroom.names("done")}
    assert results == {"cat": 1, "Cat": 2, "CAT": 3}


def test_an_inbox_swapped_by_rename_is_watched_in_its_new_place(darkroom: Darkroom) -> None:
    """Fault 38."""
    with Running(darkroom.loop()) as running:
        until(lambda: "daemon.ready" in darkroom.log.events())
        darkroom.inbox.rename(darkroom.root / "old")
        darkroom.inbox.mkdir()
        until(lambda: "inbox.found_again" in darkroom.log.events())
        darkroom.drop("cat.json")
        until(lambda: running.loop.work.done == 1)


def test_a_watch_whose_thread_ended_is_begun_anew(darkroom: Darkroom) -> None:
    """Fault 45."""
    with Running(darkroom.loop()) as running:
        until(lambda: "daemon.ready" in darkroom.log.events())
        running.loop.guard.watch.emitters()[0].stop()
        until(lambda: "watch.restarted" in darkroom.log.events())
        darkroom.drop("cat.json")
        until(lambda: running.loop.work.done == 1)


def test_a_clock_that_jumps_delays_nothing(darkroom: Darkroom) -> None:
    """Fault 47: a file from the future, and one from before the epoch's first year, run at once."""
    for name, when in (("future.json", 4e9), ("past.json", 0)):
        os.utime(darkroom.drop(name), (when, when))
    darkroom.configure(intake={"settle_s": 600})
    with Running(darkroom.loop()):
        until(lambda: all((darkroom.done / name).exists() for name in ("future", "past")))


def test_a_log_that_cannot_be_written_stops_nothing(darkroom: Darkroom) -> None:
    """Fault 50."""
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    darkroom.log = make_logger(Log(format="json"), full)
    darkroom.drop("cat.json")
    darkroom.run_once()
    assert darkroom.names("done") == ["cat"]
    with contextlib.suppress(OSError):
        full.close()

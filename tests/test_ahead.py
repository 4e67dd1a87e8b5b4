"""The engine is not to wait between two jobs: as one ends the next is made ready; it is handed over, then the last one
published.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from conftest import Darkroom
from darkroom.cli.control import cancel
from darkroom.cli.logs import show_logs
from darkroom.cli.status import gather, summary, table
from darkroom.config import Config, Limits
from darkroom.errors import EngineDied, RenderFailed
from darkroom.events import Alive, Event, Finished, Picture
from darkroom.executors import FakeExecutor, LocalExecutor, local
from darkroom.executors.messages import Ended
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.spool import PAUSE, Call, Disk, Ticket, Verdict, ticket


class Story:
    """What the engine and the disk did, in order: ``engine b``, ``claim b``, ``save a-1.png``, ``publish a``."""

    def __init__(self, darkroom: Darkroom, refused: Callable[[str], bool] = lambda _: False) -> None:
        self.darkroom = darkroom
        self.lines: list[str] = []
        self.refused = refused

    def observe(self, call: Call) -> None:
        if call.name != "rename" or call.target is None or call.path.name.startswith(".darkroom"):
            return
        if call.target.parent in (self.darkroom.done, self.darkroom.failed):
            line = f"publish {call.target.name}"
        elif call.path.parent == self.darkroom.inbox:
            line = f"claim {call.path.stem}"
        elif call.target.suffix == ".png":
            line = f"save {call.target.name}"
        else:
            return
        if self.refused(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(call.path))
        self.lines.append(line)

    @property
    def disk(self) -> Disk:
        return Disk(self.observe)


class Engine(FakeExecutor):
    """Jobs are told apart by their prompts. ``when`` is called as one is handed over, and as its last picture comes."""

    def __init__(self, story: Story, when: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(story.darkroom.config)
        self.story = story
        self.when = when

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        self.story.lines.append(f"engine {job.prompt}")
        self.when(f"engine {job.prompt}")
        yield Alive()
        for event in super().run(job, skip, images):
            if isinstance(event, Finished):
                self.story.lines.append(f"made {job.prompt}")
                self.when(f"made {job.prompt}")
            yield event


class Told(Engine):
    """Remembers which job it had when it was told of which; ``refused`` is the prompt of one that fails."""

    job: Job

    def __init__(self, story: Story, refused: str | None = None) -> None:
        super().__init__(story)
        self.refused = refused
        self.told: list[tuple[str, str]] = []

    def announce(self, job: Job) -> None:
        self.told.append((self.job.prompt, job.prompt))

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        self.job = job
        if job.prompt == self.refused:
            raise RenderFailed("not this one")
        yield from super().run(job, skip, images)


def drop(darkroom: Darkroom, *names: str, **fields: Any) -> None:
    for name in names:
        darkroom.drop(f"{name}.json", prompt=name, num_inference_steps=1, **fields)


def test_the_engine_has_the_next_job_before_the_last_one_is_saved_and_published(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", "c")
    story = Story(darkroom)
    darkroom.run_once(Engine(story), story.disk)
    assert story.lines == [
        *("claim a", "engine a", "claim b", "made a"),
        *("engine b", "save a-1.png", "publish a", "claim c", "made b"),
        *("engine c", "save b-1.png", "publish b", "made c"),
        *("save c-1.png", "publish c"),
    ]
    told = [(event, fields["name"]) for event, fields in darkroom.log.lines if event in ("job.claimed", "job.done")]
    assert told == [(event, name) for name in ("a", "b", "c") for event in ("job.claimed", "job.done")]
    log = (darkroom.done / "b" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["job.claimed", "model.loaded", "picture.saved", "job.done"]


def test_of_several_pictures_only_the_last_waits(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", count=3)
    story = Story(darkroom)
    darkroom.run_once(Engine(story), story.disk)
    saved = ["save a-1.png", "save a-2.png"]
    assert story.lines[2:8] == [*saved, "claim b", "made a", "engine b", "save a-3.png"]
    assert len(darkroom.result("a")["pictures"]) == len(darkroom.result("b")["pictures"]) == 3
    assert (darkroom.done / "a" / "contact-sheet.jpg").exists()


def test_the_last_picture_of_a_matrix_waits_not_that_of_each_cell(darkroom: Darkroom) -> None:
    drop(darkroom, "a", matrix={"seed": [1, 2]})
    drop(darkroom, "b")
    story = Story(darkroom)
    darkroom.run_once(Engine(story), story.disk)
    assert [line for line in story.lines[1:9] if line != "save a-1.png"] == [
        *("engine a", "made a", "engine a", "claim b", "made a"),
        *("engine b", "save a-2.png"),
    ]
    assert (darkroom.done / "a" / "a-grid.jpg").exists()


def test_where_nothing_follows_a_job_is_published_before_the_daemon_is_idle(darkroom: Darkroom) -> None:
    drop(darkroom, "a")
    story = Story(darkroom)
    loop = darkroom.loop(Engine(story), story.disk, once=True)
    states: list[str] = []
    turn = loop.health.turn

    def told(state: Any, why: str | None = None, *, trouble: bool = False) -> bool:
        states.append(f"{state} {loop.work.done}")
        return turn(state, why, trouble=trouble)

    loop.health.turn = told  # type: ignore[method-assign]
    loop.run()
    assert "working 0" in states
    assert states.index("idle 1") > states.index("working 0")
    assert "idle 0" not in states[states.index("working 0") :]


def test_a_paused_daemon_claims_nothing_ahead_and_publishes_what_it_has(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")
    story = Story(darkroom)
    loop = darkroom.loop(Engine(story, lambda line: (darkroom.root / PAUSE).touch()), story.disk)
    loop.spool.open()
    loop.startup()
    while not darkroom.names("done"):
        loop.step()
    loop.step()
    assert story.lines == ["claim a", "engine a", "made a", "save a-1.png", "publish a"]
    assert darkroom.names("inbox") == ["b.json"]
    loop.shutdown()


def test_a_job_that_was_claimed_as_the_daemon_was_paused_waits_for_the_end_of_that(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", seed=-1)
    story = Story(darkroom)
    pause = darkroom.root / PAUSE
    loop = darkroom.loop(Engine(story, lambda line: pause.touch() if line == "made a" else None), story.disk, once=True)
    loop.spool.open()
    loop.startup()
    while not darkroom.names("done"):
        loop.step()
    for _ in range(3):
        assert loop.step()
    assert loop.health.report.state == "paused"
    assert story.lines == ["claim a", "engine a", "claim b", "made a", "save a-1.png", "publish a"]
    (state,) = darkroom.working.glob("*/job.json")
    seed = json.loads(state.read_bytes())["job"]["seed"]
    pause.unlink()
    loop.main_loop()
    loop.shutdown()
    assert story.lines[-4:] == ["engine b", "made b", "save b-1.png", "publish b"]
    result = darkroom.result("b")
    assert (result["attempts"], result["job"]["seed"]) == (1, seed)


def test_a_job_that_waits_for_the_end_of_a_pause_can_be_cancelled_and_the_engine_never_hears_of_it(
    darkroom: Darkroom,
) -> None:
    drop(darkroom, "a", "b", "c")
    story = Story(darkroom)
    pause = darkroom.root / PAUSE
    loop = darkroom.loop(Engine(story, lambda line: pause.touch() if line == "made a" else None), story.disk)
    loop.spool.open()
    loop.startup()
    while not darkroom.names("done"):
        loop.step()
    (folder,) = darkroom.working.glob("*-b-*")
    (folder / "cancel").touch()
    while not darkroom.names("failed"):
        loop.step()
    loop.step()
    assert loop.health.report.state == "paused"
    loop.shutdown()
    assert darkroom.error("b")["reason"] == "cancelled"
    assert story.lines[2:] == ["claim b", "made a", "save a-1.png", "publish a", "publish b"]
    assert darkroom.names("inbox") == ["c.json"]


def test_what_came_before_a_job_was_claimed_ahead_counts_and_what_comes_after_it_goes_after_it(
    darkroom: Darkroom,
) -> None:
    drop(darkroom, "a", "b")
    story = Story(darkroom)

    def more(line: str) -> None:
        if line == "engine a":
            drop(darkroom, "!early", "b", negative_prompt="blue")
            loop.intake.look_afresh()
        if line == "made a":
            drop(darkroom, "!late")
            loop.intake.look_afresh()

    loop = darkroom.loop(Engine(story, more), story.disk, once=True)
    loop.run()
    published = [line.partition(" ")[2] for line in story.lines if line.startswith("publish")]
    assert published == ["a", "!early", "!late", "b"]
    assert darkroom.result("b")["job"]["negative_prompt"] == "blue"


def test_an_urgent_job_goes_before_one_that_was_claimed_ahead_and_that_one_is_next_as_it_is(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", "c", seed=-1)
    story = Story(darkroom)
    seeds: list[int] = []

    def more(line: str) -> None:
        if line == "made a":
            (state,) = darkroom.working.glob("*-b-*/job.json")
            seeds.append(json.loads(state.read_bytes())["job"]["seed"])
            drop(darkroom, "!now", "!then", "d")
            loop.intake.look_afresh()

    loop = darkroom.loop(Engine(story, more), story.disk, once=True)
    loop.run()
    assert [line for line in story.lines if line.startswith(("claim", "engine", "publish"))] == [
        *("claim a", "engine a", "claim b", "claim !now", "engine !now", "publish a"),
        *("claim !then", "engine !then", "publish !now", "engine b", "publish !then"),
        *("claim c", "engine c", "publish b", "claim d", "engine d", "publish c", "publish d"),
    ]
    result = darkroom.result("b")
    assert (result["attempts"], result["job"]["seed"]) == (1, seeds[0])


def test_an_urgent_job_that_was_claimed_ahead_goes_before_those_that_came_later(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "!b")
    (darkroom.inbox / "!b.json").rename(darkroom.root / "!b.json")
    story = Story(darkroom)

    def more(line: str) -> None:
        if line == "engine a":
            (darkroom.root / "!b.json").rename(darkroom.inbox / "!b.json")
        if line == "made a":
            drop(darkroom, "!c")
        loop.intake.look_afresh()

    loop = darkroom.loop(Engine(story, more), story.disk, once=True)
    loop.run()
    assert [line for line in story.lines if line.startswith("engine")] == ["engine a", "engine !b", "engine !c"]


def test_a_job_that_was_claimed_ahead_is_shown_among_those_that_wait(
    darkroom: Darkroom, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(darkroom, "a", "b", "c", "d")
    told: list[dict[str, Any]] = []
    lines: list[str] = []

    def look(line: str) -> None:
        if line == "made a":
            told.append(gather(darkroom.spool()) | {"health": loop.turns.waiting})
            lines.append(summary(told[0]))
            cancel(["b", "a"], None, darkroom.root, as_json=False)
            show_logs(None, None, darkroom.root, follow=False, as_json=True)

    story = Story(darkroom)
    loop = darkroom.loop(Engine(story, look), story.disk, once=True)
    loop.run()
    (status,) = told
    (running,) = status["working"]
    assert (running["name"], status["next"], status["waiting"], status["health"]) == ("a", ["b"], 3, 3)
    assert "3 waiting (next b), a" in lines[0]
    assert "next b" in table(status)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:2]] == ["will not be begun", "stops at its next step"]
    assert json.loads(said[2])["name"] == "a"
    after = gather(darkroom.spool())
    assert (after["working"], after["next"], after["waiting"], after["done"], after["failed"]) == ([], [], 0, 3, 1)


def test_a_job_that_was_claimed_ahead_is_not_forgotten_for_one_that_comes_first_after_all(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", "c")
    story = Story(darkroom)

    def claim(line: str) -> None:
        if line == "made a":  # as one that was to be refused, and was mended in the last moment
            arrival = loop.intake.take()
            assert arrival is not None
            loop.turns.claimed.append(loop.spool.claim(arrival))  # type: ignore[arg-type]

    loop = darkroom.loop(Engine(story, claim), story.disk, once=True)
    loop.run()
    published = [line for line in story.lines if line.startswith("publish")]
    assert published == ["publish a", "publish c", "publish b"]
    assert darkroom.names("working") == []


def test_the_engine_is_told_which_job_is_next_and_of_none_where_none_is(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")
    darkroom.drop("typo.json", {"promt": "c"})
    drop(darkroom, "d")
    engine = Told(Story(darkroom))
    darkroom.run_once(engine)
    assert engine.told == [("a", "b"), ("b", "d")]


def test_the_engine_is_told_of_a_matrix_s_next_cell_and_after_the_last_of_the_next_job(darkroom: Darkroom) -> None:
    prompts = ["one", "two", "three", "four"]
    darkroom.drop("a.json", {"matrix": {"prompt": prompts}, "steps": 1, "width": 64, "height": 64, "seed": 1})
    drop(darkroom, "b")
    engine = Told(Story(darkroom), refused="two")
    darkroom.run_once(engine)
    assert engine.told == [("one", "two"), ("three", "four"), ("four", "b")]
    assert (darkroom.names("done"), darkroom.names("failed")) == (["b"], ["a"])


def test_another_configuration_comes_between_two_jobs_and_what_was_claimed_ahead_goes_by_it(
    darkroom: Darkroom,
) -> None:
    drop(darkroom, "a", "b")
    drop(darkroom, "wide", width=512)
    story = Story(darkroom)

    def reread() -> Config:
        return darkroom.config.model_copy(update={"limits": Limits(max_width=256)})

    loop = darkroom.loop(Engine(story), story.disk, once=True, reread=reread)
    loop.executor.when = lambda line: loop.reload() if line == "made b" else None  # type: ignore[attr-defined]
    loop.run()
    assert story.lines.index("claim wide") < story.lines.index("made b")
    events = darkroom.log.events()
    assert events.index("job.done", -4) < events.index("config.reloaded") < events.index("job.failed")
    assert "at most 256" in darkroom.error("wide")["message"]
    assert darkroom.error("wide")["attempts"] == 0


def test_a_job_that_is_refused_at_its_turn_gets_its_verdict_after_the_one_before(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(darkroom, "a", "b", "c")
    story = Story(darkroom)
    loop = darkroom.loop(Engine(story), story.disk, once=True)
    resolve = loop.work.reader.resolve

    def refuse(request: Any, id: str, pictures: Any = None) -> Job:
        if request.prompt == "b" and id != "judged":
            raise RenderFailed("not this one")
        return resolve(request, id, pictures or {})

    monkeypatch.setattr(loop.work.reader, "resolve", refuse)
    loop.run()
    assert [line for line in story.lines if line.startswith(("engine", "publish"))] == [
        *("engine a", "publish a", "engine c", "publish b", "publish c")
    ]
    assert (loop.work.done, loop.work.failed) == (2, 1)


def test_a_fault_of_ours_in_making_a_job_ready_is_that_jobs_and_not_of_the_one_that_runs(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(darkroom, "a", "b", "c")
    loop = darkroom.loop(once=True)
    resolve = loop.work.reader.resolve

    def stumble(request: Any, id: str, pictures: Any = None) -> Job:
        if request.prompt == "b" and id != "judged":
            raise ZeroDivisionError("ours")
        return resolve(request, id, pictures or {})

    monkeypatch.setattr(loop.work.reader, "resolve", stumble)
    loop.run()
    assert darkroom.names("done") == ["a", "c"]
    assert "darkroom itself failed on this job: ZeroDivisionError: ours" in darkroom.error("b")["message"]


def test_a_job_whose_folder_vanishes_as_it_is_made_ready_is_dropped_and_the_next_one_runs(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", "c")
    story = Story(darkroom)

    def remove(line: str) -> bool:
        if line == "claim b":
            loop.work.reader = Vanishing()  # type: ignore[assignment]
        return False

    class Vanishing:
        """Reads jobs, and once removes all that are claimed and wait."""

        def __getattr__(self, name: str) -> Any:
            return getattr(reader, name)

        def read(self, name: str, data: bytes | None) -> Any:
            (folder,) = darkroom.working.glob("*-b-*")
            shutil.rmtree(folder)
            loop.work.reader = reader
            return reader.read(name, data)

    story.refused = remove
    loop = darkroom.loop(Engine(story), story.disk, once=True)
    reader = loop.work.reader
    loop.run()
    assert darkroom.names("done") == ["a", "c"]
    assert darkroom.log.events().count("job.vanished") == 1
    assert "spool.trouble" not in darkroom.log.events()


@pytest.mark.parametrize("call", ["save a-1.png", "publish a"])
def test_trouble_with_the_disk_while_the_engine_is_at_the_next_job_is_waited_out(darkroom: Darkroom, call: str) -> None:
    drop(darkroom, "a", "b")
    times = iter(range(3))
    story = Story(darkroom, lambda line: line == call and next(times, None) is not None)
    loop = darkroom.loop(Engine(story), story.disk, once=True, first_pause_s=0.001)
    loop.run()
    assert next(times, None) is None
    assert [line for line in story.lines if line.startswith(("engine", "publish"))] == [
        *("engine a", "engine b", "publish a", "publish b")
    ]
    assert [darkroom.result(name)["attempts"] for name in ("a", "b")] == [1, 1]
    assert darkroom.log.events().count("spool.trouble_over") == 1


def test_trouble_at_the_next_claim_does_not_keep_a_job_from_being_published(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")
    times = iter(range(2))
    story = Story(darkroom, lambda line: line == "claim b" and next(times, None) is not None)
    darkroom.loop(Engine(story), story.disk, once=True, first_pause_s=0.001).run()
    assert [line for line in story.lines if line.startswith(("claim", "publish"))] == [
        *("claim a", "publish a", "claim b", "publish b")
    ]


def test_stopped_in_the_midst_of_trouble_both_are_gone_on_with_later(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b", seed=3)
    story = Story(darkroom)
    loop = darkroom.loop(Engine(story), story.disk, once=True, first_pause_s=0.001)

    def refused(line: str) -> bool:
        if line == "publish a":
            loop.stop()
        return line.startswith("publish")

    story.refused = refused
    loop.run()
    assert darkroom.names("done") == darkroom.names("inbox") == []
    (picture,) = darkroom.working.glob("*/a-1.png")
    written = picture.stat().st_mtime_ns
    darkroom.run_once()
    assert (darkroom.done / "a" / "a-1.png").stat().st_mtime_ns == written
    assert [darkroom.result(name)["job"]["seed"] for name in ("a", "b")] == [3, 3]
    assert darkroom.names("working") == []


@pytest.mark.parametrize("looks_around", [False, True])
def test_a_picture_that_was_made_as_the_daemon_was_stopped_is_kept(darkroom: Darkroom, looks_around: bool) -> None:
    drop(darkroom, "a", "b")
    story = Story(darkroom)
    loop = darkroom.loop(Engine(story), story.disk)
    loop.executor.when = lambda line: loop.stop() if line == "made a" else None  # type: ignore[attr-defined]
    loop.work.clock = iter(range(10**6)).__next__ if looks_around else lambda: 0.0
    loop.run()
    end = ["save a-1.png"] if looks_around else ["save a-1.png", "publish a"]
    assert story.lines == ["claim a", "engine a", "claim b", "made a", *end]
    assert len(darkroom.names("working")) == looks_around + 1
    darkroom.run_once()
    assert darkroom.names("done") == ["a", "b"]
    assert darkroom.result("b")["attempts"] == 1


def test_it_is_too_late_to_cancel_what_is_made_and_not_for_what_is_under_way(darkroom: Darkroom) -> None:
    drop(darkroom, "a")
    drop(darkroom, "b", count=20)
    story = Story(darkroom)

    def cancel(line: str) -> None:
        if line == "engine b":
            for folder in darkroom.working.iterdir():
                if folder.is_dir():
                    (folder / "cancel").touch()

    loop = darkroom.loop(Engine(story, cancel), story.disk, once=True)
    loop.work.clock = iter(range(10**6)).__next__  # it looks around at each event
    loop.run()
    assert darkroom.result("a")["status"] == "done"
    assert darkroom.error("b")["reason"] == "cancelled"
    assert not (darkroom.done / "a" / "cancel").exists()


def test_a_death_of_the_engine_counts_against_the_job_that_it_had(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")
    story = Story(darkroom)
    deaths = iter(range(2))

    def die(line: str) -> None:
        if line == "engine b" and next(deaths, None) is not None:
            raise EngineDied("The engine's process was ended by signal SIGSEGV")

    darkroom.run_once(Engine(story, die), story.disk)
    assert [darkroom.result(name)["attempts"] for name in ("a", "b")] == [1, 3]
    assert [line for line in story.lines if line.startswith("publish")] == ["publish a", "publish b"]


class Killed(BaseException):
    """The daemon is gone: nothing that the code could catch, and the dead do not write."""


@pytest.mark.parametrize(("boots", "attempts"), [(1, 1), (4, 2)])
def test_a_daemon_that_is_killed_before_the_engine_has_the_job_that_was_claimed_ahead_costs_that_job_nothing(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch, boots: int, attempts: int
) -> None:
    """Where the machine went down as well, nobody knows: then it counts."""
    drop(darkroom, "a", "b")
    dead = False

    def die(line: str) -> None:
        nonlocal dead
        if line == "made a":
            dead = True
            raise Killed

    def refuse(call: Call) -> None:
        if dead:
            raise Killed

    for kill in range(3):
        dead = False
        monkeypatch.setattr(ticket, "boot_id", lambda boot=kill % boots: f"boot {boot}")
        loop = darkroom.loop(Engine(Story(darkroom), die), Disk(refuse), once=True)
        with pytest.raises(Killed):
            loop.run()
        loop.spool.close()
        assert len(list(darkroom.working.glob("*-b-*/attempt.1"))) == 1
    monkeypatch.setattr(ticket, "boot_id", lambda: f"boot {boots - 1}")
    story = Story(darkroom)
    darkroom.run_once(Engine(story), story.disk)
    assert [line for line in story.lines if line.startswith("engine")] == ["engine a", "engine b"]
    assert [darkroom.result(name)["attempts"] for name in ("a", "b")] == [4, attempts]
    claims = [fields["name"] for fields in darkroom.log.of("job.claimed")]
    assert claims == ["a", "b"], "each is told once: b when its turn has come"
    events = [json.loads(line)["event"] for line in (darkroom.done / "b" / "log.jsonl").read_text().splitlines()]
    assert events == ["job.claimed", "model.loaded", "picture.saved", "job.done"]


def test_an_engine_that_dies_when_all_is_made_costs_the_job_nothing(darkroom: Darkroom) -> None:
    darkroom.configure(executor={"max_attempts": 1})
    drop(darkroom, "a", "b", count=2)

    class Dying(FakeExecutor):
        def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
            for event in super().run(job, skip, images):
                if isinstance(event, Finished):
                    raise EngineDied("The engine's process was ended by signal SIGSEGV")
                yield event

    loop = darkroom.run_once(Dying(darkroom.config))
    assert (loop.work.done, loop.work.failed) == (2, 0)
    assert [len(darkroom.result(name)["pictures"]) for name in ("a", "b")] == [2, 2]


def test_a_fault_of_ours_in_publishing_is_not_blamed_on_the_next_job(darkroom: Darkroom) -> None:
    drop(darkroom, "a", "b")

    class Faulty:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

        def verdict(self, ticket: Ticket, verdict: Verdict, path: Path) -> None:
            raise ValueError(path.name)

    with pytest.raises(ValueError, match=r"^a$"):
        darkroom.loop(viewer=Faulty(), once=True).run()
    assert darkroom.names("done") == ["a"]
    assert darkroom.names("failed") == []
    darkroom.run_once()
    assert darkroom.names("done") == ["a", "b"]


def test_an_engine_is_silent_only_as_long_as_it_is_listened_to(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    picture = Picture(0, 7, 64, 64, b"", "png")
    said = [None, picture, None, None, Ended(None)]

    class Child:
        jobs, model, process = 0, None, None

        def alive(self) -> bool:
            return True

        def said(self) -> None:
            return None

        def give(self, work: Any) -> None:
            pass

        def receive(self, timeout: float) -> Any:
            nonlocal now
            now += timeout
            return said.pop(0)

        def end(self) -> None:
            pass

    monkeypatch.setattr(local.time, "monotonic", lambda: now)
    executor = LocalExecutor(darkroom.config)
    executor._child = Child()  # type: ignore[assignment]
    events = []
    for event in executor.run(Job.model_construct(model="any", width=64, height=64)):
        events.append(event)
        now += 100 * darkroom.config.engine.stall_s  # such as a full disk, waited out
    assert events == [Alive(), Alive(), picture, Alive(), Alive()]

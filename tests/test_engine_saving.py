"""Files of pictures made beside the sampling of the next: in order, none lost and none made twice, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from darkroom import output
from darkroom.engine.render import Engine
from darkroom.engine.saving import Saving
from darkroom.errors import RenderFailed, Stopped
from darkroom.events import Ending, Event, Fallback, Finished, Loaded, Picture, Step
from engine_models import kinds, make_job, pictures, render, steps

pytest_plugins = ("engine_fixtures",)

PATIENCE_S = 60.0


def picture(index: int) -> Picture:
    return Picture(index, 7 + index, 8, 8, b"", "png")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("saving")]


@pytest.fixture
def beside(engine: Engine) -> Iterator[Engine]:
    """The engine as it is with a GPU, where files are made by a thread of their own."""
    engine._saves_beside = True
    yield engine
    assert not threads()


class Held:
    """In place of ``encode``: the first file is not made before ``opened`` is set."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.calls = 0
        self._encode: Callable[..., bytes] = output.encode

    def __call__(self, *arguments: Any, **options: Any) -> bytes:
        self.calls += 1
        if self.calls == 1:
            assert self.opened.wait(PATIENCE_S), "nobody opened it"
        return self._encode(*arguments, **options)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    held = Held()
    monkeypatch.setattr(output, "encode", held)
    return held


# ---------------------------------------------------------------- by itself


def test_what_is_made_later_waits_for_what_came_before() -> None:
    opened = threading.Event()
    second = threading.Event()

    def first() -> Picture:
        opened.wait(PATIENCE_S)
        return picture(0)

    def then() -> Picture:
        second.set()
        return picture(1)

    with Saving(beside=True) as saving:
        saving.begin(0, first)
        saving.begin(1, then)
        assert list(saving.made()) == []
        assert 0 in saving
        assert 1 in saving
        opened.set()
        assert second.wait(PATIENCE_S)
        assert list(saving.made(wait=True)) == [picture(0), picture(1)]
        assert 0 not in saving
    assert not threads()


def test_a_failure_is_raised_in_its_turn_and_the_next_one_is_still_there() -> None:
    def fail() -> Picture:
        raise ValueError("no such colour")

    with Saving(beside=True) as saving:
        saving.begin(0, fail)
        saving.begin(1, lambda: picture(1))
        with pytest.raises(ValueError, match="no such colour"):
            list(saving.made(wait=True))
        assert list(saving.made(wait=True)) == [picture(1)]


def test_where_there_is_no_thread_it_is_made_at_once() -> None:
    with Saving(beside=False) as saving:
        saving.begin(0, lambda: picture(0))
        assert not threads()
        assert list(saving.made()) == [picture(0)]
        with pytest.raises(ZeroDivisionError):
            saving.begin(1, lambda: picture(1 // 0))
        assert 1 not in saving


# ---------------------------------------------------------------- in a job


@pytest.mark.parametrize("fields", [{}, {"hires": {"scale": 2.0, "strength": 0.5}}, {"output_format": "webp"}])
def test_the_files_are_the_same_and_come_in_order(engine: Engine, fields: dict[str, Any]) -> None:
    job = make_job(count=3, **fields)
    expected = pictures(render(engine, job, skip={1}))
    engine._saves_beside = True
    events = render(engine, job, skip={1})
    assert pictures(events) == expected
    assert [event.index for event in events if isinstance(event, Picture)] == [0, 2]
    assert isinstance(events[-1], Finished)
    assert not threads()


def test_the_next_picture_is_sampled_while_a_file_is_made(beside: Engine, held: Held) -> None:
    events: list[Event] = []
    for event in beside.render(make_job(count=2), frozenset(), lambda: False):
        events.append(event)
        if event == Step(1, 1, 2, 2):
            held.opened.set()
    assert kinds(events) == [Loaded, Step, Step, Step, Step, Picture, Picture, Finished]


def test_the_texts_of_the_next_job_are_read_while_the_last_file_is_made(beside: Engine, held: Held) -> None:
    pipeline = beside._models.get("sd")
    read = 0

    def reads(*_: Any) -> None:
        nonlocal read
        read += 1
        if read == 4:  # two texts of either job
            held.opened.set()

    pipeline.part("text_encoder").register_forward_pre_hook(reads)
    following = make_job(prompt="a green house", negative_prompt="sky")
    for event in beside.render(make_job(), frozenset(), lambda: False):
        if isinstance(event, Ending):
            beside.announce(following)
    assert read == 4, "before the file was made, or nobody would have opened it"
    assert pictures(render(beside, following))
    assert read == 4


class Unlucky(torch.nn.Module):
    """A UNet that has no memory at its third call, and says so."""

    def __init__(self, part: Any, then: Callable[[], None]) -> None:
        super().__init__()
        self.part, self.config, self.dtype = part, part.config, part.dtype
        self.then, self.calls = then, 0

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            self.then()
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.part(*arguments, **options)


def test_where_memory_runs_out_the_picture_before_is_handed_out_and_not_made_again(beside: Engine, held: Held) -> None:
    pipeline = beside._models.get("sd")
    pipeline.load()
    unlucky = Unlucky(pipeline.unet, held.opened.set)
    pipeline.loaders["unet"] = lambda: unlucky
    pipeline.loaded["unet"] = unlucky
    events = render(beside, make_job(count=2))
    assert kinds(events)[3:] == [Picture, Fallback, Step, Step, Picture, Finished]
    assert len(steps(events)) == 4
    assert list(pictures(events)) == [0, 1]


def test_whoever_stops_the_job_gets_the_picture_before(beside: Engine, held: Held) -> None:
    events: list[Event] = []

    def stopping() -> bool:
        stop = Step(1, 1, 1, 2) in events
        if stop:
            held.opened.set()
        return stop

    with pytest.raises(Stopped):
        events.extend(beside.render(make_job(count=2), frozenset(), stopping))
    assert list(pictures(events)) == [0]


def test_a_job_that_is_dropped_leaves_no_thread_behind(beside: Engine, held: Held) -> None:
    stream = beside.render(make_job(count=2), frozenset(), lambda: False)
    assert any(event == Step(1, 1, 1, 2) for event in stream)
    assert len(threads()) == 1
    held.opened.set()
    stream.close()  # type: ignore[attr-defined]
    assert not threads()


@pytest.mark.parametrize("beside", [True, False])
def test_a_file_that_cannot_be_made_is_the_jobs_failure(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    def fail(*arguments: Any, **options: Any) -> bytes:
        raise ValueError("no such colour")

    engine._saves_beside = beside
    monkeypatch.setattr(output, "encode", fail)
    with pytest.raises(RenderFailed, match="no such colour"):
        render(engine, make_job(count=2))


@pytest.mark.parametrize("beside", [True, False])
def test_a_file_that_there_was_no_memory_for_is_made_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    expected = pictures(render(engine, make_job(count=2)))
    encode, failures = output.encode, iter([MemoryError()])

    def fail_once(*arguments: Any, **options: Any) -> bytes:
        for failure in failures:
            raise failure
        return encode(*arguments, **options)

    engine._saves_beside = beside
    monkeypatch.setattr(output, "encode", fail_once)
    events = render(engine, make_job(count=2))
    assert sorted(pictures(events).items()) == sorted(expected.items())
    assert [event.rung for event in events if isinstance(event, Fallback)] == ["freed_memory"]

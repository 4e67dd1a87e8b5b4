"""Engines that misbehave, for the executor's child process: named in tests as ``engines:Crashing``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from darkroom.config import Config
from darkroom.errors import DeviceGone, OutOfMemory
from darkroom.events import Ending, Event, Fallback, Loaded, Picture, Step, Warned
from darkroom.executors.fake import FakeEngine
from darkroom.job import NO_IMAGES, Images, Job

NAME = "engines:"


class Fast(FakeEngine):
    """The fake engine, in a child."""


class Slow(FakeEngine):
    """A tenth of a second a step."""

    step_s = 0.1


class Told(FakeEngine):
    """Says of each job which one is to come next, once it has heard of one."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.heard: SimpleQueue[Job] = SimpleQueue()

    def announce(self, job: Job) -> None:
        self.heard.put(job)

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        for event in super().render(job, skip, stopping, images):
            yield event
            if isinstance(event, Ending):
                yield Warned("next", self.heard.get(timeout=60).prompt)


class Held(FakeEngine):
    """Makes no step before the file ``go-on`` lies in the spool."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        for event in super().render(job, skip, stopping, images):
            while isinstance(event, Step) and not (self.config.folders.root / "go-on").exists() and not stopping():
                time.sleep(0.02)
            yield event


class Crashing(FakeEngine):
    """Dies by SIGSEGV at its first step, while the job's prompt says how often it still has to."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        marker = Path(job.negative_prompt)
        for event in super().render(job, skip, stopping, images):
            if isinstance(event, Step) and len(marker.read_text()) < int(job.prompt):
                with marker.open("a") as file:
                    file.write("x")
                print("about to crash", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            yield event


class Hungry(FakeEngine):
    """Takes memory at each step until there is none."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        taken = []
        while job.prompt == "much":
            taken.append(b"x" * (1 << 20))
        yield from super().render(job, skip, stopping, images)


class CrashingAfterOnePicture(FakeEngine):
    """Dies after each picture it made."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        for event in super().render(job, skip, stopping, images):
            yield event
            if isinstance(event, Picture):
                time.sleep(0.05)
                os._exit(9)


class Hanging(FakeEngine):
    """Makes one step, then none, and hears nothing."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        yield Step(0, 1, 1, 2)
        threading.Event().wait()


class Raising(FakeEngine):
    """Raises what no engine should."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        class Local(Exception):
            """Cannot be pickled."""

        yield Step(0, 1, 1, 2)
        raise Local("the shutter is stuck")


class Unpicklable(FakeEngine):
    """Says something that cannot be sent."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        yield lambda: None  # type: ignore[misc]


class Idle(FakeEngine):
    """Leaves a file where it gave its memory back."""

    def close(self) -> None:
        assert self.config.engine.cache_dir is not None
        (self.config.engine.cache_dir / "closed").touch()


class Preparing(Idle):
    """Gets ready for as long as it may, and leaves a word of it at its begin and at its end."""

    def prepare(self, stopping: Callable[[], bool]) -> None:
        self._say("begun")
        while not stopping():
            time.sleep(0.01)
        self._say("ended")

    def _say(self, word: str) -> None:
        assert self.config.engine.cache_dir is not None
        with (self.config.engine.cache_dir / "prepared").open("a") as file:
            file.write(f"{word}\n")


class Prepared(Preparing):
    """Is ready at once."""

    def prepare(self, stopping: Callable[[], bool]) -> None:
        self._say("ready")


class Unprepared(Preparing):
    """Cannot get ready."""

    def prepare(self, stopping: Callable[[], bool]) -> None:
        self._say("begun")
        raise MemoryError("no room")


class SteppingDown(FakeEngine):
    """Steps down at once, then takes its time."""

    step_s = 0.1

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        yield Fallback("tiled_vae", "no memory", lossless=True, memory_before=5, memory_after=3)
        yield from super().render(job, skip, stopping, images)


class Filling(FakeEngine):
    """Has room for pictures as they are asked for only in a process that has made none before.

    Then it makes the first one, and has none for the rest: it makes them smaller, or none where it must not.
    """

    made = 0

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        full = self.made > 0
        for event in super().render(job, skip, stopping, images):
            yield event
            self.made += isinstance(event, Picture)
            if isinstance(event, Picture) and full:
                if job.on_oom == "fail":
                    raise OutOfMemory("no room")
                yield Fallback("smaller_picture", "no room", lossless=False, changes={"width": 64, "height": 64})


class Cramped(Filling):
    """Has room for none from the first."""

    made = 1


def crowded(config: Config) -> Any:
    """The real engine, where a pass of more than three pictures finds no memory once it has made a step.

    Nor does the decoding of any picture of what is "hopeless".
    """
    import torch

    from darkroom.engine import rendering
    from darkroom.engine.render import Engine

    step, decode = rendering.step, rendering.decode

    class Crowded(Engine):
        hopeless = False

        def render(
            self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
        ) -> Iterator[Event]:
            Crowded.hopeless = "hopeless" in job.prompt
            yield from super().render(job, skip, stopping, images)

    def denied(wanted: Callable[..., Any], no_room: Callable[[torch.Tensor], bool]) -> Callable[..., Any]:
        def work(*given: Any, **named: Any) -> Any:
            done = wanted(*given, **named)
            if any(no_room(latents) for latents in given if isinstance(latents, torch.Tensor)):
                torch.empty(1 << 60, dtype=torch.uint8)  # more than there are addresses: the allocator itself says no
            return done

        return work

    rendering.step = denied(step, lambda latents: latents.ndim == 4 and len(latents) > 3)
    rendering.decode = denied(decode, lambda _: Crowded.hopeless)
    return Crowded(config)


class Unbuildable:
    """Cannot be made."""

    def __init__(self, config: Config) -> None:
        raise RuntimeError("no such card")


class OnACard(FakeEngine):
    """Works on a GPU that is gone while the file ``gpu-gone`` lies in the spool; says which device it was told."""

    step_s = 0.02

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.gone = config.folders.root / "gpu-gone"
        self._look()

    def _look(self) -> None:
        if self.gone.exists():
            raise DeviceGone("The GPU is gone")

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        for event in super().render(job, skip, stopping, images):
            self._look()
            yield replace(event, device=f"cuda {self.config.engine.device}") if isinstance(event, Loaded) else event


class Quoting(FakeEngine):
    """Warns of the job's prompt, and fails over it where there is a negative one."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        yield Warned("prompt_odd", f'"{job.prompt}" is odd', job.prompt)
        if job.negative_prompt:
            raise ValueError(f"cannot draw {job.prompt}")
        yield from super().render(job, skip, stopping, images)


class Dying(FakeEngine):
    """Is gone at once."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        os._exit(9)


class Growing(FakeEngine):
    """Keeps 64 MiB more of each job."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        self.kept = [*getattr(self, "kept", []), b"x" * (64 << 20)]
        yield from super().render(job, skip, stopping, images)

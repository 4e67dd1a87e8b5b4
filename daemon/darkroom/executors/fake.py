"""A fake for tests, of ours and of tools that talk to darkroom: instant, no torch, a flat picture from the seed."""

from __future__ import annotations

import colorsys
import platform
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from darkroom.config import Config
from darkroom.errors import Stopped
from darkroom.events import Ending, Event, Finished, Loaded, Picture, Step
from darkroom.executors.base import perform
from darkroom.job import NO_IMAGES, Images, Job
from darkroom.job.passes import final_size, passes


class FakeEngine:
    """Draws each picture in one colour, which its seed decides. ``step_s`` makes it slow."""

    step_s = 0.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        """Every picture by itself, all its steps announced. Raises Stopped."""
        from PIL import Image

        from darkroom.output import encode, extension

        yield Loaded(job.model, 0.0, "fake", {"python": platform.python_version()})
        begin, size, steps = time.monotonic(), final_size(job), sum(one.taken for one in passes(job))
        missing = [index for index in range(job.count) if index not in skip]
        for index in missing:
            for step in range(steps):
                if stopping():
                    raise Stopped("stopped")
                if self.step_s:
                    time.sleep(self.step_s)
                yield Step(index, 1, step + 1, steps)
            if index == missing[-1]:
                yield Ending()
            seed = job.seed_of(index)
            red, green, blue = colorsys.hsv_to_rgb((seed * 0.618034) % 1, 0.6, 0.9)
            colour = (int(red * 255), int(green * 255), int(blue * 255))
            image = Image.new("RGB", size, colour)
            data = encode(image, job, seed=seed, device="fake")
            yield Picture(index, seed, *size, data, extension(job.output_format))
        yield Finished({"encode": 0.0, "denoise": time.monotonic() - begin, "decode": 0.0, "save": 0.0})

    def expect(self, jobs: tuple[Job, ...]) -> None:
        """Each is made by itself."""

    def announce(self, job: Job) -> None:
        """There is nothing to do beforehand."""

    def prepare(self, stopping: Callable[[], bool]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to give back."""


class FakeExecutor:
    """Runs the fake engine in the daemon itself."""

    def __init__(self, config: Config) -> None:
        self._engine = FakeEngine(config)
        self.pid = None

    def start(self) -> None:
        """It is ready."""

    def expect(self, jobs: Sequence[Job]) -> None:
        """Each is made by itself."""

    def announce(self, job: Job) -> None:
        """There is nothing to do beforehand."""

    def nudge(self) -> None:
        """Its steps follow each other soon enough."""

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        """As ``Executor.run``."""
        yield from perform(self._engine, job, skip, lambda: False, images)

    def close(self) -> None:
        """Nothing was started."""

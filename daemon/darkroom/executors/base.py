"""The seam: what an executor is, what an engine is, and ``perform``, one job on an engine."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from darkroom.errors import DarkroomError, RenderFailed, first_line
from darkroom.events import Event
from darkroom.job import NO_IMAGES, Images, Job


class Engine(Protocol):
    """Makes pictures, in its own process. Made from the config; loads a model when a job needs it."""

    def render(
        self, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
    ) -> Iterator[Event]:
        """Render the pictures of ``job`` whose index is not in ``skip``; ends with Finished.

        Looks at ``stopping`` before each step and then raises Stopped. Raises JobError.
        """
        ...

    def expect(self, jobs: tuple[Job, ...]) -> None:
        """These are likely to come after the job that is rendered next, and may be made along with it, unseen."""
        ...

    def announce(self, job: Job) -> None:
        """This one is to come next, as far as is known: what it needs may be made ready while nothing else is to do.

        Called from another thread while a job is rendered.
        """
        ...

    def prepare(self, stopping: Callable[[], bool]) -> None:
        """Load what the first job is likely to need, while none is there; ends early where ``stopping()``.

        Raises whatever went wrong; ``close`` is called then.
        """
        ...

    def close(self) -> None:
        """Give memory back. It can be used again."""
        ...


class Executor(Protocol):
    """Runs one job at a time, somewhere."""

    @property
    def pid(self) -> int | None:
        """The process that does it, where it is another than this one and runs."""
        ...

    def start(self) -> None:
        """Begin to get ready, so that the first job waits less. Returns at once; may be called again."""
        ...

    def expect(self, jobs: Sequence[Job]) -> None:
        """As ``Engine.expect``, of the job that is run next. They are nothing but a hint."""
        ...

    def announce(self, job: Job) -> None:
        """As ``Engine.announce``. Raises nothing, and whatever else is run next."""
        ...

    def nudge(self) -> None:
        """From any thread or a signal handler: something else is to be seen to, so ``run`` yields ``Alive`` at once."""
        ...

    def run(self, job: Job, skip: frozenset[int] = frozenset(), images: Images = NO_IMAGES) -> Generator[Event]:
        """Run a job; yields an event (``Alive`` if there is none) at least a few times a second.

        The first comes as soon as the engine has the job, which goes on with it whether it is listened to or not.
        Closing the generator stops the job at its next step. Raises JobError or MachineError; the executor can be
        used again after either.
        """
        ...

    def close(self) -> None:
        """End what it started."""
        ...


def perform(
    engine: Engine, job: Job, skip: frozenset[int], stopping: Callable[[], bool], images: Images = NO_IMAGES
) -> Iterator[Event]:
    """``engine.render``, with every foreign exception turned into RenderFailed."""
    try:
        yield from engine.render(job, skip, stopping, images)
    except DarkroomError:
        raise
    except Exception as error:
        raise RenderFailed(
            f"The engine failed on this job: {first_line(error)}", trace=traceback.format_exc()
        ) from None

"""What daemon and engine process say to each other, besides events.

In: ``Setup`` first, then ``Work``, ``Next`` and ``Stop``. Out: ``Ready``, events, and after each job ``Ended``.
"""

from __future__ import annotations

from dataclasses import dataclass

from darkroom.config import Config
from darkroom.errors import DarkroomError
from darkroom.job import Images, Job


@dataclass(frozen=True)
class Setup:
    """Which engine, as ``module:name``, and its config."""

    engine: str
    config: Config


@dataclass(frozen=True)
class Work:
    """Run a job; ``skip`` are the pictures that exist, ``images`` those that it begins with."""

    job: Job
    skip: frozenset[int]
    images: Images
    expected: tuple[Job, ...] = ()
    """What is likely to come next."""


@dataclass(frozen=True)
class Next:
    """Which job will be asked for after the one that runs, as far as is known."""

    job: Job


@dataclass(frozen=True)
class Stop:
    """End the job that runs at its next step."""


@dataclass(frozen=True)
class Ready:
    """The engine is made."""


@dataclass(frozen=True)
class Ended:
    """The job is over, with the error that ended it if one did."""

    error: DarkroomError | None

"""A job of many cells on an executor that knows of none: each cell is a job to it, its pictures numbered through.

What one cell is at fault for does not keep the others from being made.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace

from darkroom.errors import Cancelled, FieldError, JobError
from darkroom.events import Event, Picture, Preview, Step
from darkroom.executors import Executor
from darkroom.job import NO_IMAGES, Images, Job, values_of


def run_cell(
    executor: Executor, job: Job, cell: int, made: frozenset[int], images: Images = NO_IMAGES
) -> Generator[Event]:
    """Run one cell of a job, from 0, as ``Executor.run``; nothing where all its pictures are ``made``."""
    first = cell * job.count
    skip = frozenset(index - first for index in made if first <= index < first + job.count)
    if len(skip) == job.count:
        return
    with closing(executor.run(job.at(cell), skip, images)) as events:
        for event in events:
            match event:
                case Picture():
                    yield replace(event, index=first + event.index)
                case Step() | Preview():
                    yield replace(event, first=first + event.first)
                case _:
                    yield event


@contextmanager
def one_of_many(job: Job, cell: int, failures: dict[int, JobError]) -> Iterator[None]:
    """What a cell among others is at fault for goes into ``failures``; all else is raised, of a single job too."""
    try:
        yield
    except Cancelled:
        raise
    except JobError as error:
        if len(job.cells) < 2:
            raise
        failures[cell] = error


def refuse(job: Job, failures: Mapping[int, JobError]) -> None:
    """Raises an error of the first one's kind that names each cell that failed."""
    if not failures:
        return
    number, first = min(failures.items())
    others = len(job.cells) - len(failures)
    made = (
        f"{len(failures):,} of {len(job.cells):,} cells failed, the others were made" if others else "All cells failed"
    )
    errors = (
        FieldError(error.message, f"cells[{cell}]", got=job.cells[cell]) for cell, error in sorted(failures.items())
    )
    message = f"{made}: {first.message.removesuffix('.')}, in cell {number + 1} ({values_of(job.cells[number])})."
    raise type(first)(message, errors=tuple(errors), trace=first.trace)

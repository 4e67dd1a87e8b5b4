"""A job of many cells on an executor that knows of none: each cell is a job to it, its pictures numbered through."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from darkroom.events import Event, Picture, Preview, Step
from darkroom.executors import Executor
from darkroom.job import NO_IMAGES, Images, Job


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

"""What happens to one job, gathered while it runs, and made into its verdict."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from darkroom import __version__
from darkroom.errors import DarkroomError, JobError, MachineError
from darkroom.events import Event, Fallback, Finished, Loaded, Picture, Step, Warned
from darkroom.job import ErrorReport, Job, PictureRecord, Result, running_order
from darkroom.spool import OF_LIST, State, Ticket, Verdict, published_name, timestamp
from darkroom.work.pace import Pace
from darkroom.work.sheets import JobSheet


@dataclass
class Record:
    """Told of each event; says the verdict. ``state`` is what is kept in the job's folder (None before it is valid)."""

    ticket: Ticket
    request: bytes | None
    state: State | None = None
    started_at: str = field(default_factory=timestamp)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[int, PictureRecord] = field(default_factory=dict)
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    progress_at: float = float("-inf")
    """When progress was last shown, in monotonic seconds."""
    pace: Pace = field(default_factory=Pace)
    sheet: JobSheet | None = None
    """The contact sheet, of a job of several pictures."""
    thumbnail: bytes = b""
    """Of the first picture, where the engine gave one."""
    cell: int = 0
    """Which cell of the job is under way."""
    failures: dict[int, JobError] = field(default_factory=dict)
    """What was wrong with which cell, in this attempt, while the others went on."""
    model: str | None = None
    """Which model it found ready, in this attempt."""
    grid: str | None = None
    """The file of all pictures of a matrix."""
    claimed: dict[str, Any] | None = None
    """What the daemon's log is to say of it when its turn comes."""
    late: list[Event] = field(default_factory=list)
    """The last picture, which is not saved yet, and what came after it."""
    error: DarkroomError | None = None
    """Why it ended, if not well."""

    @property
    def job(self) -> Job:
        """The job as it is to be rendered now."""
        assert self.state is not None
        return self.state.job

    def missing(self) -> bool:
        """Whether pictures remain to be made."""
        return not self.late and len(self.pictures) < self.job.total

    def is_last(self, event: Event) -> bool:
        """Whether it is the only picture that is missing."""
        return isinstance(event, Picture) and len(self.pictures.keys() | {event.index}) == self.job.total

    def following(self) -> int | None:
        """The cell after the one under way of which pictures are missing; None where that is the last."""
        order, count = running_order(self.job), self.job.count
        for cell in order[order.index(self.cell) + 1 :]:
            if any(index not in self.pictures for index in range(cell * count, (cell + 1) * count)):
                return cell
        return None

    def why_not(self, index: int) -> str:
        """Why there is no picture of that number, in a few words."""
        failure = self.failures.get(index // self.job.count)
        return "not made" if failure is None else f"failed: {failure.message}"

    def in_order(self) -> list[PictureRecord]:
        """The pictures that are made, by their numbers."""
        return [self.pictures[index] for index in sorted(self.pictures)]

    def progress(self, step: Step) -> dict[str, Any]:
        """progress.json: how far the job is."""
        assert self.state is not None
        return {
            "id": self.ticket.id,
            "name": self.ticket.name,
            "updated_at": timestamp(),
            "step": step.step,
            "steps": step.steps,
            "picture": step.first + 1,
            "batch": step.batch,
            "pictures": self.state.job.total,
            "finished": len(self.pictures),
            "steps_per_s": self.pace.steps_per_s(),
            "seconds_left": self.pace.seconds_left(self.state.job.total - len(self.pictures)),
        }

    def loaded(self, event: Loaded) -> bool:
        """The model is ready. Returns whether it was so in the cell before."""
        self.device = event.device
        self.versions = dict(event.versions)
        self._add("load", event.seconds)
        before, self.model = self.model, event.model
        return event.model == before

    def saved(self, event: Picture, file: str, seconds: float) -> None:
        """A picture is on disk, which took ``seconds``."""
        self._add("save", seconds)
        self.pictures[event.index] = PictureRecord(
            file=file,
            sha256=hashlib.sha256(event.data).hexdigest(),
            bytes=len(event.data),
            width=event.width,
            height=event.height,
            seed=event.seed,
            cell=self.job.cell_of(event.index),
        )

    def shared(self, event: Picture) -> bool:
        """Whether it is news that its passes were shared with another job."""
        state = self.state
        assert state is not None
        if (event.shared_batch or 0) <= (state.shared_batch or 0):
            return False
        self.state = state.model_copy(update={"shared_batch": event.shared_batch})
        return True

    def found(self, index: int, path: Path) -> bool:
        """A picture was finished before the job was cut short. False for one that a lying disk tore: made again."""
        from darkroom.output import read_size

        assert self.state is not None
        data = path.read_bytes()
        try:
            width, height = read_size(data)
        except ValueError:
            return False
        self.pictures[index] = PictureRecord(
            file=path.name,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            width=width,
            height=height,
            seed=self.state.job.seed_of(index),
            cell=self.state.job.cell_of(index),
        )
        return True

    def fell_back(self, event: Fallback) -> None:
        """The engine stepped down: what it changed is now the job, and what was asked is kept beside it.

        In a job of many cells it is the cell's alone: the others are tried as they were asked.
        """
        state = self.state
        assert state is not None
        changes: dict[str, Any] = dict(event.changes)
        entry = {key: value for key, value in asdict(event).items() if value is not None and key != "changes"}
        if changes:
            entry["changes"] = changes
        if state.job.cells:
            entry["cell"] = self.cell + 1
            if changes:
                cells = [*state.job.cells]
                cells[self.cell] = cells[self.cell] | changes
                changes = {"cells": tuple(cells)}
        before = {key: getattr(state.job, key) for key in changes}
        self.state = state.model_copy(
            update={
                "job": state.job.model_copy(update=changes),
                "requested": before | state.requested,
                "fallbacks": [*state.fallbacks, entry],
            }
        )

    def warned(self, event: Warned) -> None:
        """The same warning is kept once, however often the job was tried."""
        assert self.state is not None
        entry = {key: value for key, value in asdict(event).items() if value is not None}
        if entry not in self.state.warnings:
            self.state = self.state.model_copy(update={"warnings": [*self.state.warnings, entry]})

    def finished(self, event: Finished) -> None:
        """The engine is done."""
        for phase, seconds in event.seconds.items():
            self._add(phase, seconds)

    def _add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def verdict(self, error: DarkroomError | None = None) -> Verdict:
        """The job's end: done, or failed with ``error``."""
        state = self.state
        attempts = self.ticket.count_attempts()
        status = "done" if error is None else "partial" if self.pictures else "failed"
        result = Result.model_validate(
            {
                "darkroom": __version__,
                "id": self.ticket.id,
                "name": self.ticket.name,
                "original_name": self.ticket.origin.name,
                "original_name_base64": None if self.ticket.origin.is_utf8 else self.ticket.origin.name_base64,
                "status": status,
                "request_sha256": hashlib.sha256(self.request).hexdigest() if self.request is not None else None,
                "received_at": timestamp(self.ticket.origin.ctime_ns),
                "started_at": self.started_at,
                "finished_at": timestamp(),
                "attempts": attempts,
                "seconds": self._timings(),
                "pictures": self.in_order(),
                "grid": self.grid,
                "shared_batch": state.shared_batch if state is not None else None,
                "source": (state.job.source if state is not None else None) or None,
                "job": state.job.recipe() if state is not None else None,
                "requested": state.requested if state is not None else {},
                "fallbacks": state.fallbacks if state is not None else [],
                "warnings": state.warnings if state is not None else [],
                "device": self.device,
                "versions": self.versions,
            }
        )
        if error is None:
            return Verdict(result)
        reason = error.reason if isinstance(error, JobError | MachineError) else "render-failed"
        report = ErrorReport.model_validate(
            {
                "status": status,
                "reason": reason,
                "message": error.message,
                "errors": [asdict(fault) for fault in error.errors],
                "attempts": attempts,
                "traceback": error.trace,
            }
        )
        return Verdict(result, report, self._retry())

    def _retry(self) -> bytes | None:
        """A job file for the pictures that are missing, where others were made: dropped in, it makes just the rest.

        Pictures are made in order, so what is missing is the end; were there a gap, all from its start are made again.
        """
        if self.state is None or not self.pictures or not self.missing():
            return None
        job = self.state.job
        if job.cells:
            rest = job.recipe() | {"count": 1, "cells": self._cells_left()}
            rest.pop("matrix", None)
            return json.dumps(rest, ensure_ascii=False, indent=2).encode() + b"\n"
        first = next(index for index in range(job.count) if index not in self.pictures)
        rest = job.recipe() | {"seed": job.seed_of(first), "count": job.count - first}
        return json.dumps(rest, ensure_ascii=False, indent=2).encode() + b"\n"

    def _cells_left(self) -> list[dict[str, Any]]:
        """A cell for each picture that is missing."""
        job = self.job
        left = (index for index in range(job.total) if index not in self.pictures)
        return [(job.cell_of(index) or {}) | {"seed": job.seed_of(index)} for index in left]

    def verdict_of_list(self, folder: str, entries: int) -> Verdict:
        """The end of a list: its entries lie in a folder of the inbox, beside whose results this one will be."""
        verdict = self.verdict()
        name = published_name(f"{folder}/{OF_LIST}.json")
        return Verdict(verdict.result.model_copy(update={"name": name, "entries": entries}))

    def _timings(self) -> dict[str, float]:
        received = self.ticket.origin.ctime_ns / 1e9
        started = datetime.fromisoformat(self.started_at).timestamp()
        timings = {"queued": started - received, **self.seconds, "total": time.time() - started}
        return {phase: round(max(0.0, seconds), 3) for phase, seconds in timings.items()}
